// SPDX-License-Identifier: Apache-2.0
// Floor 5. The decoder section of tokenizer.json as a chain of stages that take tokens one by one, so that
// decoding a whole sequence and streaming it are the same code.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

// One running decoder: a chain of stages with their state.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  // Takes the next token; behind a stage that fuses, the next part of the one token there is.
  virtual void Push(std::string_view token) = 0;
  // No more tokens: passes on all that was held back, then ends the stages behind.
  virtual void Finish() = 0;
};

// The last stage: appends what arrives.
class DecodeSink final : public DecodeStage {
 public:
  void Push(std::string_view token) override { text_.append(token); }
  void Finish() override {}
  std::string Take() { return std::exchange(text_, std::string()); }
  void MoveTo(std::string* text) {  // keeps its own memory for what comes next
    text->append(text_);
    text_.clear();
  }

 private:
  std::string text_;
};

// Makes running decoders. Immutable, shared by threads.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  // A stage that passes its output to `next`. `fused`: it receives parts of one token instead of tokens.
  virtual std::unique_ptr<DecodeStage> Start(std::unique_ptr<DecodeStage> next, bool fused) const = 0;
  // Whether such a stage emits parts of one token.
  virtual bool Fuses(bool fused) const { return fused; }
  // Replaces a token by the bytes that it adds to a text behind other tokens. kUnsupported when these bytes
  // depend on the tokens around it.
  virtual Status ToBytes(bool fused, std::string* token) const = 0;
};

// `section` may be null: then tokens are joined by spaces, as the reference does.
Result<std::unique_ptr<TextDecoder>> LoadDecoder(JsonRef section);

}  // namespace nibble
