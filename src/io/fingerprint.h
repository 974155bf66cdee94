// SPDX-License-Identifier: Apache-2.0
// Floor 5. A name for the contents of a model folder, so that a plan made for one model is not used with
// another.
#pragma once
#include <string>

#include "base/result.h"
#include "io/weights.h"

namespace nibble::io {

// 32 hexadecimal digits: XXH3-128 over the name, type, shape and content of every tensor, in name order. Of a
// tensor beyond 1 MiB, 64 pieces of 16 KiB at even distances stand for the whole, so that large models take
// no longer than small ones.
Result<std::string> Fingerprint(const Weights& weights);

}  // namespace nibble::io
