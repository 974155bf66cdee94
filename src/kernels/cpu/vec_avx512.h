// SPDX-License-Identifier: Apache-2.0
// Floor 4. The vector policy on AVX-512 (F, BW, VL, DQ): one register of 16 lanes. Contracts: vec_generic.h.

static constexpr int kAccumulators = 24;  // of 32 registers

struct Vec16 {
  __m512 v;

  static NIBBLE_HD Vec16 Set1(float x) { return {_mm512_set1_ps(x)}; }
  static NIBBLE_HD Vec16 Zero() { return {_mm512_setzero_ps()}; }
  static NIBBLE_HD Vec16 Lanes() {
    return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
  }

  static NIBBLE_HD __mmask16 PartMask(int n) { return __mmask16((1u << n) - 1); }
  static NIBBLE_HD __m256i Bytes32(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static NIBBLE_HD Vec16 Load(const void* p) { return {_mm512_loadu_ps(p)}; }
  static NIBBLE_HD Vec16 LoadPart(const void* p, int n) { return {_mm512_maskz_loadu_ps(PartMask(n), p)}; }
  static NIBBLE_HD Vec16 LoadF16(const void* p) { return {_mm512_cvtph_ps(Bytes32(p))}; }
  static NIBBLE_HD Vec16 LoadBf16(const void* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Bytes32(p)), 16))};
  }
  static NIBBLE_HD Vec16 LoadU8(const void* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
  }
  static NIBBLE_HD Vec16 LoadU4(const void* p) {
    const __m128i x = _mm_loadl_epi64(static_cast<const __m128i*>(p)), low = _mm_set1_epi8(15);
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
        _mm_unpacklo_epi8(_mm_and_si128(x, low), _mm_and_si128(_mm_srli_epi16(x, 4), low))))};
  }
  template <int kBits>
  static NIBBLE_HD __m512i Codes(const void* p) {  // one a lane
    uint64_t word = 0;
    __builtin_memcpy(&word, p, 2 * kBits);
    const __m512i halves =
        _mm512_inserti64x4(_mm512_set1_epi32(int(word)), _mm256_set1_epi32(int(word >> 8 * kBits)), 1);
    const __m512i shifts = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi32(kBits));
    return _mm512_and_si512(_mm512_srlv_epi32(halves, shifts), _mm512_set1_epi32((1 << kBits) - 1));
  }
  template <int kBits>
  static NIBBLE_HD Vec16 LoadCodes(const void* p) {
    if constexpr (kBits == 4) return LoadU4(p);
    return {_mm512_cvtepi32_ps(Codes<kBits>(p))};
  }
  template <int kBits>
  static NIBBLE_HD Vec16 LookUpCodes(const float* table, const void* p) {
    return {_mm512_permutexvar_ps(Codes<kBits>(p), _mm512_loadu_ps(table))};
  }
  static NIBBLE_HD Vec16 LoadE4m3(const void* p) {
    const __m256i u = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    const __m256i half = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x80)), 8),
                                         _mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x7f)), 7));
    return Mul({_mm512_cvtph_ps(half)}, Set1(256));
  }
  template <int kBits, int kIndex>
  static NIBBLE_HD Vec16 LoadByteCodes(const void* p) {
    __m512i w = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    if constexpr (kIndex > 0) w = _mm512_srli_epi32(w, kBits * kIndex);
    if constexpr (kBits * (kIndex + 1) < 8) w = _mm512_and_si512(w, _mm512_set1_epi32((1 << kBits) - 1));
    return {_mm512_cvtepi32_ps(w)};
  }
  static NIBBLE_HD Vec16 FromMask(uint32_t mask, float x) {
    return {_mm512_maskz_mov_ps(__mmask16(mask), _mm512_set1_ps(x))};
  }
  NIBBLE_HD void Store(void* p) const { _mm512_storeu_ps(p, v); }
  NIBBLE_HD void StorePart(void* p, int n) const { _mm512_mask_storeu_ps(p, PartMask(n), v); }
  static NIBBLE_HD Vec16 LoadI32(const void* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  template <int kBits>
  NIBBLE_HD void StoreS16(void* p) const {
    __m256i x = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v));
    if constexpr (kBits == 8)
      x = _mm256_permutexvar_epi16(_mm256_setr_epi16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15),
                                   x);
    if constexpr (kBits == 4)
      x = _mm256_permutexvar_epi16(_mm256_setr_epi16(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
                                   x);
    if constexpr (kBits == 2)
      x = _mm256_permutexvar_epi16(_mm256_setr_epi16(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15),
                                   x);
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  }
  NIBBLE_HD void StoreF16(void* p) const {
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  NIBBLE_HD void StoreBf16(void* p) const {
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(RoundToBf16().v), 16)));
  }

  static NIBBLE_HD Vec16 Add(Vec16 a, Vec16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 Sub(Vec16 a, Vec16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 Mul(Vec16 a, Vec16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 Div(Vec16 a, Vec16 b) { return {_mm512_div_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static NIBBLE_HD Vec16 Max(Vec16 a, Vec16 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 Min(Vec16 a, Vec16 b) { return {_mm512_min_ps(a.v, b.v)}; }
  static NIBBLE_HD Vec16 IfLess(Vec16 a, Vec16 b, Vec16 x, Vec16 y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
  }
  template <int kStride>
  NIBBLE_HD Vec16 Butterfly() const {
    const __m512 other = kStride == 1   ? _mm512_permute_ps(v, 0xb1)
                         : kStride == 2 ? _mm512_permute_ps(v, 0x4e)
                         : kStride == 4 ? _mm512_shuffle_f32x4(v, v, 0xb1)
                                        : _mm512_shuffle_f32x4(v, v, 0x4e);
    constexpr unsigned kUpper = kStride == 1   ? 0xaaaa
                                : kStride == 2 ? 0xcccc
                                : kStride == 4 ? 0xf0f0
                                               : 0xff00;
    return {_mm512_mask_sub_ps(_mm512_add_ps(other, v), __mmask16(kUpper), other, v)};
  }
  static NIBBLE_HD void Interleave(Vec16& a, Vec16& b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 first = _mm512_permutex2var_ps(a.v, low, b.v);
    b.v = _mm512_permutex2var_ps(a.v, high, b.v);
    a.v = first;
  }
  static NIBBLE_HD __m512i RowsOf4(const char* p, int64_t stride) {  // rows 0, 4, 8, 12, a quarter each
    const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride)); };
    __m512i x = _mm512_castsi128_si512(row(0));
    x = _mm512_inserti32x4(x, row(4), 1);
    x = _mm512_inserti32x4(x, row(8), 2);
    return _mm512_inserti32x4(x, row(12), 3);
  }
  template <class T>
  static NIBBLE_HD void Transpose(const void* from, int64_t from_bytes, void* to, int64_t to_bytes) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4);
    const char* p = static_cast<const char*>(from);
    char* out = static_cast<char*>(to);
    __m512i r[4], s[4];
    for (int i = 0; i < 4; ++i) r[i] = RowsOf4(p + i * from_bytes, from_bytes);
    if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < 2; ++i) {
        s[i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        s[i + 2] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
      }
      for (int i = 0; i < 4; i += 2) {
        _mm512_storeu_si512(out + i * to_bytes, _mm512_unpacklo_epi64(s[i], s[i + 1]));
        _mm512_storeu_si512(out + (i + 1) * to_bytes, _mm512_unpackhi_epi64(s[i], s[i + 1]));
      }
      return;
    }
    for (int i = 0; i < 2; ++i) {
      s[i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
      s[i + 2] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {  // of a quarter's four rows: channel 2i, then 2i + 1
      const __m512i x =
          i % 2 == 0 ? _mm512_unpacklo_epi32(s[i], s[i + 1]) : _mm512_unpackhi_epi32(s[i - 1], s[i]);
      const __m512i both = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i * to_bytes), _mm512_castsi512_si256(both));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (2 * i + 1) * to_bytes),
                          _mm512_extracti64x4_epi64(both, 1));
    }
  }
  static NIBBLE_HD uint32_t EqualMask(Vec16 a, Vec16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  NIBBLE_HD Vec16 Round() const {
    return {_mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  NIBBLE_HD Vec16 Pow2() const {
    return {_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127)), 23))};
  }
  static NIBBLE_HD Vec16 MulPow2(Vec16 a, Vec16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  NIBBLE_HD Vec16 RoundToBf16() const {
    const __m512i u = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __m512i value = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), r, quiet);
    return {_mm512_castsi512_ps(_mm512_and_si512(value, _mm512_set1_epi32(int(0xffff0000u))))};
  }

  NIBBLE_HD Vec16 TruncateToFp22() const {
    return {
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(int(0xfffffc00u))))};
  }
  NIBBLE_HD Vec16 RoundToE4m3() const {
    const __m512i u = _mm512_castps_si512(v), a = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
    const __m512i r = _mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7ffff)), odd),
                                       _mm512_set1_epi32(-1 << 20));
    const __m512 magic = _mm512_set1_ps(24576.0f), steps = _mm512_sub_ps(_mm512_add_ps(v, magic), magic);
    const __mmask16 small = _mm512_cmplt_epi32_mask(a, _mm512_set1_epi32(0x3c800000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return {_mm512_mask_blend_ps(nan, _mm512_mask_blend_ps(small, _mm512_castsi512_ps(r), steps), v)};
  }
  static NIBBLE_HD Vec16 LookUp(const float* table, Vec16 index) {
    return {_mm512_permutexvar_ps(_mm512_cvtps_epi32(index.v), _mm512_loadu_ps(table))};
  }

  NIBBLE_HD float Sum() const {
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  static NIBBLE_HD Vec16 SumEach(const Vec16* x) {
    __m512 s4[4];  // 128-bit block b: x[i + 4b] folded to 4 lanes
    for (int i = 0; i < 4; ++i) {
      __m512 s8[2];  // halves: x[i + 8h] and x[i + 8h + 4] folded to 8 lanes
      for (int h = 0; h < 2; ++h) {
        const __m512 a = x[i + 8 * h].v, b = x[i + 8 * h + 4].v;
        s8[h] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
      }
      s4[i] =
          _mm512_add_ps(_mm512_shuffle_f32x4(s8[0], s8[1], 0x88), _mm512_shuffle_f32x4(s8[0], s8[1], 0xdd));
    }
    __m512 s2[2];
    for (int i = 0; i < 2; ++i) {
      const __m512 a = s4[2 * i], b = s4[2 * i + 1];
      s2[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    return {_mm512_add_ps(_mm512_shuffle_ps(s2[0], s2[1], 0x88), _mm512_shuffle_ps(s2[0], s2[1], 0xdd))};
  }
  NIBBLE_HD float MaxLane() const { return _mm512_reduce_max_ps(v); }
  static NIBBLE_HD Vec16 MaxAbsBits(Vec16 a, Vec16 b) {
    const __m512i abs = _mm512_and_si512(_mm512_castps_si512(b.v), _mm512_set1_epi32(0x7fffffff));
    return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), abs))};
  }
  NIBBLE_HD int32_t MaxLaneBits() const { return _mm512_reduce_max_epi32(_mm512_castps_si512(v)); }
};

