// SPDX-License-Identifier: Apache-2.0
// Floor 7. The file of packed weights beside a model: which one is read or written, and what is said of it.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "io/packed_file.h"
#include "model/model.h"

namespace nibble {

// One of the two.
struct PackedWeights {
  std::unique_ptr<io::PackedReader> reader;
  std::optional<io::PackedWriter> writer;
  std::string dir;
  std::string path;                // of the file
  std::vector<std::string> stale;  // names beside it that Commit removes
};

// What `mode` asks for. kUnsupported on another device than the CPU, kCorrupt for a file that does not fit.
// REQUIRES: mode is not kOff.
Result<std::unique_ptr<PackedWeights>> OpenPackedWeights(const std::string& dir, const io::Weights& weights,
                                                         Backend& backend, const ModelOptions& options);

// Ends the writing, if any, once all weights are in; `notes` gets a line about it.
Status CommitPackedWeights(PackedWeights* packed, std::vector<std::string>* notes);

}  // namespace nibble
