// SPDX-License-Identifier: Apache-2.0
// Floor 5. Reads the tokens of a safetensors header in place. A header may be 100 MB with a million tensors;
// a JSON document of it would cost a gigabyte, and its grammar is a dictionary of three-key dictionaries.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble::io {

class HeaderScanner {
 public:
  // `text` must be valid UTF-8; `path` opens every message.
  HeaderScanner(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  size_t position() const { return at_; }
  void Seek(size_t position) { at_ = position; }
  bool AtEnd();  // after white space

  bool Skip(char c);                  // takes c if it comes next
  Status Expect(char c);              // takes c or fails
  Status String(std::string* value);  // escapes resolved
  Status Natural(uint64_t* value);    // digits only, exact; no sign, fraction or exponent
  // kCorrupt naming the file, the place and what is there.
  Status Fail(std::string_view wanted) const;

 private:
  void SkipSpace();
  Status Escape(std::string* value);
  Status HexQuad(uint32_t* unit);
  std::string_view text_;
  const std::string& path_;
  size_t at_ = 0;
};

}  // namespace nibble::io
