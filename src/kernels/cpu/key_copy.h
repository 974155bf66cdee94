// SPDX-License-Identifier: Apache-2.0
// Floor 4. What SparQ keeps beside a sealed page (recipe/side_layout.h): the d-major copy of its keys and the
// running sum of its values.

static void MakeKeyCopy(const KeyCopyArgs& a) {
  const kv::PageShape s = a.shape;
  const float* rows = OpenRows(a.tail, a.raw_type, s, a.raw, 0, s.tokens, a.scratch);
  const Vec16 low = Vec16::Set1(-kHalfMax), high = Vec16::Set1(kHalfMax);
  for (int d = 0; d < s.head_dim; ++d)
    for (int t = 0; t < s.tokens; t += 32) {
      float x[32];
      for (int i = 0; i < 32; ++i) x[i] = rows[(t + i) * s.head_dim + d];
      if (a.format == KeyCopy::kF16) {
        for (int i = 0; i < 32; i += 16)
          Vec16::Min(high, Vec16::Max(low, Vec16::Load(x + i))).StoreF16(a.copy + 2 * (d * s.tokens + t + i));
      } else {
        StoreKeyGroup(a.format, s, d, t, x, a.copy);
      }
    }
}

// A page's copy is read a channel at a time: 64 tokens are four vectors. Codes of 8 and 16 bits are in order,
// each byte of INT4 holds a token of vector 0 or 2 and the next one, of 1 or 3. `scale` is the channel's for
// 32 tokens; the product is exact, so fused or not is the same.
template <KeyCopy F, int kVector>
static NIBBLE_HD Vec16 LoadKeys(const std::byte* channel, Vec16 scale, Vec16 bias) {
  if constexpr (F == KeyCopy::kF16) return Vec16::LoadF16(channel + 32 * kVector);
  if constexpr (F == KeyCopy::kInt8)
    return Vec16::Fma(Vec16::template LoadByteCodes<8, 0>(channel + 16 * kVector), scale, bias);
  return Vec16::Fma(Vec16::template LoadByteCodes<4, kVector % 2>(channel + kVector / 2 * 16), scale, bias);
}

static void ValueSum(const ValueSumArgs& a) {
  const int head_dim = a.shape.head_dim;
  const float* rows = DecodePage(a.codec, a.shape, a.page, a.scratch);
  for (int d = 0; d < head_dim; d += 16) {
    const int n = PartOf16(head_dim - d);
    Vec16 sum = a.before != nullptr ? Vec16::LoadPart(a.before + d, n) : Vec16::Zero();
    for (int t = 0; t < a.shape.tokens; ++t)
      sum = Vec16::Add(sum, Vec16::LoadPart(rows + t * head_dim + d, n));
    sum.StorePart(a.sum + d, n);
  }
}
