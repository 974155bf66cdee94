// SPDX-License-Identifier: Apache-2.0
// Floor 5. The post_processor section of tokenizer.json: special tokens around the ids of one text.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

struct PostProcessor {
  std::vector<int32_t> before, after;
};

// `find` gives the id of a token of the vocabulary or an added one. `section` may be null.
using FindToken = std::function<std::optional<int32_t>(std::string_view)>;
Result<PostProcessor> LoadPostProcessor(JsonRef section, const FindToken& find);

}  // namespace nibble
