// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codecs whose pages are INT8 codes times one scale (FlashQ): integer arithmetic takes the codes as
// they are, without quantizing again.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

// Decode8 gives float(code) * scale with |code| <= 127, so that a value times 1 / scale is within 2e-5 of its
// code.
template <class C>
concept HasInt8Codes = requires(PageShape s) {
  typename C::Channel;  // stage 2
  C::StepOffset(s);
  C::BaseOffset(s);
  C::ScaleOffset(s);
};

// The f32 scale of a page. NaN where the page decodes as NaN.
template <HasInt8Codes C>
NIBBLE_HD float Int8Scale(PageShape s, const std::byte* page) {
  float scale;
  memcpy(&scale, page + C::ScaleOffset(s), 4);
  return scale;
}

}  // namespace nibble::kv
