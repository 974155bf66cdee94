// SPDX-License-Identifier: Apache-2.0
// Floor 4. QAQ (quant/kv/qaq.h): bit planes into f32 tiles, and how much attention a page's tokens got.

// 16 codes at a time: each plane adds its weight where its bit is set. Sums of integers and a half are exact,
// so the result is Decode8's to the bit. The last 8 channels of a row may stand alone.
static void DecodeTile(const kv::Qaq*, kv::PageShape s, const std::byte* page, float* tile) {
  const kv::QaqHeader h = kv::LoadQaqHeader(page);
  const std::byte* planes[kv::kQaqPlanes];
  for (int b = 0; b < h.width; ++b) planes[b] = kv::QaqPlane(s, page, h, b);
  for (int t = 0; t < s.tokens; ++t) {
    const kv::QaqRange r = kv::LoadQaqRange(s, page, t);
    const Vec16 min = Vec16::Set1(HalfToFloat(r.min));
    const Vec16 step = Vec16::Set1(kv::QaqStep(HalfToFloat(r.half), h.width));
    for (int d = 0; d < s.head_dim; d += 16) {
      const int n = PartOf16(s.head_dim - d), at = (t * s.head_dim + d) / 8;
      Vec16 code = Vec16::Set1(0.5f);
      float weight = 0.5f * float(1 << h.width);
      for (int b = 0; b < h.width; ++b, weight /= 2) {
        uint32_t mask = uint32_t(planes[b][at]);
        if (n > 8) mask |= uint32_t(planes[b][at + 1]) << 8;
        code = Vec16::Add(code, Vec16::FromMask(mask, weight));
      }
      Vec16::Fma(code, step, min).StorePart(tile + t * s.head_dim + d, n);
    }
  }
  kv::ForEachQaqOutlier(page, h,
                        [&](int t, int d, uint16_t x) { tile[t * s.head_dim + d] = HalfToFloat(x); });
}
