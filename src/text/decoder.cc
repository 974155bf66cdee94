// SPDX-License-Identifier: Apache-2.0
// Floor 5. The decoders, one stage class each.
#include "text/decoder.h"

#include <optional>
#include <utility>
#include <vector>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/metaspace.h"
#include "text/replace.h"

namespace nibble {
namespace {

using Stage = std::unique_ptr<DecodeStage>;

Status NotByToken(std::string_view decoder) {
  return Error(Code::kUnsupported,
               "the tokenizer's decoder {} makes what a token adds depend on its neighbours", decoder);
}

// A stage that needs whole tokens: parts of a fused one are collected until the end.
class TokenStage : public DecodeStage {
 public:
  TokenStage(Stage next, bool fused) : next_(std::move(next)), fused_(fused) {}
  void Push(std::string_view token) final { fused_ ? static_cast<void>(whole_.append(token)) : Take(token); }
  void Finish() final {
    if (fused_) Take(whole_);
    End();
    next_->Finish();
  }

 protected:
  virtual void Take(std::string_view token) = 0;
  virtual void End() {}
  void Emit(std::string_view token) { next_->Push(token); }

 private:
  Stage next_;
  bool fused_;
  std::string whole_;
};

// No decoder: tokens joined by spaces.
class JoinStage final : public TokenStage {
 public:
  using TokenStage::TokenStage;
  static Status ToBytes(bool, std::string*) { return NotByToken("(none: joined by spaces)"); }

 private:
  void Take(std::string_view token) override {
    if (!first_) Emit(" ");
    first_ = false;
    Emit(token);
  }
  bool first_ = true;
};

// Characters of the byte alphabet become bytes, bytes become text. A token with any other character is text.
class ByteLevelStage final : public TokenStage {
 public:
  using TokenStage::TokenStage;
  static Status ToBytes(bool fused, std::string* token) {
    if (fused) return NotByToken("ByteLevel behind Fuse");
    std::string bytes;
    AppendBytes(*token, &bytes);
    *token = std::move(bytes);
    return {};
  }

 private:
  static void AppendBytes(std::string_view token, std::string* bytes) {
    const size_t before = bytes->size();
    for (size_t pos = 0; pos < token.size();) {
      const char32_t c = NextChar(token, &pos);
      const int byte = c < kByteAlphabet.to_byte.size() ? kByteAlphabet.to_byte[c] : -1;
      if (byte < 0) {
        bytes->replace(before, std::string::npos, token);
        break;
      }
      bytes->push_back(static_cast<char>(byte));
    }
  }
  void Take(std::string_view token) override {
    AppendBytes(token, &bytes_);
    EmitWhole();
  }

  // All but a character that the next token may complete.
  void EmitWhole() {
    size_t whole = bytes_.size();
    for (size_t back = 1; back <= 3 && back <= bytes_.size(); ++back) {
      const size_t at = bytes_.size() - back;
      const Utf8Step step = ScanUtf8(bytes_, at);
      if (step.kind == Utf8Step::kTruncated) whole = at;
    }
    Flush(whole);
  }
  void Flush(size_t n) {
    text_.clear();
    AppendLossyUtf8(std::string_view(bytes_).substr(0, n), &text_);
    bytes_.erase(0, n);
    if (!text_.empty()) Emit(text_);
  }
  void End() override { Flush(bytes_.size()); }
  std::string bytes_;  // at most an incomplete character between tokens
  std::string text_;   // of one token; keeps its memory
};

// "<0xHH>" tokens: a run of them is text if it is UTF-8 as a whole, else one U+FFFD a token. So a run is held
// back until it ends or cannot become UTF-8 any more.
class ByteFallbackStage final : public TokenStage {
 public:
  using TokenStage::TokenStage;
  static Status ToBytes(bool fused, std::string* token) {
    if (fused) return NotByToken("ByteFallback behind Fuse");
    if (const int byte = ByteOf(*token); byte >= 0) token->assign(1, static_cast<char>(byte));
    return {};
  }

