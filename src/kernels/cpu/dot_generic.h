// SPDX-License-Identifier: Apache-2.0
// Floor 4. Integer dot products of a panel (16 outputs) in plain C: the specification of dot_*.h. All sums
// are exact. Inputs x are -127..127.

// 16 lanes of s32, one an output. Arithmetic is modulo 2^32.
struct I32x16 {
  int32_t v[16];
  static NIBBLE_HD I32x16 Set1(int32_t i) {
    I32x16 c;
    for (int32_t& lane : c.v) lane = i;
    return c;
  }
  static NIBBLE_HD I32x16 Zero() { return Set1(0); }
  static NIBBLE_HD I32x16 FromU8(const uint8_t* p) {
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = p[i];
    return c;
  }
  static NIBBLE_HD I32x16 Load(const int32_t* p) {
    I32x16 c;
    memcpy(c.v, p, sizeof(c.v));
    return c;
  }
  NIBBLE_HD void Store(int32_t* p) const { memcpy(p, v, sizeof(v)); }
  static NIBBLE_HD I32x16 Add(const I32x16& a, const I32x16& b) {
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = int32_t(uint32_t(a.v[i]) + uint32_t(b.v[i]));
    return c;
  }
  static NIBBLE_HD I32x16 Sub(const I32x16& a, const I32x16& b) {
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = int32_t(uint32_t(a.v[i]) - uint32_t(b.v[i]));
    return c;
  }
  static NIBBLE_HD I32x16 Mul(const I32x16& a, const I32x16& b) {
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = int32_t(uint32_t(a.v[i]) * uint32_t(b.v[i]));
    return c;
  }
  // a * b for lanes of a in 0..32767 and b in -32768..32767: cheaper than Mul on vectors.
  static NIBBLE_HD I32x16 MulU15(const I32x16& a, int32_t b) { return Mul(a, Set1(b)); }
  // Every lane and b as two s16: the sum of the products of the lower and of the upper halves.
  static NIBBLE_HD I32x16 DotPairs(const I32x16& a, int32_t b) {
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = int16_t(a.v[i]) * int16_t(b) + (a.v[i] >> 16) * (b >> 16);
    return c;
  }
  NIBBLE_HD void AddDotPairs(const I32x16& a, int32_t b) { *this = Add(*this, DotPairs(a, b)); }
  // Of every half of 16 bits, low bits first: code number kIndex of kBits.
  template <int kBits, int kIndex>
  NIBBLE_HD I32x16 CodePairs() const {
    constexpr uint32_t kMask = (1u << kBits) - 1;
    I32x16 c;
    for (int i = 0; i < 16; ++i) c.v[i] = int32_t(uint32_t(v[i]) >> kBits * kIndex & (kMask << 16 | kMask));
    return c;
  }
  // The first kWords (8 or 16) words of 16 bits at a in the lower halves, those at b in the upper ones; then
  // zeros.
  template <int kWords>
  static NIBBLE_HD I32x16 InterleaveWords(const std::byte* a, const std::byte* b) {
    uint16_t words[32] = {};
    for (int i = 0; i < kWords; ++i) {
      memcpy(&words[2 * i], a + 2 * i, 2);
      memcpy(&words[2 * i + 1], b + 2 * i, 2);
    }
    I32x16 c;
    memcpy(c.v, words, sizeof(c.v));
    return c;
  }
};

// 4 consecutive inputs of 16 outputs, [16][4]: what one Step multiplies.
struct Weights4 {
  int16_t v[64];
};

// Of 64 bytes of kI4*: inputs 0-3 from the low nibbles or 4-7 from the high ones.
static NIBBLE_HD Weights4 LoadNibbles(const std::byte* p, bool high) {
  Weights4 w;
  for (int i = 0; i < 64; ++i) w.v[i] = int16_t(high ? uint8_t(p[i]) >> 4 : uint8_t(p[i]) & 15);
  return w;
}

static NIBBLE_HD int16_t Widen(int8_t v) { return v; }

// 64 bytes of kI8Channel, as w + kS8Offset: the offset is for instructions that want unsigned weights; the
// caller subtracts kS8Offset * (sum of x).
constexpr int32_t kS8Offset = 0;
static NIBBLE_HD Weights4 LoadS8(const std::byte* p) {
  Weights4 w;
  for (int i = 0; i < 64; ++i) w.v[i] = Widen(int8_t(p[i]));
  return w;
}

// The four inputs in x4, twice: eight 16-bit numbers are the vector that every 64-bit machine has.
struct Inputs8 {
  int16_t v[8];
  explicit NIBBLE_HD Inputs8(int32_t x4) {
    int8_t x[4];
    memcpy(x, &x4, 4);
    for (int i = 0; i < 8; ++i) v[i] = Widen(x[i % 4]);
  }
};

