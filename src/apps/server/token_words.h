// SPDX-License-Identifier: Apache-2.0
// Floor 9. How logprobs write tokens: their text, or their bytes where those are no whole characters.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/choice.h"
#include "text/tokenizer.h"

namespace nibble::server {

class TokenWords {
 public:
  explicit TokenWords(const Tokenizer& tokenizer);

  // The bytes that a token adds to a text; a special token's name.
  std::string_view Bytes(int32_t id) const;
  // A JSON string of the same; bytes that are no UTF-8 as OpenAI's completions write them: "bytes:\xe2\x80".
  std::string Word(int32_t id) const;

  // "logprobs" of a chat: {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}.
  std::string ChatLogprobs(std::span<const TokenEntry> entries) const;
  // "logprobs" of a completion: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}. `first`: a token
  // before `entries` that has no logprob, -1 for none. `offset`: characters before them in the answer's text;
  // moves on.
  std::string CompletionLogprobs(std::span<const TokenEntry> entries, int32_t first, size_t* offset) const;

 private:
  std::vector<std::string> bytes_;
};

// A number as JSON has it; minus infinity becomes -9999.
std::string LogprobText(float logprob);

}  // namespace nibble::server
