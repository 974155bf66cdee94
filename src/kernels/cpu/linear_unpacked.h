// SPDX-License-Identifier: Apache-2.0
// Floor 4. Integer matmuls of many rows. The codes of a few panels and a chunk of inputs become bytes once,
// in the first-level cache, and every tile of rows reads them from there: what unpacking, group scales and
// zero points cost is shared by the rows. The same integers as in linear_int.h, added up in another order.

// Rows that share an unpacking: with more the sums leave the second-level cache, with fewer unpacking shows.
static constexpr int kBlockRows = 256, kChunkGroups = kChunk / weight::kGroup, kChunkPairs = kChunkGroups / 2;
// A constant, so that one pointer and displacements reach all rows; no multiple of 4096, which would put the
// rows of a tile into one set of the cache.
static constexpr int kXStride = kChunk + 64;

struct UnpackedBlock {
  alignas(64) uint8_t codes[kBlockPanels][kChunk * weight::kPanel];  // [kChunk / 4][16][4]
  alignas(64) int8_t x[kUnpackedRows][kXStride];                     // the inputs of a tile of rows
  alignas(64) int32_t sums[kBlockRows][kBlockPanels][weight::kPanel];
  GroupFactor factor[kBlockPanels][kChunkGroups];
  I32x16 zero[kBlockPanels][kChunkPairs];         // kI4Group: z * s2 of two groups, as two s16
  int32_t group_sum[kUnpackedRows][kChunkPairs];  // the sums of two groups of inputs, likewise
};

// Inputs [begin, begin + count) of panels [panel, panel + panels), and where the codes lie that come next.
struct Chunk {
  int panel, panels, begin, count;
  const std::byte* next;            // of the first panel, or null
  int64_t panel_bytes, next_bytes;  // from a panel to the next, of a panel
  int groups() const { return (count + weight::kGroup - 1) / weight::kGroup; }
};

static Chunk ChunkAt(const LinearArgs& a, int panel, int begin) {
  const auto at_most = [](int n, int most) { return n < most ? n : most; };
  Chunk c{};
  c.panel = panel, c.panels = at_most(a.panel_end - panel, kBlockPanels);
  c.begin = begin, c.count = at_most(a.w.k - begin, kChunk);
  const int64_t halves =
      a.w.layout == weight::Layout::kI8Channel ? 2 : 1;  // of a byte, for a panel and input
  c.panel_bytes = a.w.k * halves * 8;
  const bool last = begin + kChunk >= a.w.k;
  const int next_begin = last ? 0 : begin + kChunk, next_panel = last ? panel + kBlockPanels : panel;
  if (next_panel + kBlockPanels > a.panel_end) return c;
  c.next = a.w.codes + next_panel * c.panel_bytes + next_begin * halves * 8;
  c.next_bytes = at_most(a.w.k - next_begin, kChunk) * halves * 8;
  return c;
}

// Part `part` of `parts` of what comes next, towards the second-level cache: unpacking would wait for memory.
static void Prefetch(const Chunk& c, int part, int parts) {
  if (c.next == nullptr) return;
  const int64_t lines = c.next_bytes / 64;
  for (int p = 0; p < kBlockPanels; ++p)
    for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i)
      __builtin_prefetch(c.next + p * c.panel_bytes + i * 64, 0, 2);
}

static void UnpackI4(const LinearArgs& a, const Chunk& c, int p, UnpackedBlock& b) {
  const int64_t panel = c.panel + p;
  static constexpr uint8_t kOnes[weight::kPanel] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const bool grouped = a.w.layout == weight::Layout::kI4Group;
  const std::byte* codes = a.w.codes + (panel * a.w.k + c.begin) * 8;
  for (int g = 0; g < c.groups(); ++g) {
    const int64_t group = panel * (a.w.k / weight::kGroup) + c.begin / weight::kGroup + g;
    const uint8_t* s2 = grouped ? a.w.group_scale + group * weight::kPanel : kOnes;
    b.factor[p][g] = GroupFactor::Load(s2);
    if (grouped) {  // z * s2 <= 240
      const I32x16 z = I32x16::FromU8(a.w.zero + group * weight::kPanel);
      const I32x16 product = I32x16::Mul(z, I32x16::FromU8(s2));
      I32x16& pair = b.zero[p][g / 2];
      pair = g % 2 == 0 ? product : I32x16::Add(pair, I32x16::Mul(product, I32x16::Set1(1 << 16)));
    }
    const int left = c.count - g * weight::kGroup, inputs = left < weight::kGroup ? left : weight::kGroup;
    uint8_t* out = b.codes[p] + g * weight::kGroup * weight::kPanel;
    for (int i = 0; i < inputs; i += 8)
      UnpackNibbles(codes + i * 8, b.factor[p][g], out + i * weight::kPanel);
    codes += weight::kGroup * 8;
  }
}

