// SPDX-License-Identifier: Apache-2.0
// Floor 5. Text to ids and back, as tokenizer.json says. Knows no model and no device.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

enum class SpecialTokens : uint8_t { kAdd, kOmit };   // whether the post-processor (e.g. <s>) runs
enum class SpecialText : uint8_t { kParse, kPlain };  // whether "</s>" in the text becomes the special token

// What each token adds to a text, by id; "" for a special token and an id without a token.
struct TokenSpellings {
  std::vector<std::string> anywhere;
  std::vector<std::string> first;  // where no token is before it: a decoder may drop a space there
};

class DecodeRun;  // text/decode_run.h: a decoding under way

class Tokenizer {
 public:
  // Reads DIR/tokenizer.json (tokenizer_config.json is not needed). Unknown constructs are kUnsupported and
  // named.
  static Result<std::unique_ptr<Tokenizer>> Load(const std::string& dir);
  static Result<std::unique_ptr<Tokenizer>> Parse(JsonRef root);
  virtual ~Tokenizer() = default;

  // kInvalidArgument when `text` is not valid UTF-8 (names the byte offset), is longer than 64 MiB, or makes
  // a pattern of tokenizer.json take more than linear time. Linear in the text. Thread-safe.
  virtual Result<std::vector<int32_t>> Encode(std::string_view text, SpecialTokens,
                                              SpecialText = SpecialText::kParse) const = 0;
  // Whole-sequence decoding, as HF decode(ids, skip_special_tokens). Ids out of range are skipped.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special) const = 0;
  virtual std::string TokenText(int32_t id) const = 0;  // the vocabulary entry as tokenizer.json spells it
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual int vocab_size() const = 0;  // largest id + 1, added tokens included
  // kUnsupported when the bytes of a token depend on its neighbours.
  virtual Result<TokenSpellings> Spellings() const = 0;
  virtual std::unique_ptr<DecodeRun> StartDecode(bool skip_special) const = 0;  // for StreamDecoder
};

// Turns ids into text piece by piece: holds back bytes that may still become a character, so that the pieces
// concatenate to Decode() of all ids. The work of a Push does not grow with the text before it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer,
                         bool skip_special = true);  // the tokenizer must outlive it
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;
  std::string Push(int32_t id);              // text that is final now, maybe empty
  void Push(int32_t id, std::string* text);  // appends it
  std::string Flush();  // what was held back, incomplete characters as U+FFFD; a new text may follow

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::unique_ptr<DecodeRun> run_;
};

}  // namespace nibble
