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
};

// 4 consecutive inputs of 16 outputs: what one Step multiplies. Kept by input, as 16-bit numbers, so that the
// compiler finds vectors of 16 outputs.
struct Weights4 {
  int16_t v[4][16];
};

// 64 bytes of kI4*: inputs 0-3 in the low nibbles, 4-7 in the high ones.
static NIBBLE_HD void LoadNibbles(const std::byte* p, Weights4& low, Weights4& high) {
  for (int j = 0; j < 4; ++j) {
    for (int r = 0; r < 16; ++r) {
      const uint8_t c = uint8_t(p[4 * r + j]);
      low.v[j][r] = c & 15;
      high.v[j][r] = c >> 4;
    }
  }
}

// 64 bytes of kI8Channel, as w + kS8Offset: the offset is for instructions that want unsigned weights; the
// caller subtracts kS8Offset * (sum of x).
constexpr int32_t kS8Offset = 0;
static NIBBLE_HD Weights4 LoadS8(const std::byte* p) {
  Weights4 w;
  for (int j = 0; j < 4; ++j) {
    for (int r = 0; r < 16; ++r) w.v[j][r] = int8_t(p[4 * r + j]);
  }
  return w;
}

// Input j of the four bytes in x4 (little-endian).
static NIBBLE_HD int16_t Input(int32_t x4, int j) { return int8_t(uint8_t(uint32_t(x4) >> (8 * j))); }

// The sum over steps of 4 inputs of (weights 0..15) * x. `sum` is whole after Flush, which must come at least
// once every kFlushSteps steps.
struct DotU4 {
  static constexpr int kFlushSteps = 4;  // a step adds at most 4 * 15 * 127 to s16; 4 of them are 30480
  I32x16 sum = I32x16::Zero();
  int16_t part[16] = {};
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) {
    const int16_t x0 = Input(x4, 0), x1 = Input(x4, 1), x2 = Input(x4, 2), x3 = Input(x4, 3);
    for (int r = 0; r < 16; ++r) {
      part[r] = int16_t(part[r] + w.v[0][r] * x0 + w.v[1][r] * x1 + w.v[2][r] * x2 + w.v[3][r] * x3);
    }
  }
  NIBBLE_HD void Flush() {
    for (int r = 0; r < 16; ++r) sum.v[r] += part[r];
    for (int16_t& p : part) p = 0;
  }
};

// The same for weights from LoadS8; `sum` is whole at all times.
struct DotS8 {
  I32x16 sum = I32x16::Zero();
  NIBBLE_HD void Step(const Weights4& w, int32_t x4) {
    const int16_t x0 = Input(x4, 0), x1 = Input(x4, 1), x2 = Input(x4, 2), x3 = Input(x4, 3);
    for (int r = 0; r < 16; ++r) {
      sum.v[r] += w.v[0][r] * x0 + w.v[1][r] * x1 + w.v[2][r] * x2 + w.v[3][r] * x3;
    }
  }
};

// Tile of linear_int.h that fits the registers: kTileRows x kTilePanels, and 1 x kRowPanels for single rows.
constexpr int kTileRows = 4, kTilePanels = 1, kRowPanels = 1;
constexpr const char* kIntNames[] = {"i4-group/c", "i4-channel/c", "i8-channel/c"};
