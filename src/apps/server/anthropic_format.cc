// SPDX-License-Identifier: Apache-2.0
#include "apps/server/anthropic.h"
#include "apps/server/api_error.h"
#include "apps/server/log.h"

namespace nibble::server {
namespace {

class MessageFormat final : public Format {
 public:
  explicit MessageFormat(MessageHead head) : head_(std::move(head)), text_(head_.tools) {}

  std::string Whole(std::span<const Choice> choices, const Usage& usage) override {
    const Choice& choice = choices[0];
    std::string content = text_.Push(choice.text);
    const ToolText::Rest rest = text_.Finish();
    content += rest.content;
    std::string blocks;
    if (!content.empty() || rest.calls.empty()) blocks = TextBlock(content);
    for (size_t i = 0; i < rest.calls.size(); ++i)
      blocks += (blocks.empty() ? "" : ",") + CallBlock(i, rest.calls[i].name, rest.calls[i].arguments);
    return Message(blocks, Reason(choice, !rest.calls.empty()), StopSequence(choice), UsageOf(usage));
  }

  std::string Begin() override {
    const Usage usage{.prompt_tokens = head_.prompt_tokens};
    return Event("message_start",
                 fmt::format(R"("message":{})", Message("", "null", "null", UsageOf(usage))));
  }

  std::string Piece(const Choice& choice, const Delta& delta) override {
    std::string content = text_.Push(delta.text);
    ToolText::Rest rest;
    if (choice.finish) {
      rest = text_.Finish();
      content += rest.content;
    }
    std::string out;
    const bool text_at_all = !content.empty() || (choice.finish && rest.calls.empty());
    if (text_at_all && !text_open_) {
      text_open_ = true;
      out += Event("content_block_start", fmt::format(R"("index":0,"content_block":{})", TextBlock("")));
    }
    if (!content.empty())
      out += Event("content_block_delta",
                   fmt::format(R"("index":0,"delta":{{"type":"text_delta","text":{}}})", Quoted(content)));
    if (!choice.finish) return out;
    if (text_open_) out += Event("content_block_stop", R"("index":0)");
    for (size_t i = 0; i < rest.calls.size(); ++i) out += CallEvents(i, rest.calls[i]);
    return out +
           Event("message_delta",
                 fmt::format(
                     R"("delta":{{"stop_reason":{},"stop_sequence":{}}},"usage":{{"output_tokens":{}}})",
                     Reason(choice, !rest.calls.empty()), StopSequence(choice), choice.usage.new_tokens));
  }

  std::string End(std::span<const Choice>, const Usage&) override {
    return SseEvent("message_stop", R"({"type":"message_stop"})");
  }
  std::string Error(int http_status, std::string_view message) override {
    return SseEvent("error", ErrorBody(http_status, message, Dialect::kAnthropic));
  }
  std::string Ping() const override { return SseEvent("ping", R"({"type":"ping"})"); }

 private:
  static std::string Event(std::string_view type, std::string_view fields) {
    return SseEvent(type, fmt::format(R"({{"type":"{}",{}}})", type, fields));
  }
  static std::string TextBlock(std::string_view text) {
    return fmt::format(R"({{"type":"text","text":{}}})", Quoted(text));
  }
  std::string CallBlock(size_t i, std::string_view name, std::string_view input) const {
    return fmt::format(R"({{"type":"tool_use","id":"toolu_{}_{}","name":{},"input":{}}})", head_.id, i,
                       Quoted(name), input);
  }
  std::string CallEvents(size_t i, const ToolCall& call) const {
    const size_t index = i + (text_open_ ? 1 : 0);
    return Event("content_block_start",
                 fmt::format(R"("index":{},"content_block":{})", index, CallBlock(i, call.name, "{}"))) +
           Event("content_block_delta",
                 fmt::format(R"("index":{},"delta":{{"type":"input_json_delta","partial_json":{}}})", index,
                             Quoted(call.arguments))) +
           Event("content_block_stop", fmt::format(R"("index":{})", index));
  }
  static std::string UsageOf(const Usage& usage) {
    return fmt::format(R"({{"input_tokens":{},"output_tokens":{},"cache_read_input_tokens":{}}})",
                       usage.prompt_tokens - usage.cached_tokens, usage.new_tokens, usage.cached_tokens);
  }
  std::string Message(std::string_view blocks, std::string_view reason, std::string_view stop,
                      std::string_view usage) const {
    return fmt::format(
        R"({{"id":"{}","type":"message","role":"assistant","model":{},"content":[{}],"stop_reason":{},"stop_sequence":{},"usage":{}}})",
        head_.id, Quoted(head_.model), blocks, reason, stop, usage);
  }
  std::string Reason(const Choice& choice, bool called) const {
    if (called) return "\"tool_use\"";
    if (*choice.finish == FinishReason::kStop)
      return choice.stop_index >= 0 ? "\"stop_sequence\"" : "\"end_turn\"";
    // There is no word for an answer that the server or a constraint cut short.
    return "\"max_tokens\"";
  }
  std::string StopSequence(const Choice& choice) const {
    return choice.stop_index < 0 ? "null" : Quoted(head_.stops[static_cast<size_t>(choice.stop_index)]);
  }

  MessageHead head_;
  ToolText text_;
  bool text_open_ = false;
};

}  // namespace

std::unique_ptr<Format> MakeMessageFormat(MessageHead head) {
  return std::make_unique<MessageFormat>(std::move(head));
}

}  // namespace nibble::server
