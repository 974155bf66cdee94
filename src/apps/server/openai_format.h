// SPDX-License-Identifier: Apache-2.0
// Floor 9. Answers of /v1/chat/completions and /v1/completions as OpenAI writes them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "apps/server/choice.h"
#include "apps/server/token_words.h"
#include "apps/server/tool_calls.h"

namespace nibble::server {

struct AnswerHead {
  std::string id, model;
  int64_t created = 0;  // seconds since 1970
  int choices = 1;
  bool include_usage = false;  // a last chunk with the usage
  bool logprobs = false;
  const TokenWords* words = nullptr;
};

std::unique_ptr<Format> MakeChatFormat(AnswerHead head, ToolSyntax tools);

// What echo puts before the text of each choice: by index of the prompt.
struct EchoedPrompt {
  std::string text;
  int32_t first_token = -1;  // has no logprob
};
// `echo`: empty without. `prompt_logprobs`: the fields of that name are wanted.
std::unique_ptr<Format> MakeCompletionFormat(AnswerHead head, std::vector<EchoedPrompt> echo,
                                             bool prompt_logprobs);

std::string UsageJson(const Usage& usage);

}  // namespace nibble::server
