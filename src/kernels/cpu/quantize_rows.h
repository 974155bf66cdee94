// SPDX-License-Identifier: Apache-2.0
// Floor 4. Per-token symmetric INT8 quantization of activations: plain loops that every ISA's compiler turns
// into vectors. The definition, and what happens to special rows, is kernels/ref/quantize_rows.h.

constexpr int32_t kTinyBits = 8 << 23;  // 2^-119
constexpr int32_t kInfinityBits = 0x7f800000;

// The bits of max |x|. As integers, so that the order does not matter and NaN counts as larger than infinity.
static NIBBLE_HD int32_t AbsMaxBits(const float* x, int k) {
  int32_t max = 0;
  for (int i = 0; i < k; ++i) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    max = bits > max ? bits : max;
  }
  return max;
}

// Adding 1.5 * 2^23 leaves no fraction bits: the addition itself rounds to nearest even, and the integer is
// what the bits of the sum have gained. REQUIRES |x| < 2^22.
static NIBBLE_HD int32_t RoundToInt(float x) {
  const float sum = x + 12582912.0f;
  int32_t bits;
  memcpy(&bits, &sum, 4);
  return bits - 0x4b400000;
}

// q of up to 128 inputs, and their sum. No clamp: |x| <= amax, so x * (127 / amax) with its two roundings is
// at most 127.00002 and rounds to 127.
static NIBBLE_HD int32_t QuantizeGroup(const float* x, int8_t* q, int count, float inverse) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t code = RoundToInt(x[i] * inverse);
    q[i] = int8_t(code);
    sum += code;  // not the byte, which would have to be widened again
  }
  return sum;
}

static void QuantizeRows(const QuantizeRowsArgs& a) {
  const int groups = (a.k + weight::kGroup - 1) / weight::kGroup;
  for (int m = 0; m < a.rows; ++m) {
    const float* x = a.x + m * a.x_stride;
    int8_t* q = a.q + int64_t{m} * a.k;
    int32_t* group_sum = a.group_sum + int64_t{m} * groups;
    const int32_t bits = AbsMaxBits(x, a.k);
    if (bits < kTinyBits || bits >= kInfinityBits) {
      a.scale[m] = bits < kTinyBits ? 0.0f : __builtin_nanf("");
      memset(q, 0, size_t(a.k));
      memset(group_sum, 0, size_t(groups) * sizeof(int32_t));
      continue;
    }
    const float amax = BitsToFloat(uint32_t(bits)), inverse = 127.0f / amax;
    a.scale[m] = amax / 127.0f;
    for (int g = 0; g < groups; ++g) {
      const int first = g * weight::kGroup, left = a.k - first;
      group_sum[g] =
          QuantizeGroup(x + first, q + first, left < weight::kGroup ? left : weight::kGroup, inverse);
    }
  }
}
