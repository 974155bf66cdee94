// SPDX-License-Identifier: Apache-2.0
// Floor 4. The vector policy in portable C++, and its specification: 16 float lanes on every ISA, so that the
// order of every sum is the same everywhere. Included inside namespace nibble::cpu::<isa>.
// Agreement: Fma may round once (avx2, avx512) or twice (here, since a software fma is far too slow). All
// other members give the same bits on every ISA.

// Register blocking: how many accumulators of 16 lanes a kernel may keep beside its operands.
static constexpr int kAccumulators = 2;

struct Vec16 {
  typedef float F4 __attribute__((vector_size(16)));  // what the baseline of every 64-bit machine has
  typedef int32_t I4 __attribute__((vector_size(16)));
  typedef uint32_t U4 __attribute__((vector_size(16)));
  F4 q[4];

  // Makes a vector whose quarter i is f(i).
  template <class F>
  static NIBBLE_HD Vec16 Each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static NIBBLE_HD F4 Bits(U4 u) { return (F4)u; }
  static NIBBLE_HD U4 Bits(F4 f) { return (U4)f; }
  static NIBBLE_HD F4 Load4(const void* p) {
    F4 x;
    __builtin_memcpy(&x, p, 16);
    return x;
  }

  typedef uint16_t H8 __attribute__((vector_size(16)));
  typedef uint64_t W2 __attribute__((vector_size(16)));
  static NIBBLE_HD H8 LoadQuarter16(const void* p, int i) {  // four 16-bit values, then zeros
    uint64_t w;
    __builtin_memcpy(&w, static_cast<const char*>(p) + 8 * i, 8);
    return (H8)W2{w, 0};
  }

  static NIBBLE_HD Vec16 Set1(float x) {
    return Each([=](int) { return F4{x, x, x, x}; });
  }
  static NIBBLE_HD Vec16 Zero() { return Set1(0); }
  static NIBBLE_HD Vec16 Lanes() {  // 0, 1, .. 15
    return Each([](int i) {
      const float b = float(4 * i);
      return F4{b, b + 1, b + 2, b + 3};
    });
  }

