// SPDX-License-Identifier: Apache-2.0
// Floor 9. Calls of tools in the text of an answer, in the syntax that a model's own template uses.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/chat_messages.h"
#include "base/result.h"
#include "text/chat_template.h"
#include "text/token_mask.h"

namespace nibble::server {

// kNone: no tools were given, the text is what it is. kTagged (Hermes, Qwen): <tool_call>{"name",
// "arguments"}
// </tool_call>. kArray (Mistral): [{"name", "arguments"}], perhaps behind [TOOL_CALLS]. kObject (Llama 3):
// {"name", "parameters"}.
enum class ToolSyntax : uint8_t { kNone, kTagged, kArray, kObject };

// What the template makes of a call in a past message. kObject where it is none of the known ones: then the
// model has only the request's word for how to call.
ToolSyntax DetectToolSyntax(const ChatTemplate& chat);

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON
};

// Splits a growing text into content and calls.
class ToolText {
 public:
  explicit ToolText(ToolSyntax syntax) : syntax_(syntax) {}
  ToolSyntax syntax() const { return syntax_; }

  std::string Push(std::string_view text);  // content that can no longer be part of a call
  struct Rest {
    std::string content;
    std::vector<ToolCall> calls;
  };
  Rest Finish();  // of what was held back; what is no call after all is content

 private:
  ToolSyntax syntax_;
  std::string held_;
  bool in_call_ = false;
};

// `indexed`: as deltas of a stream have them.
std::string ToolCallsJson(const std::vector<ToolCall>& calls, std::string_view answer_id, bool indexed);

// The texts of one call of one of `tools`. kInvalidArgument names the tool whose parameters do not compile.
Result<std::shared_ptr<Constraint>> ToolConstraint(ToolSyntax syntax, const std::vector<Tool>& tools,
                                                   std::shared_ptr<const TokenTrie> trie);

}  // namespace nibble::server
