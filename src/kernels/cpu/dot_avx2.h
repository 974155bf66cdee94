// SPDX-License-Identifier: Apache-2.0
// Floor 4. Integer dot products of a panel (16 outputs) on AVX2: vpmaddubsw adds pairs of u8 x s8 products
// into s16 with saturation, so every use below stays inside s16. Same names and meaning in every dot_*.h;
// dot_generic.h is the specification.

struct I32x16 {
  __m256i a, b;  // outputs 0-7, 8-15
  static NIBBLE_HD I32x16 Zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static NIBBLE_HD I32x16 Set1(int32_t i) { return {_mm256_set1_epi32(i), _mm256_set1_epi32(i)}; }
  static NIBBLE_HD I32x16 FromU8(const uint8_t* p) {
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(c), _mm256_cvtepu8_epi32(_mm_srli_si128(c, 8))};
  }
  static NIBBLE_HD I32x16 Load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
  }
  NIBBLE_HD void Store(int32_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), b);
  }
  static NIBBLE_HD I32x16 Add(I32x16 x, I32x16 y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
  }
  static NIBBLE_HD I32x16 Sub(I32x16 x, I32x16 y) {
    return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
  }
  static NIBBLE_HD I32x16 Mul(I32x16 x, I32x16 y) {
    return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
  }
  // The upper half of each lane of x is zero, so the second product of the pair is too.
  static NIBBLE_HD I32x16 MulU15(I32x16 x, int32_t y) { return DotPairs(x, y); }
  static NIBBLE_HD I32x16 DotPairs(I32x16 x, int32_t y) {
    const __m256i v = _mm256_set1_epi32(y);
    return {_mm256_madd_epi16(x.a, v), _mm256_madd_epi16(x.b, v)};
  }
  NIBBLE_HD void AddDotPairs(const I32x16& x, int32_t y) {
    __m256i low = _mm256_add_epi32(a, _mm256_madd_epi16(x.a, _mm256_set1_epi32(y)));
    __m256i high = _mm256_add_epi32(b, _mm256_madd_epi16(x.b, _mm256_set1_epi32(y)));
    // g++ 12 would add up the products of a whole word first: of 157 instructions around 32 products of a
    // page of int4-token 42 moved products and sums to the stack and back.
    asm("" : "+x"(low), "+x"(high));
    a = low, b = high;
  }
  template <int kBits, int kIndex>
  NIBBLE_HD I32x16 CodePairs() const {
    constexpr int kShift = kBits * kIndex;
    const __m256i mask = _mm256_set1_epi16((1 << kBits) - 1);
    if constexpr (kShift + kBits == 16) return {_mm256_srli_epi16(a, kShift), _mm256_srli_epi16(b, kShift)};
    return {_mm256_and_si256(_mm256_srli_epi16(a, kShift), mask),
            _mm256_and_si256(_mm256_srli_epi16(b, kShift), mask)};
  }
  static NIBBLE_HD __m256i Interleave8(const std::byte* x, const std::byte* y) {
    const __m128i l = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(y));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(l, h)), _mm_unpackhi_epi16(l, h),
                                   1);
  }
  template <int kWords>
  static NIBBLE_HD I32x16 InterleaveWords(const std::byte* x, const std::byte* y) {
    if constexpr (kWords == 8) return {Interleave8(x, y), _mm256_setzero_si256()};
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y));
    const __m256i even = _mm256_unpacklo_epi16(l, h), odd = _mm256_unpackhi_epi16(l, h);
    return {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
  }
};

struct Weights4 {
  __m256i a, b;  // bytes [8][4] of outputs 0-7, 8-15
};

static NIBBLE_HD __m256i Load32(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

static NIBBLE_HD Weights4 LoadNibbles(const std::byte* p, bool high) {
  const __m256i mask = _mm256_set1_epi8(15), a = Load32(p), b = Load32(p + 32);
  return {_mm256_and_si256(high ? _mm256_srli_epi16(a, 4) : a, mask),
          _mm256_and_si256(high ? _mm256_srli_epi16(b, 4) : b, mask)};
}

constexpr int32_t kS8Offset = 0;
static NIBBLE_HD Weights4 LoadS8(const std::byte* p) { return {Load32(p), Load32(p + 32)}; }

struct DotU4 {
  static constexpr int kFlushSteps = 8;  // a step adds at most 2 * 15 * 127; 8 of them are 30480
  I32x16 sum = I32x16::Zero();
  __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();  // s16 [8][2]
  NIBBLE_HD void Step(Weights4 w, int32_t x4) {
    const __m256i x = _mm256_set1_epi32(x4);
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x));
    // g++ 12 would add up the products of several steps first and run out of registers.
    asm("" : "+x"(a), "+x"(b));
  }
  NIBBLE_HD void Flush() {
    const __m256i ones = _mm256_set1_epi16(1);
    sum = I32x16::Add(sum, {_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)});
    a = b = _mm256_setzero_si256();
  }
};

