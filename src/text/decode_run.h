// SPDX-License-Identifier: Apache-2.0
// Floor 5. A decoding under way: ids in, text out.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/decoder.h"

namespace nibble {

// An entry of the vocabulary or an added token, by id.
struct TokenEntry {
  std::string text;  // as tokenizer.json spells it
  // What the decoder sees: the normalized form of an added token that is matched normalized, else the text.
  std::string form;
  bool exists = false;
  bool special = false;       // an added token marked special
  bool skip_special = false;  // left out by skip_special: its form is the content of a special token
};

class DecodeRun {
 public:
  // REQUIRES: entries and decoder outlive the run.
  DecodeRun(const std::vector<TokenEntry>& entries, const TextDecoder& decoder, bool skip_special);
  void Push(int32_t id);  // ids that do not exist are skipped
  void Finish();
  std::string Take();              // text since the last call
  void MoveTo(std::string* text);  // appends it

 private:
  const std::vector<TokenEntry>& entries_;
  bool skip_special_;
  std::unique_ptr<DecodeStage> first_;
  DecodeSink* sink_;  // the last stage, owned by the chain
};

}  // namespace nibble