static void UnpackI8(const LinearArgs& a, const Chunk& c, int p, UnpackedBlock& b) {
  const int64_t panel = c.panel + p;
  const std::byte* codes = a.w.codes + (panel * a.w.k + c.begin) * weight::kPanel;
  for (int i = 0; i < c.count * weight::kPanel; i += 64) StoreWeights4(LoadS8(codes + i), b.codes[p] + i);
}

static void Unpack(const LinearArgs& a, const Chunk& c, int p, UnpackedBlock& b) {
  if (a.w.layout == weight::Layout::kI8Channel) {
    UnpackI8(a, c, p, b);
  } else {
    UnpackI4(a, c, p, b);
  }
  const int from = c.count * weight::kPanel, to = c.groups() * weight::kGroup * weight::kPanel;
  memset(b.codes[p] + from, 0, size_t(to - from));  // so that every group is a whole one
}

// The inputs of each row, zeros after the last one, and their sums.
template <int kRows>
static void CopyInputs(const LinearArgs& a, int row, const Chunk& c, UnpackedBlock& b) {
  const int64_t groups = (a.w.k + weight::kGroup - 1) / weight::kGroup;
  for (int r = 0; r < kRows; ++r) {
    const int8_t* x = a.xq + int64_t{row + r} * a.w.k + c.begin;
    const int32_t* sum = a.group_sum + (row + r) * groups + c.begin / weight::kGroup;
    for (int g = 0; g < c.groups(); g += 2) {  // |sum| <= 127 * 128
      const int32_t next = g + 1 < c.groups() ? sum[g + 1] : 0;
      b.group_sum[r][g / 2] = int32_t(uint32_t(next) << 16 | (uint32_t(sum[g]) & 0xffff));
    }
    int i = 0;
    for (; i + weight::kGroup <= c.count; i += weight::kGroup)
      __builtin_memcpy(b.x[r] + i, x + i, weight::kGroup);
    if (i == c.count) continue;
    memset(b.x[r] + i, 0, weight::kGroup);
    memcpy(b.x[r] + i, x + i, size_t(c.count - i));
  }
}

// One step, 4 inputs, of every accumulator of the tile.
template <bool kStart, int kRows, int kPanels>
static NIBBLE_HD void DotStep(const UnpackedBlock& b, int p0, int step, DotUnpacked (&acc)[kPanels][kRows]) {
  Weights4 w[kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPanels; ++p) w[p] = DotUnpacked::Load(b.codes[p0 + p] + step * 64);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const int32_t x4 = Load4(b.x[r] + 4 * step);
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      if constexpr (kStart) {
        acc[p][r].Start(w[p], x4);
      } else {
        acc[p][r].Step(w[p], x4);
      }
    }
  }
}

// f(acc[p][r], p, r) for a whole tile, unrolled so that the accumulators stay in registers.
template <int kRows, int kPanels, class F>
static NIBBLE_HD void ForTile(DotUnpacked (&acc)[kPanels][kRows], F&& f) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) f(acc[p][r], p, r);
}

