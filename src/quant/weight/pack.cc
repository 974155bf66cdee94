// SPDX-License-Identifier: Apache-2.0
// Floor 2. Packing into panels of 16 output rows, and the slow decode of the result.
#include "quant/weight/pack.h"

#include "base/check.h"
#include "base/half.h"

namespace nibble::weight {
namespace {

// One float type in memory: how many bytes, and its value as f32.
struct F32 {
  static constexpr int kBytes = 4;
  static float Load(const std::byte* p) {
    float x;
    memcpy(&x, p, 4);
    return x;
  }
  static void Store(std::byte* p, float x) { memcpy(p, &x, 4); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static float Load(const std::byte* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return HalfToFloat(h);
  }
  static void Store(std::byte* p, float x) {
    const uint16_t h = FloatToHalf(x);
    memcpy(p, &h, 2);
  }
};
struct BF16 {
  static constexpr int kBytes = 2;
  static float Load(const std::byte* p) {
    uint16_t b;
    memcpy(&b, p, 2);
    return Bf16ToFloat(b);
  }
  static void Store(std::byte* p, float x) {
    const uint16_t b = FloatToBf16(x);
    memcpy(p, &b, 2);
  }
};

int64_t PaddedRows(int n) { return (int64_t{n} + kPanel - 1) / kPanel * kPanel; }

// Where the parts of a packed weight lie in its memory, each at a multiple of 64.
struct Parts {
  size_t codes = 0, scale = 0, group_scale = 0, zero = 0, row_sum = 0, total = 0;
};

size_t Take(size_t bytes, size_t* total) {
  const size_t at = *total;
  *total += (bytes + 63) / 64 * 64;
  return at;
}

Parts PlanParts(Layout layout, int n, int k) {
  const size_t rows = size_t(PaddedRows(n)), values = rows * size_t(k);
  Parts p;
  switch (layout) {
    case Layout::kF32:
      p.codes = Take(values * 4, &p.total);
      break;
    case Layout::kF16:
    case Layout::kBF16:
      p.codes = Take(values * 2, &p.total);
      break;
    case Layout::kI4Group:
      p.codes = Take(values / 2, &p.total);
      p.scale = Take(rows * 4, &p.total);
      p.group_scale = Take(values / kGroup, &p.total);
      p.zero = Take(values / kGroup, &p.total);
      break;
    case Layout::kI4Channel:
      p.codes = Take(values / 2, &p.total);
      p.scale = Take(rows * 4, &p.total);
      p.zero = Take(rows, &p.total);
      break;
    case Layout::kI8Channel:
      p.codes = Take(values, &p.total);
      p.scale = Take(rows * 4, &p.total);
      p.row_sum = Take(rows * 4, &p.total);
      break;
  }
  return p;
}

// [n][k] of Src -> [n/16][k][16] of Dst.
template <class Src, class Dst>
void PackFloats(const WeightView& w, std::byte* codes) {
  for (int row = 0; row < w.n; ++row) {
    const std::byte* from = w.codes + int64_t{row} * w.k * Src::kBytes;
    std::byte* to = codes + (int64_t{row} / kPanel * w.k * kPanel + row % kPanel) * Dst::kBytes;
    for (int i = 0; i < w.k; ++i)
      Dst::Store(to + int64_t{i} * kPanel * Dst::kBytes, Src::Load(from + int64_t{i} * Src::kBytes));
  }
}

template <class Src>
void PackFloatsFrom(const WeightView& w, Layout layout, std::byte* codes) {
  if (layout == Layout::kF32) PackFloats<Src, F32>(w, codes);
  if (layout == Layout::kF16) PackFloats<Src, F16>(w, codes);
  if (layout == Layout::kBF16) PackFloats<Src, BF16>(w, codes);
}

// [n][k/2], neighbours in one byte -> [n/16][k/8][16][4], inputs j and j+4 of eight in one byte: then one
// mask and one shift give a vector register four neighbouring inputs of each output.
void PackNibbles(const WeightView& w, std::byte* codes) {
  const int blocks = w.k / 8;
  for (int row = 0; row < w.n; ++row) {
    const auto* from = reinterpret_cast<const uint8_t*>(w.codes) + int64_t{row} * w.k / 2;
    auto* to =
        reinterpret_cast<uint8_t*>(codes) + (int64_t{row} / kPanel * blocks * kPanel + row % kPanel) * 4;
    for (int i = 0; i < blocks; ++i, from += 4, to += kPanel * 4) {
      to[0] = uint8_t((from[0] & 15) | (from[2] & 15) << 4);
      to[1] = uint8_t(from[0] >> 4 | (from[2] & 0xf0));
      to[2] = uint8_t((from[1] & 15) | (from[3] & 15) << 4);
      to[3] = uint8_t(from[1] >> 4 | (from[3] & 0xf0));
    }
  }
}

// [n][k] s8 -> [n/16][k/4][16][4], and the sum of every row.
void PackBytes(const WeightView& w, std::byte* codes, int32_t* row_sum) {
  const int blocks = w.k / 4;
  for (int row = 0; row < w.n; ++row) {
    const auto* from = reinterpret_cast<const int8_t*>(w.codes) + int64_t{row} * w.k;
    std::byte* to = codes + (int64_t{row} / kPanel * blocks * kPanel + row % kPanel) * 4;
    int32_t sum = 0;
    for (int i = 0; i < blocks; ++i, from += 4, to += kPanel * 4) {
      memcpy(to, from, 4);
      sum += from[0] + from[1] + from[2] + from[3];
    }
    row_sum[row] = sum;
  }
}

// [n][groups] -> [n/16][groups][16].
void PackGroups(const uint8_t* from, int n, int groups, uint8_t* to) {
  for (int row = 0; row < n; ++row)
    for (int g = 0; g < groups; ++g)
      to[(int64_t{row} / kPanel * groups + g) * kPanel + row % kPanel] = from[int64_t{row} * groups + g];
}

void PackScales(const WeightView& w, float* to) {
  for (int row = 0; row < w.n; ++row)
    to[row] = F16::Load(reinterpret_cast<const std::byte*>(w.scale) + int64_t{row} * 2);
}

// The u4 code of input i of a row: layouts kI4*.
int NibbleAt(const PackedWeight& w, int row, int i) {
  const int64_t block = (int64_t{row} / kPanel * (w.k / 8) + i / 8) * kPanel + row % kPanel;
  const int byte = int(w.codes[block * 4 + i % 4]);
  return i % 8 < 4 ? byte & 15 : byte >> 4;
}

template <class T>
void DecodeFloatRow(const PackedWeight& w, int row, float* out) {
  for (int i = 0; i < w.k; ++i)
    out[i] = T::Load(w.codes + ((int64_t{row} / kPanel * w.k + i) * kPanel + row % kPanel) * T::kBytes);
}

}  // namespace

Layout LayoutFor(Storage storage, bool bf16_arithmetic) {
  switch (storage) {
    case Storage::kF32:
      return bf16_arithmetic ? Layout::kBF16 : Layout::kF32;
    case Storage::kF16:
      return bf16_arithmetic ? Layout::kBF16 : Layout::kF16;
    case Storage::kBF16:
      return Layout::kBF16;
    case Storage::kW4A8Group:
      return Layout::kI4Group;
    case Storage::kW4A8Channel:
      return Layout::kI4Channel;
    case Storage::kW8A8:
      return Layout::kI8Channel;
  }
  return Layout::kF32;
}

size_t PackedBytes(Layout layout, int n, int k) { return PlanParts(layout, n, k).total; }

PackedWeight PackedAt(Layout layout, int n, int k, const std::byte* memory) {
  NIBBLE_CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0, "packed weights are 64-byte aligned");
  const Parts parts = PlanParts(layout, n, k);
  PackedWeight p;
  p.layout = layout;
  p.n = n;
  p.k = k;
  p.bytes = parts.total;
  p.codes = memory + parts.codes;
  if (!IsInteger(layout)) return p;
  p.scale = reinterpret_cast<const float*>(memory + parts.scale);
  if (layout == Layout::kI8Channel) {
    p.row_sum = reinterpret_cast<const int32_t*>(memory + parts.row_sum);
    return p;
  }
  p.zero = reinterpret_cast<const uint8_t*>(memory + parts.zero);
  if (layout == Layout::kI4Group)
    p.group_scale = reinterpret_cast<const uint8_t*>(memory + parts.group_scale);
  return p;
}

PackedWeight Pack(const WeightView& w, Layout layout, std::byte* memory) {
  NIBBLE_CHECK(IsQuantized(w.storage) ? layout == LayoutFor(w.storage, false) : !IsInteger(layout),
               "this storage does not pack into this layout");
  const PackedWeight p = PackedAt(layout, w.n, w.k, memory);
  const Parts parts = PlanParts(layout, w.n, w.k);
  memset(memory, 0, parts.total);  // padding rows, and the gaps between parts
  std::byte* codes = memory + parts.codes;
  if (w.storage == Storage::kF32) PackFloatsFrom<F32>(w, layout, codes);
  if (w.storage == Storage::kF16) PackFloatsFrom<F16>(w, layout, codes);
  if (w.storage == Storage::kBF16) PackFloatsFrom<BF16>(w, layout, codes);
  if (!IsInteger(layout)) return p;

  PackScales(w, reinterpret_cast<float*>(memory + parts.scale));
  if (layout == Layout::kI8Channel) {
    PackBytes(w, codes, reinterpret_cast<int32_t*>(memory + parts.row_sum));
    return p;
  }
  PackNibbles(w, codes);
  auto* zero = reinterpret_cast<uint8_t*>(memory + parts.zero);
  if (layout == Layout::kI4Channel) {
    memcpy(zero, w.zero, size_t(w.n));
    return p;
  }
  auto* group_scale = reinterpret_cast<uint8_t*>(memory + parts.group_scale);
  PackGroups(w.group_scale, w.n, w.k / kGroup, group_scale);
  PackGroups(w.zero, w.n, w.k / kGroup, zero);
  return p;
}

void DecodeRow(const PackedWeight& w, int row, float* out) {
  NIBBLE_CHECK(0 <= row && row < w.n, "row outside the matrix");
  switch (w.layout) {
    case Layout::kF32:
      return DecodeFloatRow<F32>(w, row, out);
    case Layout::kF16:
      return DecodeFloatRow<F16>(w, row, out);
    case Layout::kBF16:
      return DecodeFloatRow<BF16>(w, row, out);
    case Layout::kI4Group:
      for (int i = 0; i < w.k; ++i) {
        const int64_t at = (int64_t{row} / kPanel * (w.k / kGroup) + i / kGroup) * kPanel + row % kPanel;
        out[i] = float((NibbleAt(w, row, i) - w.zero[at]) * w.group_scale[at]) * w.scale[row];
      }
      return;
    case Layout::kI4Channel:
      for (int i = 0; i < w.k; ++i) out[i] = float(NibbleAt(w, row, i) - w.zero[row]) * w.scale[row];
      return;
    case Layout::kI8Channel:
      for (int i = 0; i < w.k; ++i) {
        const int64_t at = ((int64_t{row} / kPanel * (w.k / 4) + i / 4) * kPanel + row % kPanel) * 4 + i % 4;
        out[i] = float(int8_t(w.codes[at])) * w.scale[row];
      }
      return;
  }
}

}  // namespace nibble::weight
