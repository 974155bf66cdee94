// SPDX-License-Identifier: Apache-2.0
#include "apps/server/api_error.h"
#include "apps/server/log.h"
#include "apps/server/responses.h"

namespace nibble::server {
namespace {

class ResponseFormat final : public Format {
 public:
  explicit ResponseFormat(ResponseHead head) : head_(std::move(head)), split_(head_.tools) {}

  std::string Whole(std::span<const Choice> choices, const Usage& usage) override {
    text_ = split_.Push(choices[0].text);
    rest_ = split_.Finish();
    text_ += rest_.content;
    return Response(&choices[0], &usage);
  }

  std::string Begin() override {
    const std::string response = fmt::format(R"("response":{})", Response(nullptr, nullptr));
    return Event("response.created", response) + Event("response.in_progress", response);
  }

  std::string Piece(const Choice& choice, const Delta& delta) override {
    std::string piece = split_.Push(delta.text), out;
    if (choice.finish) {
      rest_ = split_.Finish();
      piece += rest_.content;
    }
    const bool text_at_all = !piece.empty() || (choice.finish && rest_.calls.empty());
    if (text_at_all && !open_) {
      open_ = true;
      out += Event("response.output_item.added",
                   fmt::format(R"("output_index":0,"item":{})", MessageItem("in_progress", /*empty=*/true)));
      out += Event("response.content_part.added", fmt::format(R"({},"part":{})", Place(), Part("")));
    }
    text_ += piece;
    if (!piece.empty())
      out += Event("response.output_text.delta",
                   fmt::format(R"({},"delta":{},"logprobs":[])", Place(), Quoted(piece)));
    if (!choice.finish) return out;
    if (open_) {
      out += Event("response.output_text.done",
                   fmt::format(R"({},"text":{},"logprobs":[])", Place(), Quoted(text_)));
      out += Event("response.content_part.done", fmt::format(R"({},"part":{})", Place(), Part(text_)));
      out += Event("response.output_item.done", fmt::format(R"("output_index":0,"item":{})",
                                                            MessageItem(StatusOf(choice), /*empty=*/false)));
    }
    for (size_t i = 0; i < rest_.calls.size(); ++i) out += CallEvents(i);
    return out;
  }

  std::string End(std::span<const Choice> choices, const Usage& usage) override {
    const bool whole = StatusOf(choices[0]) == std::string_view("completed");
    return Event(whole ? "response.completed" : "response.incomplete",
                 fmt::format(R"("response":{})", Response(&choices[0], &usage)));
  }

  std::string Error(int http_status, std::string_view message) override {
    return Event("error",
                 fmt::format(R"("code":"{}","message":{},"param":null)", http_status, Quoted(message)));
  }

 private:
  std::string Event(std::string_view type, std::string_view fields) {
    return SseEvent(type,
                    fmt::format(R"({{"type":"{}","sequence_number":{},{}}})", type, sequence_++, fields));
  }
  static const char* StatusOf(const Choice& choice) {
    return *choice.finish == FinishReason::kStop ? "completed" : "incomplete";
  }
  std::string MessageId() const { return "msg_" + head_.id; }
  std::string Place() const {
    return fmt::format(R"("item_id":"{}","output_index":0,"content_index":0)", MessageId());
  }
  static std::string Part(std::string_view text) {
    return fmt::format(R"({{"type":"output_text","text":{},"annotations":[],"logprobs":[]}})", Quoted(text));
  }
  std::string MessageItem(const char* status, bool empty) const {
    return fmt::format(R"({{"type":"message","id":"{}","status":"{}","role":"assistant","content":[{}]}})",
                       MessageId(), status, empty ? "" : Part(text_));
  }
  std::string CallItem(size_t i, const char* status, std::string_view arguments) const {
    return fmt::format(
        R"({{"type":"function_call","id":"fc_{}_{}","call_id":"call_{}_{}","name":{},"arguments":{},"status":"{}"}})",
        head_.id, i, head_.id, i, Quoted(rest_.calls[i].name), Quoted(arguments), status);
  }
  std::string CallEvents(size_t i) {
    const size_t index = i + (open_ ? 1 : 0);
    const std::string place = fmt::format(R"("item_id":"fc_{}_{}","output_index":{})", head_.id, i, index);
    const std::string& arguments = rest_.calls[i].arguments;
    return Event("response.output_item.added",
                 fmt::format(R"("output_index":{},"item":{})", index, CallItem(i, "in_progress", ""))) +
           Event("response.function_call_arguments.delta",
                 fmt::format(R"({},"delta":{})", place, Quoted(arguments))) +
           Event("response.function_call_arguments.done",
                 fmt::format(R"({},"name":{},"arguments":{})", place, Quoted(rest_.calls[i].name),
                             Quoted(arguments))) +
           Event("response.output_item.done",
                 fmt::format(R"("output_index":{},"item":{})", index, CallItem(i, "completed", arguments)));
  }
  std::string Output(const Choice& choice) const {
    std::string out;
    if (!text_.empty() || rest_.calls.empty()) out = MessageItem(StatusOf(choice), /*empty=*/false);
    for (size_t i = 0; i < rest_.calls.size(); ++i)
      out += (out.empty() ? "" : ",") + CallItem(i, "completed", rest_.calls[i].arguments);
    return out;
  }
  // Without a choice: one that has just begun.
  std::string Response(const Choice* choice, const Usage* usage) const {
    const char* status = choice ? StatusOf(*choice) : "in_progress";
    const bool length = choice && *choice->finish == FinishReason::kLength;
    const std::string details =
        choice && *choice->finish != FinishReason::kStop
            ? fmt::format(R"({{"reason":"{}"}})",
                          length ? "max_output_tokens" : OpenAiFinish(*choice->finish))
            : "null";
    const std::string used =
        usage
            ? fmt::format(
                  R"({{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{}}},"output_tokens":{},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}})",
                  usage->prompt_tokens, usage->cached_tokens, usage->new_tokens,
                  usage->prompt_tokens + usage->new_tokens)
            : "null";
    return fmt::format(
        R"({{"id":"{}","object":"response","created_at":{},"status":"{}","error":null,"incomplete_details":{},"instructions":null,"max_output_tokens":{},"model":{},"output":[{}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":{},"top_p":{},"text":{{"format":{{"type":"text"}}}},"tool_choice":"auto","tools":[],"truncation":"disabled","usage":{},"metadata":{{}}}})",
        head_.id, head_.created, status, details,
        head_.max_tokens ? std::to_string(*head_.max_tokens) : "null", Quoted(head_.model),
        choice ? Output(*choice) : "", head_.temperature, head_.top_p, used);
  }

  ResponseHead head_;
  ToolText split_;
  ToolText::Rest rest_;
  std::string text_;
  bool open_ = false;  // the message has been announced
  int sequence_ = 0;
};

}  // namespace

std::unique_ptr<Format> MakeResponseFormat(ResponseHead head) {
  return std::make_unique<ResponseFormat>(std::move(head));
}

}  // namespace nibble::server