// Adds the chunk to the sums of rows [at, at + kRows) of the block, whose inputs are in b.x, and of panels
// [p0, p0 + kPanels). Not inlined: among other code the compiler runs out of registers.
template <bool kGrouped, int kRows, int kPanels>
static __attribute__((noinline)) void DotTile(UnpackedBlock& b, int groups, int at, int p0) {
  int32_t(*sums)[kBlockPanels][weight::kPanel] = b.sums + at;
  DotUnpacked acc[kPanels][kRows];
  ForTile(
      acc, [&](DotUnpacked & d, int p, int r) __attribute__((always_inline)) { d.Begin(sums[r][p0 + p]); });
  for (int pair = 0; kGrouped && 2 * pair < groups; ++pair)
    ForTile(
        acc, [&](DotUnpacked & d, int p, int r) __attribute__((always_inline)) {
          d.Subtract(b.zero[p0 + p][pair], b.group_sum[r][pair], sums[r][p0 + p]);
        });
  constexpr int kGroupSteps = weight::kGroup / 4, kStretch = DotUnpacked::kFlushSteps;
  if constexpr (kStretch == 0) {  // one loop: with two g++ 12 keeps a second copy of the accumulators
#pragma GCC unroll 4
    for (int s = 0; s < groups * kGroupSteps; ++s) DotStep<false>(b, p0, s, acc);
  } else {
#pragma GCC unroll 1
    for (int first = 0; first < groups * kGroupSteps; first += kStretch) {
      DotStep<true>(b, p0, first, acc);
#pragma GCC unroll 16
      for (int s = 1; s < kStretch; ++s) DotStep<false>(b, p0, first + s, acc);
      ForTile(
          acc, [&](DotUnpacked & d, int p, int r) __attribute__((always_inline)) {
            d.Flush(b.factor[p0 + p][first / kGroupSteps], sums[r][p0 + p]);
          });
    }
  }
  ForTile(
      acc, [&](DotUnpacked & d, int p, int r) __attribute__((always_inline)) { d.End(sums[r][p0 + p]); });
}

// Rows [at, rows) of the block, the first of which is row `first` of the call: tiles of kRows rows while they
// last, then smaller ones.
template <bool kGrouped, int kRows>
static void DotRows(const LinearArgs& a, UnpackedBlock& b, const Chunk& c, int first, int at, int rows) {
  for (; at + kRows <= rows; at += kRows) {
    CopyInputs<kRows>(a, first + at, c, b);
    if constexpr (kRows == kUnpackedRows) Prefetch(c, at / kRows, rows / kRows);
    int p = 0;
    for (; p + kUnpackedPanels <= c.panels; p += kUnpackedPanels)
      DotTile<kGrouped, kRows, kUnpackedPanels>(b, c.groups(), at, p);
    if constexpr (kUnpackedPanels > 1)
      for (; p < c.panels; ++p) DotTile<kGrouped, kRows, 1>(b, c.groups(), at, p);
  }
  constexpr int kNext = kRows > 8 ? 8 : kRows / 2;
  if constexpr (kNext > 0) DotRows<kGrouped, kNext>(a, b, c, first, at, rows);
}

// What is left to subtract from a row's sums once all inputs are in them.
static NIBBLE_HD I32x16 RowOffset(const LinearArgs& a, int row, int panel) {
  if (a.w.layout == weight::Layout::kI4Group) return I32x16::Zero();
  const I32x16 row_sum = I32x16::Set1(RowSum(a, row));
  if (a.w.layout == weight::Layout::kI8Channel) return I32x16::Mul(row_sum, I32x16::Set1(kS8Offset));
  return I32x16::Mul(I32x16::FromU8(a.w.zero + panel * weight::kPanel), row_sum);
}

// Rows [first, first + rows) of a block of panels.
static void UnpackedRows(const LinearArgs& a, UnpackedBlock& b, int first, int rows, int panel) {
  memset(b.sums, 0, size_t(rows) * sizeof(b.sums[0]));
  for (int begin = 0; begin < a.w.k; begin += kChunk) {
    const Chunk c = ChunkAt(a, panel, begin);
    for (int p = 0; p < c.panels; ++p) Unpack(a, c, p, b);
    if (a.w.layout == weight::Layout::kI4Group) {
      DotRows<true, kUnpackedRows>(a, b, c, first, 0, rows);
    } else {
      DotRows<false, kUnpackedRows>(a, b, c, first, 0, rows);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < kBlockPanels && panel + p < a.panel_end; ++p) {
      int32_t* sum = b.sums[r][p];
      I32x16::Sub(I32x16::Load(sum), RowOffset(a, first + r, panel + p)).Store(sum);
      StorePanel(a, sum, first + r, panel + p);
    }
}

static bool Unpacks(const LinearArgs& a) {
  return a.rows >= kUnpackFromRows && (kUnpackS8 || a.w.layout != weight::Layout::kI8Channel);
}

static void LinearUnpacked(const LinearArgs& a) {
  UnpackedBlock b;
  for (int first = 0; first < a.rows; first += kBlockRows) {
    const int rows = a.rows - first < kBlockRows ? a.rows - first : kBlockRows;
    for (int panel = a.panel_begin; panel < a.panel_end; panel += kBlockPanels)
      UnpackedRows(a, b, first, rows, panel);
  }
}
