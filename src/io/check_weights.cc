// SPDX-License-Identifier: Apache-2.0
// Floor 5. Scanning floats by their bits, from data that may lie at odd addresses.
#include "io/check_weights.h"

#include <cstring>

#include "base/half.h"
#include "base/printable.h"

namespace nibble::io {
namespace {

template <class Word>
Word WordAt(const TensorInfo& t, uint64_t i) {
  Word word;
  memcpy(&word, t.data + i * sizeof(Word), sizeof(Word));
  return word;
}

template <class Word>
bool IsNan(Word word, Word exponent) {
  const Word fraction = exponent & static_cast<Word>(~exponent + 1);  // lowest exponent bit
  return (word & exponent) == exponent && (word & static_cast<Word>(fraction - 1)) != 0;
}

// A float is finite unless all bits of its exponent are set.
template <class Word>
Status Scan(const TensorInfo& t, Word exponent) {
  const uint64_t count = t.bytes / sizeof(Word);
  for (uint64_t i = 0; i < count; ++i) {
    const Word word = WordAt<Word>(t, i);
    if ((word & exponent) != exponent) continue;
    return Error(Code::kCorrupt, "tensor \"{}\": value {} of {} is {}, expected finite numbers",
                 Printable(t.name), i, count, IsNan(word, exponent) ? "NaN" : "infinite");
  }
  return {};
}

Status CheckScale(const TensorInfo& t) {
  constexpr std::string_view kEnd = "_scale";
  const std::string_view name = t.name;
  if (t.element != Element::kF16 || name.size() < kEnd.size() ||
      name.substr(name.size() - kEnd.size()) != kEnd) {
    return {};
  }
  for (uint64_t i = 0; i < t.bytes / 2; ++i) {
    const auto half = WordAt<uint16_t>(t, i);
    if (half <= 0x8000) continue;  // positive, or a zero of either sign
    return Error(Code::kCorrupt, "tensor \"{}\": scale {} is {}, expected no negative number",
                 Printable(t.name), i, HalfToFloat(half));
  }
  return {};
}

}  // namespace

Status CheckFinite(const TensorInfo& t) {
  switch (t.element) {
    case Element::kF64:
      return Scan<uint64_t>(t, 0x7ff0000000000000u);
    case Element::kF32:
      return Scan<uint32_t>(t, 0x7f800000u);
    case Element::kBF16:
      return Scan<uint16_t>(t, 0x7f80);
    case Element::kF16:
      return Scan<uint16_t>(t, 0x7c00);
    default:
      return {};
  }
}

Status CheckWeights(const Weights& weights) {
  for (const TensorInfo& t : weights.tensors()) {
    NIBBLE_RETURN_IF_ERROR(CheckFinite(t));
    NIBBLE_RETURN_IF_ERROR(CheckScale(t));
    weights.Release(t);
  }
  return weights.CheckUnchanged();
}

}  // namespace nibble::io
