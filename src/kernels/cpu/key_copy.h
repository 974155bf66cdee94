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

// 16 keys of channel d from token t on.
template <KeyCopy F>
static NIBBLE_HD Vec16 LoadKeys(const std::byte* copy, kv::PageShape s, int d, int t) {
  if constexpr (F == KeyCopy::kF16) return Vec16::LoadF16(copy + 2 * (d * s.tokens + t));
  const float scale = HalfToFloat(kv::LoadU16(copy + KeyCopyScaleOffset(F, s) + (d * s.tokens + t) / 32 * 2));
  const Vec16 code = F == KeyCopy::kInt8 ? Vec16::LoadU8(copy + d * s.tokens + t)
                                         : Vec16::LoadU4(copy + (d * s.tokens + t) / 2);
  return Vec16::Mul(Vec16::Sub(code, Vec16::Set1(float(KeyCopyBias(F)))), Vec16::Set1(scale));
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
