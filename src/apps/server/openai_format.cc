// SPDX-License-Identifier: Apache-2.0
#include "apps/server/openai_format.h"

#include "apps/server/api_error.h"
#include "apps/server/log.h"

namespace nibble::server {
namespace {

constexpr const char* kDone = "data: [DONE]\n\n";

// What both share: the frame around `choices`.
class OpenAiFormat : public Format {
 public:
  explicit OpenAiFormat(AnswerHead head) : head_(std::move(head)) {}

  std::string End(std::span<const Choice>, const Usage& usage) override {
    std::string out;
    if (head_.include_usage) out = SseData(Frame(ChunkName(), "[]", UsageJson(usage)));
    return out + kDone;
  }
  std::string Error(int http_status, std::string_view message) override {
    return SseData(ErrorBody(http_status, message)) + kDone;
  }

 protected:
  virtual const char* ChunkName() const = 0;

  std::string Frame(const char* object, std::string_view choices, std::string_view usage) const {
    return fmt::format(R"({{"id":"{}","object":"{}","created":{},"model":{},"choices":{}{}}})", head_.id,
                       object, head_.created, Quoted(head_.model), choices,
                       usage.empty() ? "" : fmt::format(R"(,"usage":{})", usage));
  }
  std::string Chunk(std::string_view choice) const {
    return SseData(Frame(ChunkName(), fmt::format("[{}]", choice), head_.include_usage ? "null" : ""));
  }
  const AnswerHead& head() const { return head_; }

 private:
  AnswerHead head_;
};

std::string FinishWord(const std::optional<FinishReason>& finish, bool called) {
  if (!finish) return "null";
  const bool tool = called && *finish == FinishReason::kStop;
  return fmt::format("\"{}\"", tool ? "tool_calls" : OpenAiFinish(*finish));
}

class ChatFormat final : public OpenAiFormat {
 public:
  ChatFormat(AnswerHead chat, ToolSyntax tools) : OpenAiFormat(std::move(chat)) {
    for (int i = 0; i < head().choices; ++i) texts_.emplace_back(tools);
  }

  std::string Whole(std::span<const Choice> choices, const Usage& usage) override {
    std::string list;
    for (const Choice& choice : choices) {
      ToolText tools(texts_[0].syntax());
      std::string content = tools.Push(choice.text);
      const ToolText::Rest rest = tools.Finish();
      content += rest.content;
      const bool no_content = content.empty() && !rest.calls.empty();
      std::string message = fmt::format(R"({{"role":"assistant","content":{},"refusal":null)",
                                        no_content ? "null" : Quoted(content));
      if (!rest.calls.empty())
        message +=
            fmt::format(R"(,"tool_calls":{})", ToolCallsJson(rest.calls, head().id, /*indexed=*/false));
      list += fmt::format(R"({}{{"index":{},"message":{}}},"logprobs":{},"finish_reason":{}}})",
                          list.empty() ? "" : ",", choice.index, message,
                          head().logprobs ? head().words->ChatLogprobs(choice.logprobs) : "null",
                          FinishWord(choice.finish, !rest.calls.empty()));
    }
    return Frame("chat.completion", fmt::format("[{}]", list), UsageJson(usage));
  }

  std::string Begin() override {
    std::string out;
    for (int i = 0; i < head().choices; ++i)
      out += Chunk(Item(i, R"({"role":"assistant","content":""})", "null", "null"));
    return out;
  }

  std::string Piece(const Choice& choice, const Delta& delta) override {
    ToolText& tools = texts_[static_cast<size_t>(choice.index)];
    std::string content = tools.Push(delta.text), out;
    ToolText::Rest rest;
    if (choice.finish) {
      rest = tools.Finish();
      content += rest.content;
    }
    const std::string logprobs =
        head().logprobs && !delta.logprobs.empty() ? head().words->ChatLogprobs(delta.logprobs) : "null";
    if (!content.empty() || logprobs != "null")
      out += Chunk(Item(choice.index, fmt::format(R"({{"content":{}}})", Quoted(content)), logprobs, "null"));
    if (!rest.calls.empty()) {
      const std::string calls = ToolCallsJson(rest.calls, head().id, /*indexed=*/true);
      out += Chunk(Item(choice.index, fmt::format(R"({{"tool_calls":{}}})", calls), "null", "null"));
    }
    if (choice.finish)
      out += Chunk(Item(choice.index, "{}", "null", FinishWord(choice.finish, !rest.calls.empty())));
    return out;
  }

 private:
  const char* ChunkName() const override { return "chat.completion.chunk"; }
  static std::string Item(int index, std::string_view delta, std::string_view logprobs,
                          std::string_view finish) {
    return fmt::format(R"({{"index":{},"delta":{},"logprobs":{},"finish_reason":{}}})", index, delta,
                       logprobs, finish);
  }

