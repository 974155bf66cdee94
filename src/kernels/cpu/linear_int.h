// SPDX-License-Identifier: Apache-2.0
// Floor 4. Matmuls of INT8 activations with 4- and 8-bit weights (QServe, arXiv 2405.04532, sections 4.1 and
// 5.2). Everything is an integer until the end, so the result depends neither on the ISA nor on tiling:
//   kI4Group:    y = (s1[n] * sx[m]) * sum_g s2[n,g] * (sum_{k in g} u * x - z[n,g] * group_sum[m,g])
//   kI4Channel:  y = (s[n] * sx[m]) * (sum u * x - z[n] * sum x)
//   kI8Channel:  y = (s[n] * sx[m]) * sum w * x
// then + bias, then + the old y; each float operation is rounded, in this order (no fused multiply-add).
// |u - z| <= 15, s2 <= 16, |w| <= 128, |x| <= 127: k <= 65536 keeps every sum inside int32.
#include "kernels/cpu/quantize_rows.h"

// The part of a call that one tile kernel computes: rows [row, row + kRows), panels [panel, panel + kPanels).
struct IntTile {
  int row, panel;
};

static NIBBLE_HD int32_t Load4(const int8_t* x) {
  int32_t v;
  memcpy(&v, x, 4);
  return v;
}

// sum of x over the row: what a zero point that holds for all inputs multiplies.
static NIBBLE_HD int32_t RowSum(const LinearArgs& a, int row) {
  const int groups = (a.w.k + weight::kGroup - 1) / weight::kGroup;
  int32_t sum = 0;
  for (int g = 0; g < groups; ++g) sum += a.group_sum[int64_t{row} * groups + g];
  return sum;
}

// The float end of one row and `lanes` outputs from `first`.
static NIBBLE_HD void StoreLanes(const LinearArgs& a, const int32_t* sum, int row, int first, int lanes) {
  const float* scale = a.w.scale + first;
  const float row_scale = a.x_scale[row];
  float* y = a.y + row * a.y_stride + first;
  float value[weight::kPanel];
  for (int i = 0; i < lanes; ++i) value[i] = float(sum[i]) * (scale[i] * row_scale);
  if (a.bias != nullptr) {
    for (int i = 0; i < lanes; ++i) value[i] += a.bias[first + i];
  }
  if (a.accumulate) {
    for (int i = 0; i < lanes; ++i) value[i] += y[i];
  }
  for (int i = 0; i < lanes; ++i) y[i] = value[i];
}

static void StorePanel(const LinearArgs& a, const int32_t* sum, int row, int panel) {
  const int first = panel * weight::kPanel, lanes = a.w.n - first;
  if (lanes >= weight::kPanel) {
    StoreLanes(a, sum, row, first, weight::kPanel);  // a constant length becomes vector code
  } else {
    StoreLanes(a, sum, row, first, lanes);
  }
}

template <int kRows, int kPanels>
static NIBBLE_HD void StoreTile(const LinearArgs& a, IntTile t, const I32x16 (&sums)[kPanels][kRows]) {
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) {
      int32_t sum[weight::kPanel];
      sums[p][r].Store(sum);
      StorePanel(a, sum, t.row + r, t.panel + p);
    }
  }
}

// Where a tile reads: one stride between panels, one between rows.
struct IntInputs {
  const std::byte* codes;
  const int8_t* x;
  int64_t panel_bytes, k;
};

static NIBBLE_HD IntInputs InputsOf(const LinearArgs& a, IntTile t, int64_t panel_bytes) {
  return {a.w.codes + t.panel * panel_bytes, a.xq + int64_t{t.row} * a.w.k, panel_bytes, a.w.k};
}

// One step, 4 inputs, of every accumulator of the tile.
template <int kRows, int kPanels, class Dot>
static NIBBLE_HD void Step(const Weights4 (&w)[kPanels], const int8_t* x, int64_t k,
                           Dot (&acc)[kPanels][kRows]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const int32_t x4 = Load4(x + r * k);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) acc[p][r].Step(w[p], x4);
  }
}