struct Vec16d {
  __m512d lo, hi;

  static NIBBLE_HD Vec16d Set1(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
  static NIBBLE_HD Vec16d FromFloat(Vec16 x) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))};
  }
  static NIBBLE_HD Vec16d Add(Vec16d a, Vec16d b) {
    return {_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16d Sub(Vec16d a, Vec16d b) {
    return {_mm512_sub_pd(a.lo, b.lo), _mm512_sub_pd(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16d Mul(Vec16d a, Vec16d b) {
    return {_mm512_mul_pd(a.lo, b.lo), _mm512_mul_pd(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16d Fma(Vec16d a, Vec16d b, Vec16d c) {
    return {_mm512_fmadd_pd(a.lo, b.lo, c.lo), _mm512_fmadd_pd(a.hi, b.hi, c.hi)};
  }
  static NIBBLE_HD Vec16d Max(Vec16d a, Vec16d b) {
    return {_mm512_max_pd(a.lo, b.lo), _mm512_max_pd(a.hi, b.hi)};
  }
  static constexpr double kPow2Magic = 6755399441055744.0;
  static NIBBLE_HD __m512d Pow2Half(__m512d x) {
    const __m512i biased = _mm512_add_epi64(_mm512_castpd_si512(x), _mm512_set1_epi64(1023));
    return _mm512_castsi512_pd(_mm512_slli_epi64(biased, 52));
  }
  NIBBLE_HD Vec16d Pow2OfSum() const { return {Pow2Half(lo), Pow2Half(hi)}; }
  NIBBLE_HD double Sum() const {
    const __m512d s8 = _mm512_add_pd(lo, hi);
    const __m256d s4 = _mm256_add_pd(_mm512_castpd512_pd256(s8), _mm512_extractf64x4_pd(s8, 1));
    const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
  }
};
