// SPDX-License-Identifier: Apache-2.0
// Floor 4. The vector policy on AVX2 + FMA + F16C: two registers of 8 lanes. Contracts: vec_generic.h.

static constexpr int kAccumulators = 6;  // 12 of 16 registers; 4 are left for operands

struct Vec16 {
  __m256 lo, hi;

  static NIBBLE_HD Vec16 Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static NIBBLE_HD Vec16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static NIBBLE_HD Vec16 Lanes() {
    const __m256 low = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    return {low, _mm256_add_ps(low, _mm256_set1_ps(8))};
  }

  static NIBBLE_HD __m256i PartMask(int n) {  // lanes 0 .. n-1
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static NIBBLE_HD __m128i Bytes16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static NIBBLE_HD Vec16 Load(const void* p) {
    const float* f = static_cast<const float*>(p);
    return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
  }
  static NIBBLE_HD Vec16 LoadPart(const void* p, int n) {
    if (n >= 16) return Load(p);  // masked moves are slow on some processors
    const float* f = static_cast<const float*>(p);
    return {_mm256_maskload_ps(f, PartMask(n)), _mm256_maskload_ps(f + 8, PartMask(n - 8))};
  }
  static NIBBLE_HD Vec16 LoadF16(const void* p) {
    const char* b = static_cast<const char*>(p);
    return {_mm256_cvtph_ps(Bytes16(b)), _mm256_cvtph_ps(Bytes16(b + 16))};
  }
  static NIBBLE_HD Vec16 LoadBf16(const void* p) {
    const char* b = static_cast<const char*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Bytes16(b)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Bytes16(b + 16)), 16))};
  }
  static NIBBLE_HD Vec16 FromU8(__m128i u) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(u)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(u, 8)))};
  }
  static NIBBLE_HD Vec16 LoadU8(const void* p) { return FromU8(Bytes16(p)); }
  static NIBBLE_HD Vec16 LoadU4(const void* p) {
    const __m128i x = _mm_loadl_epi64(static_cast<const __m128i*>(p)), low = _mm_set1_epi8(15);
    return FromU8(_mm_unpacklo_epi8(_mm_and_si128(x, low), _mm_and_si128(_mm_srli_epi16(x, 4), low)));
  }
  template <int kBits>
  static NIBBLE_HD __m256i Codes8(const void* p) {  // eight codes, one a lane
    uint32_t word = 0;
    __builtin_memcpy(&word, p, kBits);
    const __m256i shifts =
        _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(kBits));
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(int(word)), shifts),
                            _mm256_set1_epi32((1 << kBits) - 1));
  }
  template <int kBits>
  static NIBBLE_HD Vec16 LoadCodes(const void* p) {
    if constexpr (kBits == 4) return LoadU4(p);
    return {_mm256_cvtepi32_ps(Codes8<kBits>(p)),
            _mm256_cvtepi32_ps(Codes8<kBits>(static_cast<const char*>(p) + kBits))};
  }
  static NIBBLE_HD __m256 LookUp8(const float* table, __m256i codes) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
  }
  template <int kBits>
  static NIBBLE_HD Vec16 LookUpCodes(const float* table, const void* p) {
    return {LookUp8(table, Codes8<kBits>(p)),
            LookUp8(table, Codes8<kBits>(static_cast<const char*>(p) + kBits))};
  }
  static NIBBLE_HD Vec16 LoadE4m3(const void* p) {
    const __m256i u = _mm256_cvtepu8_epi16(Bytes16(p));
    const __m256i half = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x80)), 8),
                                         _mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x7f)), 7));
    const Vec16 v{_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
                  _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
    return Mul(v, Set1(256));
  }
  template <int kBits, int kIndex>
  static NIBBLE_HD __m256 ByteCodes8(const void* p) {
    __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    if constexpr (kIndex > 0) w = _mm256_srli_epi32(w, kBits * kIndex);
    if constexpr (kBits * (kIndex + 1) < 8) w = _mm256_and_si256(w, _mm256_set1_epi32((1 << kBits) - 1));
    return _mm256_cvtepi32_ps(w);
  }
  template <int kBits, int kIndex>
  static NIBBLE_HD Vec16 LoadByteCodes(const void* p) {
    return {ByteCodes8<kBits, kIndex>(p), ByteCodes8<kBits, kIndex>(static_cast<const char*>(p) + 8)};
  }
  static NIBBLE_HD __m256 HalfFromMask(uint32_t mask, float x) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), bit), bit);
    return _mm256_and_ps(_mm256_castsi256_ps(set), _mm256_set1_ps(x));
  }
  static NIBBLE_HD Vec16 FromMask(uint32_t mask, float x) {
    return {HalfFromMask(mask, x), HalfFromMask(mask >> 8, x)};
  }
  NIBBLE_HD void Store(void* p) const {
    float* f = static_cast<float*>(p);
    _mm256_storeu_ps(f, lo);
    _mm256_storeu_ps(f + 8, hi);
  }
  NIBBLE_HD void StorePart(void* p, int n) const {
    if (n >= 16) return Store(p);
    float* f = static_cast<float*>(p);
    _mm256_maskstore_ps(f, PartMask(n), lo);
    _mm256_maskstore_ps(f + 8, PartMask(n - 8), hi);
  }
  static NIBBLE_HD Vec16 LoadI32(const void* p) {
    const __m256i* i = static_cast<const __m256i*>(p);
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(i)), _mm256_cvtepi32_ps(_mm256_loadu_si256(i + 1))};
  }
  template <int kBits>
  NIBBLE_HD void StoreS16(void* p) const {
    __m256i x = _mm256_packs_epi32(_mm256_cvtps_epi32(lo), _mm256_cvtps_epi32(hi));
    x = _mm256_permute4x64_epi64(x, 0xd8);
    if constexpr (kBits == 8) x = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(x, 0xd8), 0xd8);
    if constexpr (kBits == 4) x = _mm256_unpacklo_epi16(x, _mm256_srli_si256(x, 8));
    if constexpr (kBits == 2) {
      const __m128i a = _mm256_castsi256_si128(x), b = _mm256_extracti128_si256(x, 1);
      x = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(a, b)), _mm_unpackhi_epi16(a, b),
                                  1);
    }
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  }
  NIBBLE_HD void StoreF16(void* p) const {
    __m128i* h = static_cast<__m128i*>(p);
    _mm_storeu_si128(h, _mm256_cvtps_ph(lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(h + 1, _mm256_cvtps_ph(hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  NIBBLE_HD void StoreBf16(void* p) const {
    const Vec16 r = RoundToBf16();
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(r.lo), 16),
                                               _mm256_srli_epi32(_mm256_castps_si256(r.hi), 16));
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }

  static NIBBLE_HD Vec16 Add(Vec16 a, Vec16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 Sub(Vec16 a, Vec16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 Mul(Vec16 a, Vec16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 Div(Vec16 a, Vec16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static NIBBLE_HD Vec16 Max(Vec16 a, Vec16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 Min(Vec16 a, Vec16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
  }
  static NIBBLE_HD Vec16 IfLess(Vec16 a, Vec16 b, Vec16 x, Vec16 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
  }
  template <int kStride>
  static NIBBLE_HD __m256 Butterfly8(__m256 x) {
    const __m256 other = kStride == 1   ? _mm256_permute_ps(x, 0xb1)
                         : kStride == 2 ? _mm256_permute_ps(x, 0x4e)
                                        : _mm256_permute2f128_ps(x, x, 1);
    const __m256i bit =
        _mm256_and_si256(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(kStride));
    const __m256i sign = _mm256_slli_epi32(_mm256_cmpeq_epi32(bit, _mm256_set1_epi32(kStride)), 31);
    return _mm256_add_ps(other, _mm256_xor_ps(x, _mm256_castsi256_ps(sign)));
  }
  template <int kStride>
  NIBBLE_HD Vec16 Butterfly() const {
    if constexpr (kStride == 8) return {_mm256_add_ps(lo, hi), _mm256_sub_ps(lo, hi)};
    return {Butterfly8<kStride>(lo), Butterfly8<kStride>(hi)};
  }
  static NIBBLE_HD Vec16 Interleave8(__m256 a, __m256 b) {
    const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
  }
  static NIBBLE_HD void Interleave(Vec16& a, Vec16& b) {
    const Vec16 first = Interleave8(a.lo, b.lo);
    b = Interleave8(a.hi, b.hi);
    a = first;
  }
  template <class T>
  static NIBBLE_HD void Transpose(const void* from, int64_t from_bytes, void* to, int64_t to_bytes) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4);
    if constexpr (sizeof(T) == 2) {
      Transpose16(static_cast<const char*>(from), from_bytes, static_cast<char*>(to), to_bytes);
    } else {
      Transpose32(static_cast<const char*>(from), from_bytes, static_cast<char*>(to), to_bytes);
    }
  }
  static NIBBLE_HD uint32_t EqualMask(Vec16 a, Vec16 b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ))) |
           uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ))) << 8;
  }
  NIBBLE_HD Vec16 Round() const {
    return {_mm256_round_ps(lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static NIBBLE_HD __m256 Pow2Half(__m256 x) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127)), 23));
  }
  NIBBLE_HD Vec16 Pow2() const { return {Pow2Half(lo), Pow2Half(hi)}; }
  static NIBBLE_HD __m256 RoundHalfToBf16(__m256 x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(u, _mm256_set1_epi32(0x400000)));
    const __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(r), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000u))));
  }
  // n - 1 is in the range of Pow2 where n comes near its end.
  static NIBBLE_HD Vec16 MulPow2(Vec16 a, Vec16 n) { return Mul(Mul(a, Sub(n, Set1(1)).Pow2()), Set1(2)); }
  NIBBLE_HD Vec16 RoundToBf16() const { return {RoundHalfToBf16(lo), RoundHalfToBf16(hi)}; }

  NIBBLE_HD Vec16 TruncateToFp22() const {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(int(0xfffffc00u)));
    return {_mm256_and_ps(lo, mask), _mm256_and_ps(hi, mask)};
  }
  static NIBBLE_HD __m256 RoundHalfToE4m3(__m256 x) {
    const __m256i u = _mm256_castps_si256(x), a = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
    const __m256i r = _mm256_and_si256(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7ffff)), odd),
                                       _mm256_set1_epi32(-1 << 20));
    const __m256 magic = _mm256_set1_ps(24576.0f), steps = _mm256_sub_ps(_mm256_add_ps(x, magic), magic);
    const __m256 small = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), a));
    const __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(r), steps, small);
    return _mm256_blendv_ps(value, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  NIBBLE_HD Vec16 RoundToE4m3() const { return {RoundHalfToE4m3(lo), RoundHalfToE4m3(hi)}; }
  static NIBBLE_HD __m256 LookUpHalf(const float* table, __m256 index) {
    const __m256i i = _mm256_cvtps_epi32(index);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  }
  static NIBBLE_HD Vec16 LookUp(const float* table, Vec16 index) {
    return {LookUpHalf(table, index.lo), LookUpHalf(table, index.hi)};
  }

  NIBBLE_HD float Sum() const {
    const __m256 s8 = _mm256_add_ps(lo, hi);
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
  }
  static NIBBLE_HD __m256 SumEach8(const Vec16* v) {
    __m256 s4[4];  // low half: v[i] folded to 4 lanes, high half: v[i + 4]
    for (int i = 0; i < 4; ++i) {
      const __m256 a = _mm256_add_ps(v[i].lo, v[i].hi), b = _mm256_add_ps(v[i + 4].lo, v[i + 4].hi);
      s4[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    __m256 s2[2];
    for (int i = 0; i < 2; ++i) {
      const __m256 a = s4[2 * i], b = s4[2 * i + 1];
      s2[i] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    return _mm256_add_ps(_mm256_shuffle_ps(s2[0], s2[1], 0x88), _mm256_shuffle_ps(s2[0], s2[1], 0xdd));
  }
  static NIBBLE_HD Vec16 SumEach(const Vec16* v) { return {SumEach8(v), SumEach8(v + 8)}; }
  NIBBLE_HD float MaxLane() const {
    const __m256 m8 = _mm256_max_ps(lo, hi);
    const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
  }
  static NIBBLE_HD __m256 MaxAbsBits8(__m256 a, __m256 b) {
    const __m256i abs = _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(0x7fffffff));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), abs));
  }
  static NIBBLE_HD Vec16 MaxAbsBits(Vec16 a, Vec16 b) {
    return {MaxAbsBits8(a.lo, b.lo), MaxAbsBits8(a.hi, b.hi)};
  }
  NIBBLE_HD int32_t MaxLaneBits() const {
    const __m256i m8 = _mm256_castps_si256(MaxAbsBits8(lo, hi));
    const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
    return _mm_cvtsi128_si32(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1)));
  }
};

