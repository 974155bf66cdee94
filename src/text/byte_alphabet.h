// SPDX-License-Identifier: Apache-2.0
// Floor 5. The byte alphabet of byte-level BPE (GPT-2): every byte is one printable character, so that
// vocabularies hold text. Bytes that print in Latin-1 are themselves, the others U+0100 and on, in order.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace nibble {

struct ByteAlphabet {
  std::array<char16_t, 256> to_char{};
  std::array<int16_t, 0x180> to_byte{};  // by character; -1: not in the alphabet
};

constexpr ByteAlphabet MakeByteAlphabet() {
  ByteAlphabet a;
  a.to_byte.fill(-1);
  char16_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
    const char16_t c = printable ? static_cast<char16_t>(b) : next++;
    a.to_char[static_cast<size_t>(b)] = c;
    a.to_byte[c] = static_cast<int16_t>(b);
  }
  return a;
}

inline constexpr ByteAlphabet kByteAlphabet = MakeByteAlphabet();

}  // namespace nibble