  // Memory, at any alignment. Part: the first n lanes, 0 <= n <= 16; the others load as 0 and are not
  // touched.
  static NIBBLE_HD Vec16 Load(const void* p) {
    return Each([=](int i) { return Load4(static_cast<const char*>(p) + 16 * i); });
  }
  static NIBBLE_HD Vec16 LoadPart(const void* p, int n) {
    if (n >= 16) return Load(p);
    float x[16] = {};
    __builtin_memcpy(x, p, size_t(n) * 4);
    return Load(x);
  }
  static NIBBLE_HD Vec16 LoadF16(const void* p) {
    return Each([=](int i) {
      const H8 h = LoadQuarter16(p, i);
      const U4 x = (U4)__builtin_shufflevector(h, H8{}, 0, 8, 1, 9, 2, 10, 3, 11), em = x & 0x7fff;
      const F4 scale = Bits(U4{} + 0x77800000u);  // 2^112 moves the exponent bias, subnormals included
      const U4 finite = Bits(Bits(em << 13) * scale);
      const U4 special = U4(em >= 0x7c00) & 0x7f800000u;
      return Bits(finite | special | (x & 0x8000) << 16);
    });
  }
  static NIBBLE_HD Vec16 LoadBf16(const void* p) {
    return Each([=](int i) {
      const H8 b = LoadQuarter16(p, i);  // a zero below each: the value in the upper half of 32 bits
      return Bits((U4)__builtin_shufflevector(b, H8{}, 8, 0, 9, 1, 10, 2, 11, 3));
    });
  }
  static NIBBLE_HD Vec16 LoadU8(const void* p) {
    return Each([=](int i) {
      uint8_t u[4];
      __builtin_memcpy(u, static_cast<const char*>(p) + 4 * i, 4);
      return F4{float(u[0]), float(u[1]), float(u[2]), float(u[3])};
    });
  }
  static NIBBLE_HD Vec16 LoadU4(const void* p) {  // 8 bytes: the even lane in the low nibble
    return Each([=](int i) {
      uint8_t u[2];
      __builtin_memcpy(u, static_cast<const char*>(p) + 2 * i, 2);
      return F4{float(u[0] & 15), float(u[0] >> 4), float(u[1] & 15), float(u[1] >> 4)};
    });
  }
  // 16 codes of 2, 3 or 4 bits, low bits first, from 2 * kBits bytes.
  template <int kBits>
  static NIBBLE_HD uint32_t Code(const void* p, int i) {
    uint64_t word = 0;
    __builtin_memcpy(&word, p, 2 * kBits);
    return uint32_t(word >> (i * kBits)) & ((1u << kBits) - 1);
  }
  template <int kBits>
  static NIBBLE_HD Vec16 LoadCodes(const void* p) {
    return Each([=](int i) {
      const U4 u{Code<kBits>(p, 4 * i), Code<kBits>(p, 4 * i + 1), Code<kBits>(p, 4 * i + 2),
                 Code<kBits>(p, 4 * i + 3)};
      return __builtin_convertvector((I4)u, F4);
    });
  }
  // The entry of `table` [16] that each of 16 codes names.
  template <int kBits>
  static NIBBLE_HD Vec16 LookUpCodes(const float* table, const void* p) {
    return Each([=](int i) {
      return F4{table[Code<kBits>(p, 4 * i)], table[Code<kBits>(p, 4 * i + 1)],
                table[Code<kBits>(p, 4 * i + 2)], table[Code<kBits>(p, 4 * i + 3)]};
    });
  }
  // E4M3 bytes that are not NaN.
  static NIBBLE_HD Vec16 LoadE4m3(const void* p) {
    uint16_t half[16];
    for (int i = 0; i < 16; ++i) {
      const int code = static_cast<const uint8_t*>(p)[i];
      half[i] = uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7);  // 2^-8 of the value
    }
    return Mul(LoadF16(half), Set1(256));
  }
  // Of 16 bytes that hold 8 / kBits codes each, low bits first: code number kIndex.
  template <int kBits, int kIndex>
  static NIBBLE_HD Vec16 LoadByteCodes(const void* p) {
    const uint8_t* u = static_cast<const uint8_t*>(p);
    const auto code = [u](int i) { return float(u[i] >> kBits * kIndex & ((1 << kBits) - 1)); };
    return Each([=](int i) { return F4{code(4 * i), code(4 * i + 1), code(4 * i + 2), code(4 * i + 3)}; });
  }
  static NIBBLE_HD Vec16 FromMask(uint32_t mask, float x) {  // lane i: x where bit i is set, else 0
    return Each([=](int i) {
      const U4 bits = U4{mask, mask, mask, mask} >> uint32_t(4 * i) & U4{1, 2, 4, 8};
      return Bits(U4(bits != 0) & Bits(F4{x, x, x, x}));
    });
  }
  NIBBLE_HD void Store(void* p) const { __builtin_memcpy(p, q, 64); }
  NIBBLE_HD void StorePart(void* p, int n) const { __builtin_memcpy(p, q, n >= 16 ? 64 : size_t(n) * 4); }
  static NIBBLE_HD Vec16 LoadI32(const void* p) {  // rounded to nearest even
    return Each([=](int i) {
      I4 x;
      __builtin_memcpy(&x, static_cast<const char*>(p) + 16 * i, 16);
      return __builtin_convertvector(x, F4);
    });
  }
  // As s16, rounded to nearest even, a greater one as 32767. In the order in which I32x16::CodePairs gives
  // codes of kBits of consecutive channels, or as they are (16). REQUIRES |x| <= 32768.
  template <int kBits>
  NIBBLE_HD void StoreS16(void* p) const {
    const Vec16 whole = Round();
    for (int i = 0; i < 16; ++i) {
      constexpr int kPairs = 16 / kBits, kCodes = 2 * kPairs;  // of a word
      const int at = kBits == 16 ? i : i / kCodes * kCodes + i % kPairs * 2 + i % kCodes / kPairs;
      const float x = whole.q[i / 4][i % 4];
      const auto code = int16_t(x > 32767.0f ? 32767.0f : x);
      __builtin_memcpy(static_cast<char*>(p) + 2 * at, &code, 2);
    }
  }
  NIBBLE_HD void StoreF16(void* p) const {  // rounded as FloatToHalf does
    for (int i = 0; i < 16; ++i) {
      const uint16_t h = FloatToHalf(q[i / 4][i % 4]);
      __builtin_memcpy(static_cast<char*>(p) + 2 * i, &h, 2);
    }
  }
  NIBBLE_HD void StoreBf16(void* p) const {  // rounded as FloatToBf16 does
    for (int i = 0; i < 16; ++i) {
      const uint16_t b = FloatToBf16(q[i / 4][i % 4]);
      __builtin_memcpy(static_cast<char*>(p) + 2 * i, &b, 2);
    }
  }

  static NIBBLE_HD Vec16 Add(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] + b.q[i]; });
  }
  static NIBBLE_HD Vec16 Sub(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] - b.q[i]; });
  }
  static NIBBLE_HD Vec16 Mul(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] * b.q[i]; });
  }
  static NIBBLE_HD Vec16 Div(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] / b.q[i]; });
  }
  static NIBBLE_HD Vec16 Fma(Vec16 a, Vec16 b, Vec16 c) {  // a * b + c
    return Each([&](int i) { return a.q[i] * b.q[i] + c.q[i]; });
  }
  // b where either lane is NaN.
  static NIBBLE_HD Vec16 Max(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
  }
  static NIBBLE_HD Vec16 Min(Vec16 a, Vec16 b) {
    return Each([&](int i) { return a.q[i] < b.q[i] ? a.q[i] : b.q[i]; });
  }
  // a < b ? x : y in each lane.
  static NIBBLE_HD Vec16 IfLess(Vec16 a, Vec16 b, Vec16 x, Vec16 y) {
    return Each([&](int i) { return a.q[i] < b.q[i] ? x.q[i] : y.q[i]; });
  }
  // Lanes l and l + kStride (kStride 1, 2, 4 or 8; l without that bit) become a + b and a - b.
  template <int kStride>
  NIBBLE_HD Vec16 Butterfly() const {
    return Each([&](int i) {
      if constexpr (kStride >= 4) {
        const F4 a = q[i & ~(kStride / 4)], b = q[i | kStride / 4];
        return (i & kStride / 4) != 0 ? a - b : a + b;
      } else {
        const F4 x = q[i];
        return kStride == 1 ? F4{x[0] + x[1], x[0] - x[1], x[2] + x[3], x[2] - x[3]}
                            : F4{x[0] + x[2], x[1] + x[3], x[0] - x[2], x[1] - x[3]};
      }
    });
  }
  // Lanes a0 b0 a1 b1 .. a15 b15: the first 16 in a, the others in b.
  static NIBBLE_HD void Interleave(Vec16& a, Vec16& b) {
    float x[32];
    for (int i = 0; i < 16; ++i) {
      x[2 * i] = a.q[i / 4][i % 4];
      x[2 * i + 1] = b.q[i / 4][i % 4];
    }
    a = Load(x);
    b = Load(x + 16);
  }
  // 16 bytes of each of 16 rows, `from_bytes` apart, to columns of 16 elements, `to_bytes` apart.
  template <class T>
  static NIBBLE_HD void Transpose(const void* from, int64_t from_bytes, void* to, int64_t to_bytes) {
    for (int row = 0; row < 16; ++row)
      for (int64_t i = 0; i < int64_t(16 / sizeof(T)); ++i)
        __builtin_memcpy(static_cast<char*>(to) + i * to_bytes + row * int64_t(sizeof(T)),
                         static_cast<const char*>(from) + row * from_bytes + i * int64_t(sizeof(T)),
                         sizeof(T));
  }
  // Bit i is set where lane i of a equals that of b.
  static NIBBLE_HD uint32_t EqualMask(Vec16 a, Vec16 b) {
    uint32_t m = 0;
    for (int i = 0; i < 16; ++i) m |= uint32_t(a.q[i / 4][i % 4] == b.q[i / 4][i % 4]) << i;
    return m;
  }
  // To the nearest integer, ties to even; the sign of a zero is open. REQUIRES |x| < 2^22.
  NIBBLE_HD Vec16 Round() const {
    const float magic = 12582912.0f;  // 1.5 * 2^23: the sum has no bits left below one
    return Sub(Add(*this, Set1(magic)), Set1(magic));
  }
  // 2^x. REQUIRES x an integer in [-126, 127].
  NIBBLE_HD Vec16 Pow2() const {
    return Each([&](int i) { return Bits(U4(__builtin_convertvector(q[i], I4) + 127) << 23); });
  }
  // a * 2^n. REQUIRES n an integer in [-125, 128] and a result that is infinite, NaN or no subnormal.
  static NIBBLE_HD Vec16 MulPow2(Vec16 a, Vec16 n) { return Mul(Mul(a, Sub(n, Set1(1)).Pow2()), Set1(2)); }
  NIBBLE_HD Vec16 RoundToBf16() const {  // to nearest even; NaN stays NaN
    return Each([&](int i) {
      const U4 u = Bits(q[i]), r = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
      const U4 nan = U4(q[i] != q[i]);
      return Bits((r & ~nan) | ((u | 0x400000) & 0xffff0000u & nan));
    });
  }

  // Toward zero to 13 bits of mantissa: the accumulator of FP8 tensor cores (FP22).
  NIBBLE_HD Vec16 TruncateToFp22() const {
    return Each([&](int i) { return Bits(Bits(q[i]) & 0xfffffc00u); });
  }
  // To the nearest E4M3, ties to even. NaN stays NaN. REQUIRES |x| < 464: beyond it would saturate at 448.
  NIBBLE_HD Vec16 RoundToE4m3() const {
    return Each([&](int i) {
      const U4 u = Bits(q[i]), a = u & 0x7fffffff, r = (u + 0x7ffff + (u >> 20 & 1)) & 0xfff00000u;
      const F4 magic = Bits(U4{} + 0x46c00000u);  // 1.5 * 2^14: the sum has no bits below 2^-9
      const U4 small = U4(a < 0x3c800000), nan = U4(a > 0x7f800000);  // below 2^-6: in steps of 2^-9
      return Bits((Bits(q[i] + magic - magic) & small) | (u & nan) | (r & ~small & ~nan));
    });
  }
  // table[i] for lanes i = 0, 1, .. 15.
  static NIBBLE_HD Vec16 LookUp(const float* table, Vec16 index) {
    return Each([&](int i) {
      const I4 n = __builtin_convertvector(index.q[i], I4);
      return F4{table[n[0]], table[n[1]], table[n[2]], table[n[3]]};
    });
  }

  // The one order of every sum over lanes: l with l+8, then l+4, l+2, l+1.
  NIBBLE_HD float Sum() const {
    const F4 a = q[0] + q[2], b = q[1] + q[3], s = a + b;
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
  // Lane i of the result is v[i].Sum().
  static NIBBLE_HD Vec16 SumEach(const Vec16* v) {
    return Each([&](int i) {
      return F4{v[4 * i].Sum(), v[4 * i + 1].Sum(), v[4 * i + 2].Sum(), v[4 * i + 3].Sum()};
    });
  }
  // Of each lane the greater of a and |b| as integers: the greatest |b| so far, above infinity if one was
  // NaN. REQUIRES the result of such a call, or zeros, as a.
  static NIBBLE_HD Vec16 MaxAbsBits(Vec16 a, Vec16 b) {
    return Each([&](int i) {
      const U4 x = Bits(a.q[i]), y = Bits(b.q[i]) & 0x7fffffffu, more = U4(y > x);
      return Bits((y & more) | (x & ~more));
    });
  }
  NIBBLE_HD int32_t MaxLaneBits() const {  // of such a result
    int32_t x[16], m = 0;
    Store(x);
    for (const int32_t bits : x) m = bits > m ? bits : m;
    return m;
  }
  NIBBLE_HD float MaxLane() const {  // REQUIRES no NaN
    float m = q[0][0];
    for (int i = 1; i < 16; ++i) m = q[i / 4][i % 4] > m ? q[i / 4][i % 4] : m;
    return m;
  }
};