struct Vec16d {
  __m256d q[4];

  template <class F>
  static NIBBLE_HD Vec16d Each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static NIBBLE_HD Vec16d Set1(double x) {
    return Each([=](int) { return _mm256_set1_pd(x); });
  }
  static NIBBLE_HD Vec16d FromFloat(Vec16 v) {
    return {{_mm256_cvtps_pd(_mm256_castps256_ps128(v.lo)), _mm256_cvtps_pd(_mm256_extractf128_ps(v.lo, 1)),
             _mm256_cvtps_pd(_mm256_castps256_ps128(v.hi)), _mm256_cvtps_pd(_mm256_extractf128_ps(v.hi, 1))}};
  }
  static NIBBLE_HD Vec16d Add(Vec16d a, Vec16d b) {
    return Each([&](int i) { return _mm256_add_pd(a.q[i], b.q[i]); });
  }
  static NIBBLE_HD Vec16d Sub(Vec16d a, Vec16d b) {
    return Each([&](int i) { return _mm256_sub_pd(a.q[i], b.q[i]); });
  }
  static NIBBLE_HD Vec16d Mul(Vec16d a, Vec16d b) {
    return Each([&](int i) { return _mm256_mul_pd(a.q[i], b.q[i]); });
  }
  static NIBBLE_HD Vec16d Fma(Vec16d a, Vec16d b, Vec16d c) {
    return Each([&](int i) { return _mm256_fmadd_pd(a.q[i], b.q[i], c.q[i]); });
  }
  static NIBBLE_HD Vec16d Max(Vec16d a, Vec16d b) {
    return Each([&](int i) { return _mm256_max_pd(a.q[i], b.q[i]); });
  }
  static constexpr double kPow2Magic = 6755399441055744.0;
  NIBBLE_HD Vec16d Pow2OfSum() const {
    return Each([&](int i) {
      const __m256i biased = _mm256_add_epi64(_mm256_castpd_si256(q[i]), _mm256_set1_epi64x(1023));
      return _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
    });
  }
  NIBBLE_HD double Sum() const {
    const __m256d s4 = _mm256_add_pd(_mm256_add_pd(q[0], q[2]), _mm256_add_pd(q[1], q[3]));
    const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
  }
};