// Accumulators of a tile. A single row of one panel has kRowChains of each, taken in turn, because one chain
// of dependent sums would be slower than memory.
template <int kRows, int kPanels>
struct TileDots {
  static constexpr int kChains = kRows * kPanels == 1 ? kRowChains : 1;
  DotU4 dots[kChains][kPanels][kRows];
  NIBBLE_HD I32x16 Sum(int p, int r) const {
    I32x16 sum = dots[0][p][r].sum;
    for (int c = 1; c < kChains; ++c) sum = I32x16::Add(sum, dots[c][p][r].sum);
    return sum;
  }
};

// Adds kBlocks blocks of 8 inputs of a kI4 layout to every accumulator of the tile.
template <int kBlocks, int kRows, int kPanels>
static NIBBLE_HD void DotBlocksI4(const IntInputs& in, int block, TileDots<kRows, kPanels>& acc) {
  constexpr int kChains = TileDots<kRows, kPanels>::kChains;
  constexpr int kTurn = kBlocks == 1 || kChains == 1 ? 1 : kChains / 2;  // blocks until a chain's next turn
  const std::byte* codes = in.codes + int64_t{block} * 64;
  const int8_t* x = in.x + int64_t{block} * 8;
#pragma GCC unroll 4
  for (int first = 0; first < kBlocks; first += kTurn) {
#pragma GCC unroll 4
    for (int b = 0; b < kTurn; ++b) {
      if constexpr (kRows == 1 && kRowPrefetchBytes > 0)
        __builtin_prefetch(codes + (first + b) * 64 + kRowPrefetchBytes);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {  // low nibbles, then high ones
        Weights4 w[kPanels];
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p)
          w[p] = LoadNibbles(codes + (first + b) * 64 + p * in.panel_bytes, half != 0);
        Step(w, x + 8 * (first + b) + 4 * half, in.k, acc.dots[(2 * b + half) % kChains]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc.dots[0][p][r].Flush();
  }
}

// Adds blocks [block, end).
template <int kRows, int kPanels>
static NIBBLE_HD void DotI4(const IntInputs& in, int block, int end, TileDots<kRows, kPanels>& acc) {
  constexpr int kGroupBlocks = weight::kGroup / 8;
  constexpr int kFlushBlocks = DotU4::kFlushSteps / 2 < kGroupBlocks ? DotU4::kFlushSteps / 2 : kGroupBlocks;
  static_assert(TileDots<kRows, kPanels>::kChains == 1 || kFlushBlocks == kGroupBlocks);
#pragma GCC unroll 1
  for (; block + kFlushBlocks <= end; block += kFlushBlocks) DotBlocksI4<kFlushBlocks>(in, block, acc);
#pragma GCC unroll 1
  for (; block < end; ++block) DotBlocksI4<1>(in, block, acc);
}

template <int kRows, int kPanels>
static void TileI4Group(const LinearArgs& a, IntTile t) {
  constexpr int kGroupBlocks = weight::kGroup / 8;
  const IntInputs in = InputsOf(a, t, int64_t{a.w.k} * 8);
  const int groups = a.w.k / weight::kGroup;
  I32x16 sums[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p) {
    for (int r = 0; r < kRows; ++r) sums[p][r] = I32x16::Zero();
  }
  for (int g = 0; g < groups; ++g) {
    TileDots<kRows, kPanels> acc;
    DotI4(in, g * kGroupBlocks, (g + 1) * kGroupBlocks, acc);
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = (int64_t{t.panel + p} * groups + g) * weight::kPanel;
      const I32x16 scale = I32x16::FromU8(a.w.group_scale + at), zero = I32x16::FromU8(a.w.zero + at);
      for (int r = 0; r < kRows; ++r) {  // |group_sum| <= 127 * 128 fits s16
        const int32_t group_sum = a.group_sum[int64_t{t.row + r} * groups + g];
        const I32x16 part = I32x16::Sub(acc.Sum(p, r), I32x16::MulU15(zero, group_sum));
        sums[p][r] = I32x16::Add(sums[p][r], I32x16::Mul(part, scale));
      }
    }
  }
  StoreTile(a, t, sums);
}

template <int kRows, int kPanels>
static void TileI4Channel(const LinearArgs& a, IntTile t) {
  constexpr int kGroupBlocks = weight::kGroup / 8;
  const IntInputs in = InputsOf(a, t, int64_t{a.w.k} * 8);
  I32x16 sums[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p) {
    const I32x16 zero = I32x16::FromU8(a.w.zero + (t.panel + p) * weight::kPanel);
    for (int r = 0; r < kRows; ++r) sums[p][r] = I32x16::Mul(zero, I32x16::Set1(-RowSum(a, t.row + r)));
  }
  const int blocks = a.w.k / 8;  // in groups: sums that begin and end with one stay in registers
  for (int block = 0; block < blocks; block += kGroupBlocks) {
    TileDots<kRows, kPanels> acc;
    DotI4(in, block, blocks - block < kGroupBlocks ? blocks : block + kGroupBlocks, acc);
    for (int p = 0; p < kPanels; ++p)
      for (int r = 0; r < kRows; ++r) sums[p][r] = I32x16::Add(sums[p][r], acc.Sum(p, r));
  }
  StoreTile(a, t, sums);
}

template <int kRows, int kPanels>
static void TileI8Channel(const LinearArgs& a, IntTile t) {
  const IntInputs in = InputsOf(a, t, int64_t{a.w.k} * 16);
  constexpr int kChains = kRows * kPanels == 1 ? kRowChains : 1;
  DotS8 acc[kChains][kPanels][kRows];
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[c][p][r] = DotS8::Zero();
  const auto step = [&](int block, DotS8(&to)[kPanels][kRows]) __attribute__((always_inline)) {
    Weights4 w[kPanels];
    if constexpr (kRows == 1 && kRowPrefetchBytes > 0)
      __builtin_prefetch(in.codes + int64_t{block} * 64 + kRowPrefetchBytes);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) w[p] = LoadS8(in.codes + p * in.panel_bytes + int64_t{block} * 64);
    Step(w, in.x + int64_t{block} * 4, in.k, to);
  };
  const int blocks = a.w.k / 4;
  int b = 0;
#pragma GCC unroll 2
  for (; b + kChains <= blocks; b += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) step(b + c, acc[c]);
  for (; b < blocks; ++b) step(b, acc[0]);
  I32x16 sums[kPanels][kRows];
  for (int r = 0; r < kRows; ++r) {
    const I32x16 offset = I32x16::Set1(kS8Offset == 0 ? 0 : kS8Offset * RowSum(a, t.row + r));
    for (int p = 0; p < kPanels; ++p) {
      sums[p][r] = I32x16::Zero();
      for (int c = 0; c < kChains; ++c) {
        acc[c][p][r].Flush();
        sums[p][r] = I32x16::Add(sums[p][r], acc[c][p][r].sum);
      }
      sums[p][r] = I32x16::Sub(sums[p][r], offset);
    }
  }
  StoreTile(a, t, sums);
}

