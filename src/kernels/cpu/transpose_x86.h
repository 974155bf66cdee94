// SPDX-License-Identifier: Apache-2.0
// Floor 4. Of vec_avx2.h: 16 rows of 16 bytes to columns. Contracts: vec_generic.h.

static NIBBLE_HD __m256i TwoRows(const char* low, const char* high) {
  const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(l), h, 1);
}
static NIBBLE_HD void Store32(char* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

static NIBBLE_HD void Transpose32(const char* from, int64_t from_bytes, char* to, int64_t to_bytes) {
  for (int half = 0; half < 2; ++half) {  // rows 0-7, 8-15
    __m256i r[4];                         // row i, row i + 4
    for (int i = 0; i < 4; ++i, from += from_bytes) r[i] = TwoRows(from, from + 4 * from_bytes);
    from += 4 * from_bytes;
    const __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpacklo_epi32(r[2], r[3]);
    const __m256i c = _mm256_unpackhi_epi32(r[0], r[1]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    char* p = to + 32 * half;
    Store32(p, _mm256_unpacklo_epi64(a, b));
    Store32(p + to_bytes, _mm256_unpackhi_epi64(a, b));
    Store32(p + 2 * to_bytes, _mm256_unpacklo_epi64(c, d));
    Store32(p + 3 * to_bytes, _mm256_unpackhi_epi64(c, d));
  }
}

static NIBBLE_HD void Transpose16(const char* from, int64_t from_bytes, char* to, int64_t to_bytes) {
  __m256i r[8], s[8];  // row i, row i + 8; then pairs, fours and eights of rows beside each other
  for (int i = 0; i < 8; ++i, from += from_bytes) r[i] = TwoRows(from, from + 8 * from_bytes);
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);      // channels 0-3
    s[i + 4] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);  // 4-7
  }
  for (int i = 0; i < 4; ++i) {  // of rows 4 (i % 2) ..: channels 4 (i / 2), + 1; then + 2, + 3
    r[i] = _mm256_unpacklo_epi32(s[2 * i], s[2 * i + 1]);
    r[i + 4] = _mm256_unpackhi_epi32(s[2 * i], s[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    char* p = to + (i / 2 * 2 + i % 2 * 4) * to_bytes;
    const __m256i low = r[i / 2 * 4 + i % 2 * 2], high = r[i / 2 * 4 + i % 2 * 2 + 1];
    Store32(p, _mm256_unpacklo_epi64(low, high));
    Store32(p + to_bytes, _mm256_unpackhi_epi64(low, high));
  }
}
