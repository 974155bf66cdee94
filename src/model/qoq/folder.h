// SPDX-License-Identifier: Apache-2.0
// Floor 7. QoQ on a model folder: layer after layer, resumable, then everything into one new folder.
#pragma once
#include "model/quantize_folder.h"

namespace nibble::qoq {

// nibble::QuantizeFolder with options.qoq.
Result<QuantizeReport> QuantizeFolder(const std::string& dir, const std::string& out,
                                      const QuantizeOptions& options);

// The passes that are on, by the names of the command line, in their order.
std::vector<std::string> PassNames(const Passes& passes);
// The reverse. kInvalidArgument for an unknown name and for rotate without fold.
Result<Passes> ParsePasses(std::span<const std::string> names);

}  // namespace nibble::qoq