template <int kRows, int kPanels>
static void RunIntTile(const LinearArgs& a, IntTile t) {
  switch (a.w.layout) {
    case weight::Layout::kI4Group:
      return TileI4Group<kRows, kPanels>(a, t);
    case weight::Layout::kI4Channel:
      return TileI4Channel<kRows, kPanels>(a, t);
    default:
      return TileI8Channel<kRows, kPanels>(a, t);
  }
}

// All rows of kPanels panels: tiles of kRows rows while they last, then of half as many.
template <int kRows, int kPanels>
static void RunIntRows(const LinearArgs& a, IntTile t) {
  for (; t.row + kRows <= a.rows; t.row += kRows) RunIntTile<kRows, kPanels>(a, t);
  if constexpr (kRows > 1) {
    if (t.row < a.rows) RunIntRows<kRows / 2, kPanels>(a, t);
  }
}

static void LinearInt(const LinearArgs& a) {
  int panel = a.panel_begin;
  if (a.rows == 1) {  // one row needs more panels to keep the multipliers busy
    for (; panel + kRowPanels <= a.panel_end; panel += kRowPanels) RunIntTile<1, kRowPanels>(a, {0, panel});
  }
  for (; panel + kTilePanels <= a.panel_end; panel += kTilePanels) {
    RunIntRows<kTileRows, kTilePanels>(a, {0, panel});
  }
  for (; panel < a.panel_end; ++panel) RunIntRows<kTileRows, 1>(a, {0, panel});
}

static const char* LinearIntName(weight::Layout layout) {
  switch (layout) {
    case weight::Layout::kI4Group:
      return kIntNames[0];
    case weight::Layout::kI4Channel:
      return kIntNames[1];
    default:
      return kIntNames[2];
  }
}
