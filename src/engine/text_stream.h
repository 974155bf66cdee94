// SPDX-License-Identifier: Apache-2.0
// Floor 8. The text of one answer as it grows: whole UTF-8 characters only, nothing that may still turn out
// to be the beginning of a stop string.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace nibble {

class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop);

  // Adds a token. Returns the text that is final now; it stays valid until the next call.
  std::string_view Push(int32_t id);
  // No more tokens will come: what was held back is final.
  std::string_view Finish();
  bool stopped() const { return stop_index_ >= 0; }  // a stop string was met; it is not part of the text
  int stop_index() const { return stop_index_; }     // which; -1: none

 private:
  void Emit();              // moves what is final from pending_ to ready_
  size_t HeldBack() const;  // bytes at the end of pending_ that begin a stop string

  StreamDecoder decoder_;
  std::vector<std::string> stop_;  // an empty one stops nothing
  std::string pending_;            // decoded, not returned yet
  std::string ready_;              // what the last call returned
  int stop_index_ = -1;
};

}  // namespace nibble