// The sum over steps of (weights 0..15) * (4 inputs). `sum` is whole after Flush, which must come at least
// once every kFlushSteps steps.
struct DotU4 {
  static constexpr int kFlushSteps = 16;  // a step adds at most 15 * 127 to a part; 16 of them are 30480
  I32x16 sum = I32x16::Zero();
  int16_t part[64] = {};  // [16][4]: sums by output and input modulo 4
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) {
    const Inputs8 x(x4);
    for (int i = 0; i < 64; i += 8) {
      for (int j = 0; j < 8; ++j) part[i + j] = int16_t(part[i + j] + w.v[i + j] * x.v[j]);
    }
  }
  NIBBLE_HD void Flush() {
    for (int i = 0; i < 64; ++i) sum.v[i / 4] += part[i];
    for (int16_t& p : part) p = 0;
  }
};

// The same for weights from LoadS8, with one Flush at the end.
struct DotS8 {
  I32x16 sum = I32x16::Zero();
  int32_t part[64] = {};
  static NIBBLE_HD DotS8 Zero() { return {}; }
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) {
    const Inputs8 x(x4);
    for (int i = 0; i < 64; i += 8) {
      for (int j = 0; j < 8; ++j) part[i + j] += w.v[i + j] * x.v[j];
    }
  }
  NIBBLE_HD void Flush() {
    for (int i = 0; i < 64; ++i) sum.v[i / 4] += part[i];
    for (int32_t& p : part) p = 0;
  }
};

// p: 64-byte aligned. LoadStoredS8 gives again what LoadS8 gave.
static NIBBLE_HD void StoreWeights4(const Weights4& w, uint8_t* p) {
  for (int i = 0; i < 64; ++i) p[i] = uint8_t(w.v[i]);
}
static NIBBLE_HD Weights4 LoadStoredS8(const uint8_t* p) {
  return LoadS8(reinterpret_cast<const std::byte*>(p));
}

// s2 of a group and panel, in the form in which UnpackNibbles or DotUnpacked multiplies by it.
struct GroupFactor {
  I32x16 s2;
  static NIBBLE_HD GroupFactor Load(const uint8_t* p) { return {I32x16::FromU8(p)}; }
};

// 64 bytes of kI4* to 128 bytes, [2][16][4] of consecutive inputs, for DotUnpacked::Load.
static NIBBLE_HD void UnpackNibbles(const std::byte* codes, const GroupFactor&, uint8_t* out) {
  for (int half = 0; half < 2; ++half) StoreWeights4(LoadNibbles(codes, half != 0), out + 64 * half);
}

// The sum over steps of (u * s2) * (4 inputs), less z * s2 times the sum of the inputs. Begin takes the sums
// so far and End leaves the new ones; in between they are wherever the instruction set likes. A group is cut
// into stretches of kFlushSteps steps, the first of which is Start, with a Flush by the group's factor after
// each; 0 says that there is no need.
struct DotUnpacked {
  static constexpr int kFlushSteps = DotU4::kFlushSteps;
  DotU4 part;
  static NIBBLE_HD Weights4 Load(const uint8_t* p) {
    Weights4 w;
    for (int i = 0; i < 64; ++i) w.v[i] = p[i];
    return w;
  }
  NIBBLE_HD void Begin(const int32_t*) {}
  NIBBLE_HD void Start(const Weights4& w, int32_t x4) { part.Step(w, x4); }
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) { part.Step(w, x4); }
  NIBBLE_HD void Flush(const GroupFactor& factor, int32_t* sum) {
    part.Flush();
    I32x16::Add(I32x16::Load(sum), I32x16::Mul(part.sum, factor.s2)).Store(sum);
    part.sum = I32x16::Zero();
  }
  NIBBLE_HD void Subtract(const I32x16& z, int32_t group_sums, int32_t* sum) {
    I32x16::Sub(I32x16::Load(sum), I32x16::DotPairs(z, group_sums)).Store(sum);
  }
  NIBBLE_HD void End(int32_t*) {}
};
// Tile of linear_unpacked.h; panels and inputs (whole groups) that are unpacked together; the rows from which
// that pays; whether kI8Channel takes this way too.
constexpr int kUnpackedRows = 4, kUnpackedPanels = 1, kBlockPanels = 4, kUnpackFromRows = 8;
constexpr int kChunk = 256;
constexpr bool kUnpackS8 = false;

// Tile of linear_int.h that fits the registers: kTileRows x kTilePanels. Single rows, which wait for memory:
// panels at once, chains of sums a panel, and how far ahead weights are asked for (0: that is left to the
// processor).
constexpr int kTileRows = 4, kTilePanels = 1;
constexpr int kRowPanels = 2, kRowChains = 1, kRowPrefetchBytes = 0;
constexpr const char* kIntNames[] = {"i4-group/c", "i4-channel/c", "i8-channel/c"};
constexpr const char* kS8DotName = "c";
