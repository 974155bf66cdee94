// SPDX-License-Identifier: Apache-2.0
// Floor 4. Integer dot products of a panel (16 outputs) on AVX-512 VNNI: one register holds 4 inputs of 16
// outputs, one vpdpbusd multiplies them. Same names and meaning in every dot_*.h; dot_generic.h is the
// specification.

struct I32x16 {
  __m512i v;
  static NIBBLE_HD I32x16 Zero() { return {_mm512_setzero_si512()}; }
  static NIBBLE_HD I32x16 Set1(int32_t i) { return {_mm512_set1_epi32(i)}; }
  static NIBBLE_HD I32x16 FromU8(const uint8_t* p) {
    // The form with a full mask: g++ 12 warns of an uninitialised operand in the header of the plain one.
    return {_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static NIBBLE_HD I32x16 Load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  NIBBLE_HD void Store(int32_t* p) const { _mm512_storeu_si512(p, v); }
  static NIBBLE_HD I32x16 Add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
  static NIBBLE_HD I32x16 Sub(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  static NIBBLE_HD I32x16 Mul(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
  // The upper half of each lane of a is zero, so the second product of the pair is too.
  static NIBBLE_HD I32x16 MulU15(I32x16 a, int32_t b) { return DotPairs(a, b); }
  static NIBBLE_HD I32x16 DotPairs(I32x16 a, int32_t b) {
    return {_mm512_madd_epi16(a.v, _mm512_set1_epi32(b))};
  }
  // Not the intrinsic: g++ 12 makes a copy of the sum for every product.
  NIBBLE_HD void AddDotPairs(const I32x16& a, int32_t b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(v) : "v"(a.v), "v"(_mm512_set1_epi32(b)));
  }
  template <int kBits, int kIndex>
  NIBBLE_HD I32x16 CodePairs() const {
    constexpr int kShift = kBits * kIndex;
    if constexpr (kShift + kBits == 16) return {_mm512_srli_epi16(v, kShift)};
    return {_mm512_and_si512(_mm512_srli_epi16(v, kShift), _mm512_set1_epi16((1 << kBits) - 1))};
  }
  template <int kWords>
  static NIBBLE_HD I32x16 InterleaveWords(const std::byte* a, const std::byte* b) {
    if constexpr (kWords == 8) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
      const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
      const __m128i low = _mm_unpacklo_epi16(x, y), high = _mm_unpackhi_epi16(x, y);
      return {_mm512_zextsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1))};
    }
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i order =
        _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
    return {_mm512_permutexvar_epi16(order, both)};
  }
};

struct Weights4 {
  __m512i v;  // bytes [16][4], unsigned
};

static NIBBLE_HD Weights4 LoadNibbles(const std::byte* p, bool high) {
  const __m512i c = _mm512_loadu_si512(p);
  return {_mm512_and_si512(high ? _mm512_srli_epi16(c, 4) : c, _mm512_set1_epi8(15))};
}

// vpdpbusd takes its first factor unsigned: w + 128, which flips the top bit.
constexpr int32_t kS8Offset = 128;
static NIBBLE_HD Weights4 LoadS8(const std::byte* p) {
  return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))};
}

struct DotU4 {
  static constexpr int kFlushSteps = 1 << 30;  // sums are 32 bits wide from the start
  I32x16 sum = I32x16::Zero();
  NIBBLE_HD void Step(Weights4 w, int32_t x4) {
    sum.v = _mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x4));
  }
  NIBBLE_HD void Flush() {}
};
struct DotS8 {
  I32x16 sum;
  static NIBBLE_HD DotS8 Zero() { return {I32x16::Zero()}; }
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) {  // as in AddDotPairs
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(_mm512_set1_epi32(x4)));
  }
  NIBBLE_HD void Flush() {}
};

static NIBBLE_HD void StoreWeights4(Weights4 w, uint8_t* p) { _mm512_store_si512(p, w.v); }
static NIBBLE_HD Weights4 LoadStoredS8(const uint8_t* p) { return {_mm512_load_si512(p)}; }

// Unpacked weights (linear_unpacked.h) are u * s2, which fits an unsigned byte (docs/formats/weights.md): the
// group scale costs nothing where many rows share the unpacking.
struct GroupFactor {
  __m512i v;  // u16 [16][2]: s2, twice each
  static NIBBLE_HD GroupFactor Load(const uint8_t* s2) {
    const __m512i s = I32x16::FromU8(s2).v;
    return {_mm512_or_si512(s, _mm512_slli_epi32(s, 16))};
  }
};

// Eight inputs of a panel in nibbles to two steps of bytes. A product of two bytes is below 256, so that of a
// pair of bytes with s2 carries nothing over.
static NIBBLE_HD void UnpackNibbles(const std::byte* codes, const GroupFactor& s2, uint8_t* out) {
  for (int half = 0; half < 2; ++half)
    StoreWeights4({_mm512_mullo_epi16(LoadNibbles(codes, half != 0).v, s2.v)}, out + 64 * half);
}

struct DotUnpacked {
  static constexpr int kFlushSteps = 0;  // sums are 32 bits wide from the start
  I32x16 sum;
  static NIBBLE_HD Weights4 Load(const uint8_t* p) { return {_mm512_load_si512(p)}; }
  NIBBLE_HD void Begin(const int32_t* p) { sum = I32x16::Load(p); }
  NIBBLE_HD void Step(Weights4 w, int32_t x4) {
    sum.v = _mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x4));
  }
  NIBBLE_HD void Flush(const GroupFactor&, int32_t*) {}
  NIBBLE_HD void Subtract(I32x16 z, int32_t group_sums, int32_t*) {
    sum = I32x16::Sub(sum, I32x16::DotPairs(z, group_sums));
  }
  NIBBLE_HD void End(int32_t* p) { sum.Store(p); }
};
constexpr int kUnpackedRows = 12, kUnpackedPanels = 2, kBlockPanels = 4, kUnpackFromRows = 16;
constexpr int kChunk = 512;       // what a tile reads of them takes a third of the first-level cache
constexpr bool kUnpackS8 = true;  // their top bit is flipped once and not in every tile of rows

constexpr int kTileRows = 8, kTilePanels = 2;
// A single row is read from memory: one stream of weights, asked for ahead (on a virtual Xeon core 10.5 GB/s
// without that, 13.8 with it), and four chains, as vpdpbusd takes five cycles.
constexpr int kRowPanels = 1, kRowChains = 4, kRowPrefetchBytes = 2048;
constexpr const char* kIntNames[] = {"i4-group/vpdpbusd", "i4-channel/vpdpbusd", "i8-channel/vpdpbusd"};
constexpr const char* kS8DotName = "vpdpbusd";