  std::vector<ToolText> texts_;  // by choice
};

class CompletionFormat final : public OpenAiFormat {
 public:
  CompletionFormat(AnswerHead completion, std::vector<EchoedPrompt> echo, bool prompt_logprobs)
      : OpenAiFormat(std::move(completion)),
        echo_(std::move(echo)),
        prompt_logprobs_(prompt_logprobs),
        begun_(static_cast<size_t>(head().choices)),
        offsets_(begun_.size()) {}

  std::string Whole(std::span<const Choice> choices, const Usage& usage) override {
    std::string list;
    for (const Choice& choice : choices) {
      size_t offset = 0;
      std::string logprobs = "null";
      if (head().logprobs) {
        std::vector<TokenEntry> entries;
        if (!echo_.empty()) entries = choice.prompt_logprobs;
        entries.insert(entries.end(), choice.logprobs.begin(), choice.logprobs.end());
        logprobs = head().words->CompletionLogprobs(entries, FirstToken(choice), &offset);
      }
      const std::string prompt =
          prompt_logprobs_ ? fmt::format(R"(,"prompt_logprobs":{})", PromptLogprobs(choice)) : "";
      list += fmt::format("{}{}", list.empty() ? "" : ",",
                          Item(choice.index, EchoedText(choice) + choice.text, logprobs,
                               FinishWord(choice.finish, false), prompt));
    }
    return Frame(ChunkName(), fmt::format("[{}]", list), UsageJson(usage));
  }

  std::string Begin() override { return ""; }

  std::string Piece(const Choice& choice, const Delta& delta) override {
    const auto i = static_cast<size_t>(choice.index);
    std::string text(delta.text), logprobs = "null";
    std::vector<TokenEntry> entries(delta.logprobs.begin(), delta.logprobs.end());
    // The prompt goes out with the first new token, when all of its logprobs are there.
    if (!begun_[i] && (!choice.tokens.empty() || choice.finish)) {
      begun_[i] = true;
      text = EchoedText(choice) + text;
      if (!echo_.empty())
        entries.insert(entries.begin(), choice.prompt_logprobs.begin(), choice.prompt_logprobs.end());
      if (head().logprobs)
        logprobs = head().words->CompletionLogprobs(entries, FirstToken(choice), &offsets_[i]);
    } else if (head().logprobs && !entries.empty()) {
      logprobs = head().words->CompletionLogprobs(entries, -1, &offsets_[i]);
    }
    if (text.empty() && logprobs == "null" && !choice.finish) return "";
    return Chunk(Item(choice.index, text, logprobs, FinishWord(choice.finish, false), ""));
  }

 private:
  const char* ChunkName() const override { return "text_completion"; }

  static std::string Item(int index, std::string_view text, std::string_view logprobs,
                          std::string_view finish, std::string_view more) {
    return fmt::format(R"({{"index":{},"text":{},"logprobs":{},"finish_reason":{}{}}})", index, Quoted(text),
                       logprobs, finish, more);
  }
  std::string EchoedText(const Choice& choice) const {
    return echo_.empty() ? "" : echo_[choice.prompt].text;
  }
  int32_t FirstToken(const Choice& choice) const {
    return echo_.empty() ? -1 : echo_[choice.prompt].first_token;
  }
  // As vLLM: null for the first token, then {"ID": {"logprob", "rank", "decoded_token"}}.
  std::string PromptLogprobs(const Choice& choice) const {
    std::string out = "[null";
    for (const TokenEntry& entry : choice.prompt_logprobs) {
      bool chosen = false;
      std::string item;
      const auto add = [&](const TokenLogprob& t) {
        chosen = chosen || t.id == entry.token.id;
        item += fmt::format(R"({}"{}":{{"logprob":{},"decoded_token":{}}})", item.empty() ? "" : ",", t.id,
                            LogprobText(t.logprob), head().words->Word(t.id));
      };
      for (const TokenLogprob& t : entry.top) add(t);
      if (!chosen) add(entry.token);
      out += ",{" + item + "}";
    }
    return out + "]";
  }

  std::vector<EchoedPrompt> echo_;
  bool prompt_logprobs_;
  std::vector<bool> begun_;      // by choice
  std::vector<size_t> offsets_;  // by choice: characters so far
};

}  // namespace

std::string UsageJson(const Usage& usage) {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      usage.prompt_tokens, usage.new_tokens, usage.prompt_tokens + usage.new_tokens, usage.cached_tokens);
}

std::unique_ptr<Format> MakeChatFormat(AnswerHead head, ToolSyntax tools) {
  return std::make_unique<ChatFormat>(std::move(head), tools);
}

std::unique_ptr<Format> MakeCompletionFormat(AnswerHead head, std::vector<EchoedPrompt> echo,
                                             bool prompt_logprobs) {
  return std::make_unique<CompletionFormat>(std::move(head), std::move(echo), prompt_logprobs);
}

}  // namespace nibble::server
