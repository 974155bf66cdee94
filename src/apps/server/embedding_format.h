// SPDX-License-Identifier: Apache-2.0
// Floor 9. Answers of /v1/embeddings: vectors of length one.
#pragma once
#include <memory>
#include <string>

#include "apps/server/choice.h"

namespace nibble::server {

// `base64`: little-endian f32 instead of numbers.
std::unique_ptr<Format> MakeEmbeddingFormat(std::string model, bool base64);

}  // namespace nibble::server