struct DotS8 {
  I32x16 sum = I32x16::Zero();
  static NIBBLE_HD DotS8 Zero() { return {}; }
  // w * x = |w| * (x with the sign of w). |w| <= 128 is unsigned and |x| <= 127, so a pair is at most 32512.
  static NIBBLE_HD __m256i Product(__m256i w, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  NIBBLE_HD void Step(Weights4 w, int32_t x4) {
    const __m256i x = _mm256_set1_epi32(x4);
    sum = I32x16::Add(sum, {Product(w.a, x), Product(w.b, x)});
  }
  NIBBLE_HD void Flush() {}
};

static NIBBLE_HD void StoreWeights4(Weights4 w, uint8_t* p) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), w.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), w.b);
}
static NIBBLE_HD Weights4 LoadStoredS8(const uint8_t* p) {
  return LoadS8(reinterpret_cast<const std::byte*>(p));
}

// Unpacked weights (linear_unpacked.h) are 4-bit codes, one a byte.
struct GroupFactor {
  __m256i a, b;  // s16 [8][2]: s2 of outputs 0-7, 8-15, twice each
  static NIBBLE_HD GroupFactor Load(const uint8_t* s2) {
    const I32x16 s = I32x16::FromU8(s2);
    return {_mm256_or_si256(s.a, _mm256_slli_epi32(s.a, 16)),
            _mm256_or_si256(s.b, _mm256_slli_epi32(s.b, 16))};
  }
};

// Eight inputs of a panel in nibbles to two steps of bytes.
static NIBBLE_HD void UnpackNibbles(const std::byte* codes, const GroupFactor&, uint8_t* out) {
  for (int half = 0; half < 2; ++half) StoreWeights4(LoadNibbles(codes, half != 0), out + 64 * half);
}

// Sums of a stretch in s16; the sums of the row wait in memory.
struct DotUnpacked {
  static constexpr int kFlushSteps = DotU4::kFlushSteps;
  __m256i a, b;  // s16 [8][2]
  static NIBBLE_HD Weights4 Load(const uint8_t* p) { return LoadStoredS8(p); }
  NIBBLE_HD void Begin(const int32_t*) {}
  NIBBLE_HD void Start(Weights4 w, int32_t x4) {
    const __m256i x = _mm256_set1_epi32(x4);
    a = _mm256_maddubs_epi16(w.a, x);
    b = _mm256_maddubs_epi16(w.b, x);
  }
  NIBBLE_HD void Step(Weights4 w, int32_t x4) {
    const __m256i x = _mm256_set1_epi32(x4);
    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w.a, x));
    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w.b, x));
    asm("" : "+x"(a), "+x"(b));  // as in DotU4
  }
  NIBBLE_HD void Flush(const GroupFactor& s2, int32_t* sum) {  // the multiplication that widens also scales
    I32x16::Add(I32x16::Load(sum), {_mm256_madd_epi16(a, s2.a), _mm256_madd_epi16(b, s2.b)}).Store(sum);
  }
  NIBBLE_HD void Subtract(I32x16 z, int32_t group_sums, int32_t* sum) {
    I32x16::Sub(I32x16::Load(sum), I32x16::DotPairs(z, group_sums)).Store(sum);
  }
  NIBBLE_HD void End(int32_t*) {}
};
constexpr int kUnpackedRows = 4, kUnpackedPanels = 1, kBlockPanels = 4, kUnpackFromRows = 48;
constexpr int kChunk = 256;        // the bytes of the panels take half of the first-level cache
constexpr bool kUnpackS8 = false;  // 8-bit weights are bytes already

constexpr int kTileRows = 4, kTilePanels = 1;
// One panel: a single row is read from memory, and one stream of weights comes at twice the speed of two (30
// against 17 GB/s on a Zen 4 core), without being asked for ahead.
constexpr int kRowPanels = 1, kRowChains = 1, kRowPrefetchBytes = 0;
constexpr const char* kIntNames[] = {"i4-group/vpmaddubsw", "i4-channel/vpmaddubsw", "i8-channel/vpmaddubsw"};
constexpr const char* kS8DotName = "vpmaddubsw";