// 16 lanes in double, for the few sums that quality figures hang on.
struct Vec16d {
  typedef double D2 __attribute__((vector_size(16)));
  D2 q[8];

  template <class F>
  static NIBBLE_HD Vec16d Each(F f) {
    return {{f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)}};
  }
  static NIBBLE_HD Vec16d Set1(double x) {
    return Each([=](int) { return D2{x, x}; });
  }
  static NIBBLE_HD Vec16d FromFloat(Vec16 v) {
    return Each([&](int i) { return D2{v.q[i / 2][2 * i % 4], v.q[i / 2][2 * i % 4 + 1]}; });
  }
  static NIBBLE_HD Vec16d Add(Vec16d a, Vec16d b) {
    return Each([&](int i) { return a.q[i] + b.q[i]; });
  }
  static NIBBLE_HD Vec16d Sub(Vec16d a, Vec16d b) {
    return Each([&](int i) { return a.q[i] - b.q[i]; });
  }
  static NIBBLE_HD Vec16d Mul(Vec16d a, Vec16d b) {
    return Each([&](int i) { return a.q[i] * b.q[i]; });
  }
  static NIBBLE_HD Vec16d Fma(Vec16d a, Vec16d b, Vec16d c) {  // may round once or twice
    return Each([&](int i) { return a.q[i] * b.q[i] + c.q[i]; });
  }
  static NIBBLE_HD Vec16d Max(Vec16d a, Vec16d b) {  // b where either lane is NaN
    return Each([&](int i) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
  }
  // 2^x of a sum x + kPow2Magic whose low mantissa bits hold the integer x in [-1022, 1023].
  static constexpr double kPow2Magic = 6755399441055744.0;  // 1.5 * 2^52
  NIBBLE_HD Vec16d Pow2OfSum() const {
    typedef uint64_t W2 __attribute__((vector_size(16)));
    return Each([&](int i) { return (D2)(((W2)q[i] + 1023) << 52); });
  }
  NIBBLE_HD double Sum() const {  // the same order as Vec16::Sum
    D2 s[4];
    for (int i = 0; i < 4; ++i) s[i] = q[i] + q[i + 4];
    const D2 a = s[0] + s[2], b = s[1] + s[3], c = a + b;
    return c[0] + c[1];
  }
};