 private:
  static int HexDigit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  }
  static int ByteOf(std::string_view token) {
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
    const int high = HexDigit(token[3]), low = HexDigit(token[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }

  void Take(std::string_view token) override {
    const int byte = ByteOf(token);
    if (byte < 0) {
      EndRun();
      Emit(token);
    } else if (broken_) {
      Emit(kReplacementChar);
    } else {
      run_.push_back(static_cast<char>(byte));
      CheckRun();
    }
  }
  void CheckRun() {
    while (checked_ < run_.size()) {
      const Utf8Step step = ScanUtf8(run_, checked_);
      if (step.kind == Utf8Step::kTruncated) return;
      if (step.kind == Utf8Step::kInvalid) return Break();
      checked_ += static_cast<size_t>(step.bytes);
    }
  }
  void Break() {
    for (size_t i = 0; i < run_.size(); ++i) Emit(kReplacementChar);
    run_.clear();
    checked_ = 0;
    broken_ = true;
  }
  void EndRun() {
    if (checked_ < run_.size()) Break();
    if (!run_.empty()) Emit(run_);
    run_.clear();
    checked_ = 0;
    broken_ = false;
  }
  void End() override { EndRun(); }

  std::string run_;
  size_t checked_ = 0;   // bytes of run_ that are whole characters
  bool broken_ = false;  // the current run has a byte that no continuation can repair
};

class MetaspaceStage final : public DecodeStage {
 public:
  MetaspaceStage(Stage next, bool fused, const Metaspace& options)
      : next_(std::move(next)), fused_(fused), options_(options) {}
  static Status ToBytes(const Metaspace& options, bool fused, std::string* token) {
    if (fused && options.scheme != PrependScheme::kNever) return NotByToken("Metaspace behind Fuse");
    *token = WithSpaces(options, *token, false);
    return {};
  }
  void Push(std::string_view token) override {
    const std::string text = WithSpaces(options_, token, first_ && options_.scheme != PrependScheme::kNever);
    first_ = first_ && fused_;
    next_->Push(text);
  }
  void Finish() override { next_->Finish(); }

 private:
  static std::string WithSpaces(const Metaspace& options, std::string_view token, bool drop) {
    std::string text;
    for (size_t pos = 0; pos < token.size();) {
      const size_t begin = pos;
      NextChar(token, &pos);
      const std::string_view c = token.substr(begin, pos - begin);
      if (c != options.mark) {
        text.append(c);
      } else if (!drop) {
        text.push_back(' ');
      }
    }
    return text;
  }
  Stage next_;
  bool fused_, first_ = true;
  const Metaspace& options_;
};

class ReplaceStage final : public TokenStage {
 public:
  ReplaceStage(Stage next, bool fused, const Replacement& replacement)
      : TokenStage(std::move(next), fused), replacement_(replacement) {}
  static Status ToBytes(const Replacement& replacement, bool fused, std::string* token) {
    if (fused) return NotByToken("Replace behind Fuse");
    *token = Replaced(replacement, *token);
    return {};
  }

 private:
  static std::string Replaced(const Replacement& replacement, std::string_view token) {
    std::string text(token);
    std::vector<Span> matches;
    // A literal pattern has no choices, so it stays within its budget; the token is kept if memory did not.
    if (!replacement.Apply(&text, &matches).ok()) text = token;
    return text;
  }
  void Take(std::string_view token) override { Emit(Replaced(replacement_, token)); }
  const Replacement& replacement_;
};

struct StripOptions {
  std::string content;  // one character
  int64_t start = 0, stop = 0;
};

// Drops up to `start` contents at the beginning and up to `stop` at the end of each token.
class StripStage final : public DecodeStage {
 public:
  StripStage(Stage next, bool fused, const StripOptions& options)
      : next_(std::move(next)), fused_(fused), options_(options), start_left_(options.start) {}
  // Fused, one content at the beginning concerns the first token alone.
  static Status ToBytes(const StripOptions& options, bool fused, std::string* token) {
    if (fused && (options.start > 1 || options.stop > 0)) return NotByToken("Strip behind Fuse");
    if (fused) return {};
    auto sink = std::make_unique<DecodeSink>();
    DecodeSink* out = sink.get();
    StripStage(std::move(sink), false, options).Push(*token);
    *token = out->Take();
    return {};
  }
  void Push(std::string_view token) override {
    for (size_t pos = 0; pos < token.size();) {
      const size_t begin = pos;
      NextChar(token, &pos);
      Take(token.substr(begin, pos - begin));
    }
    if (!fused_) {
      held_ = 0;
      start_left_ = options_.start;
    }
    next_->Push(std::exchange(text_, std::string()));
  }
  void Finish() override { next_->Finish(); }

 private:
  void Take(std::string_view c) {
    if (c != options_.content) {
      for (; held_ > 0; --held_) text_.append(options_.content);
      start_left_ = 0;
      text_.append(c);
    } else if (start_left_ > 0) {
      --start_left_;
    } else if (held_ < options_.stop) {
      ++held_;
    } else {
      text_.append(c);
    }
  }
  Stage next_;
  bool fused_;
  const StripOptions& options_;
  int64_t start_left_;
  int64_t held_ = 0;  // contents that are dropped if the token ends here
  std::string text_;
};

class PassStage final : public DecodeStage {
 public:
  explicit PassStage(Stage next) : next_(std::move(next)) {}
  void Push(std::string_view token) override { next_->Push(token); }
  void Finish() override { next_->Finish(); }

 private:
  Stage next_;
};

template <class TokenStageType, bool kFuses>
class PlainDecoder final : public TextDecoder {
 public:
  Stage Start(Stage next, bool fused) const override {
    return std::make_unique<TokenStageType>(std::move(next), fused);
  }
  bool Fuses(bool) const override { return kFuses; }
  Status ToBytes(bool fused, std::string* token) const override {
    return TokenStageType::ToBytes(fused, token);
  }
};

class FuseDecoder final : public TextDecoder {
 public:
  Stage Start(Stage next, bool) const override { return std::make_unique<PassStage>(std::move(next)); }
  bool Fuses(bool) const override { return true; }
  Status ToBytes(bool, std::string*) const override { return {}; }
};

template <class StageType, class Options>
class OptionsDecoder final : public TextDecoder {
 public:
  explicit OptionsDecoder(Options options) : options_(std::move(options)) {}
  Stage Start(Stage next, bool fused) const override {
    return std::make_unique<StageType>(std::move(next), fused, options_);
  }
  Status ToBytes(bool fused, std::string* token) const override {
    return StageType::ToBytes(options_, fused, token);
  }

 private:
  Options options_;
};

class SequenceDecoder final : public TextDecoder {
 public:
  explicit SequenceDecoder(std::vector<std::unique_ptr<TextDecoder>> parts) : parts_(std::move(parts)) {}
  Stage Start(Stage next, bool fused) const override {
    std::vector<bool> receives;
    for (const auto& part : parts_) {
      receives.push_back(fused);
      fused = part->Fuses(fused);
    }
    for (size_t i = parts_.size(); i-- > 0;) next = parts_[i]->Start(std::move(next), receives[i]);
    return next;
  }
  bool Fuses(bool fused) const override {
    for (const auto& part : parts_) fused = part->Fuses(fused);
    return fused;
  }
  Status ToBytes(bool fused, std::string* token) const override {
    for (const auto& part : parts_) {
      NIBBLE_RETURN_IF_ERROR(part->ToBytes(fused, token));
      fused = part->Fuses(fused);
    }
    return {};
  }

 private:
  std::vector<std::unique_ptr<TextDecoder>> parts_;
};

using Made = Result<std::unique_ptr<TextDecoder>>;

Made LoadSequence(JsonRef section) {
  NIBBLE_ASSIGN(const JsonRef list, section.Get("decoders"));
  if (!list.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", list.Where());
  std::vector<std::unique_ptr<TextDecoder>> parts;
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].is_null()) return Error(Code::kInvalidArgument, "{}: wanted a decoder", list[i].Where());
    NIBBLE_ASSIGN(auto part, LoadDecoder(list[i]));
    parts.push_back(std::move(part));
  }
  return Made(std::make_unique<SequenceDecoder>(std::move(parts)));
}

Made LoadStrip(JsonRef section) {
  StripOptions options;
  NIBBLE_ASSIGN(const std::string_view content, section.GetString("content"));
  NIBBLE_ASSIGN(options.start, section.GetInt("start", 0, INT32_MAX));
  NIBBLE_ASSIGN(options.stop, section.GetInt("stop", 0, INT32_MAX));
  size_t pos = 0;
  if (!content.empty()) NextChar(content, &pos);
  if (content.empty() || pos != content.size()) {
    return Error(Code::kInvalidArgument, "{}: content \"{}\" is not one character", section.Where(),
                 Printable(content));
  }
  options.content = content;
  return Made(std::make_unique<OptionsDecoder<StripStage, StripOptions>>(std::move(options)));
}

Made LoadReplace(JsonRef section) {
  NIBBLE_ASSIGN(const JsonRef pattern, section.Get("pattern"));
  if (pattern.Find("Regex")) {
    return Error(Code::kUnsupported, "{}: decoder Replace with a Regex is not supported", section.Where());
  }
  NIBBLE_ASSIGN(Replacement replacement, Replacement::Load(section));
  return Made(std::make_unique<OptionsDecoder<ReplaceStage, Replacement>>(std::move(replacement)));
}

}  // namespace

Result<std::unique_ptr<TextDecoder>> LoadDecoder(JsonRef section) {
  if (section.is_null()) return Made(std::make_unique<PlainDecoder<JoinStage, false>>());
  NIBBLE_ASSIGN(const std::string_view type, section.GetString("type"));
  if (type == "Sequence") return LoadSequence(section);
  if (type == "ByteLevel") return Made(std::make_unique<PlainDecoder<ByteLevelStage, true>>());
  if (type == "ByteFallback") return Made(std::make_unique<PlainDecoder<ByteFallbackStage, false>>());
  if (type == "Fuse") return Made(std::make_unique<FuseDecoder>());
  if (type == "Replace") return LoadReplace(section);
  if (type == "Strip") return LoadStrip(section);
  if (type == "Metaspace") {
    NIBBLE_ASSIGN(Metaspace options, LoadMetaspace(section));
    return Made(std::make_unique<OptionsDecoder<MetaspaceStage, Metaspace>>(std::move(options)));
  }
  return Error(Code::kUnsupported, "{}: decoder {} is not supported", section.Where(), Printable(type));
}

}  // namespace nibble
