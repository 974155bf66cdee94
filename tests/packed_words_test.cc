// SPDX-License-Identifier: Apache-2.0
// Four-bit codes as GPU registers have them: vectors B, C, E, G and M (the lane) and invariants B3 and B4 of
// the sage_qserve notes. QServe's own order of scales and a subtraction before the multiplication are the
// broken variants.
#include "quant/weight/packed_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "kernels/ref/sage_quantize.h"
#include "quant/weight/fragment.h"

namespace nibble::weight {
namespace {

using Bytes = std::array<int, 4>;

uint32_t Word(const int* codes) {
  return uint32_t(codes[0]) | uint32_t(codes[1]) << 8 | uint32_t(codes[2]) << 16 | uint32_t(codes[3]) << 24;
}
Bytes SignedBytes(uint32_t word) {
  Bytes b;
  for (size_t i = 0; i < 4; ++i) b[i] = int8_t(word >> (8 * i));
  return b;
}

TEST(PackedWords, VectorB_ProgressiveBytes) {
  EXPECT_EQ(ProgressiveBytes(0x0E08050A, 16, 7), 0x7010E030u);
  EXPECT_EQ(ProgressiveBytes(0x02090700, 16, 7), 0xB0200090u);
  EXPECT_EQ(ProgressiveBytes(0x0800020F, 9, 2), 0x36EE0075u);
  EXPECT_EQ(ProgressiveBytes(0x060D0205, 9, 2), 0x2463001Bu);
  EXPECT_EQ(SignedBytes(0x7010E030), (Bytes{48, -32, 16, 112}));
  EXPECT_EQ(SignedBytes(0xB0200090), (Bytes{-112, 0, 32, -80}));
  // The zero point before the multiplication: -2 * 16 borrows from the next byte.
  const uint32_t before = AddBytes(0x0E08050A, uint8_t(-7) * kEveryByte) * 16;
  EXPECT_NE(before, 0x7010E030u);
}

struct LiquidRow {
  int q8[8], scale, offset, u[8], decoded[8];
  uint32_t codes[2], sums[2], bytes[2];
};
constexpr LiquidRow kVectorC[] = {{{50, -25, 10, 119, -119, 0, 33, -77},
                                   16,
                                   9,
                                   {11, 6, 8, 15, 0, 7, 10, 3},
                                   {57, -23, 9, 121, -119, -7, 41, -71},
                                   {0x0F08060B, 0x030A0700},
                                   {0xF98969B9, 0x39A97909},
                                   {0x7909E939, 0xB929F989}},
                                  {{119, 1, -20, 50, 25, -3, 95, 35},
                                   9,
                                   108,
                                   {15, 2, 0, 8, 5, 2, 13, 6},
                                   {115, -2, -20, 52, 25, -2, 97, 34},
                                   {0x0800020F, 0x060D0205},
                                   {0xB46C7EF3, 0xA2E17E99},
                                   {0x34ECFE73, 0x2261FE19}}};

TEST(PackedWords, VectorC_LiquidQuant) {
  for (const LiquidRow& row : kVectorC) {
    const auto [lo, hi] = std::minmax_element(row.q8, row.q8 + 8);
    const LiquidParams p = FitLiquid(*lo, *hi);
    EXPECT_EQ(p.scale, row.scale);
    EXPECT_EQ(p.offset, row.offset);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(LiquidCode(row.q8[i], p), row.u[i]) << i;
    for (int j = 0; j < 2; ++j) {
      EXPECT_EQ(Word(row.u + 4 * j), row.codes[j]);
      EXPECT_EQ(LiquidSums(row.codes[j], p), row.sums[j]);
      EXPECT_EQ(LiquidBytes(row.codes[j], p), row.bytes[j]);
      const Bytes bytes = SignedBytes(row.bytes[j]);
      for (int i = 0; i < 4; ++i) EXPECT_EQ(bytes[size_t(i)], row.decoded[4 * j + i]);
    }
  }
  const LiquidParams paper = FitLiquid(-104, 119);
  EXPECT_EQ(paper.scale, 15);
  EXPECT_EQ(paper.offset, 24);
  EXPECT_EQ(LiquidCode(119, paper), 15);
  EXPECT_EQ(LiquidSums(15, paper) & 0xff, 0xF9u);
  EXPECT_EQ(LiquidBytes(15, paper) & 0xff, 0x79u);
}

TEST(PackedWords, VectorC_ScaleSelection) {
  const struct {
    int range, scale, cut;  // cut: what the greatest code lacks
  } cases[] = {{15, 1, 0}, {22, 1, 7}, {23, 2, -1}, {37, 2, 7}, {38, 3, -1}, {238, 16, -2}};
  for (const auto& c : cases) {
    const int lo = -119, hi = lo + c.range;
    const LiquidParams p = FitLiquid(lo, hi);
    EXPECT_EQ(p.scale, c.scale) << c.range;
    EXPECT_EQ(hi - (LiquidCode(hi, p) * p.scale + lo), c.cut) << c.range;
  }
}

// B3 over every group that level 1 can hand over: 9 <= u * s + a <= 254, so no byte carries, and the flipped
// top bit gives u * s + lo.
TEST(PackedWords, B3_LiquidSumsStayInAByte) {
  int cut = 0, least = 255, greatest = 0;
  for (int lo = -119; lo <= 119; ++lo)
    for (int hi = lo; hi <= 119; ++hi) {
      const LiquidParams p = FitLiquid(lo, hi);
      ASSERT_TRUE(p.scale >= 1 && p.scale <= 16 && p.offset >= 9 && p.offset <= 247);
      for (int q = lo; q <= hi; ++q) {
        const int u = LiquidCode(q, p), sum = u * p.scale + p.offset;
        least = std::min(least, sum), greatest = std::max(greatest, sum);
        cut += RoundToInt(float(q - lo) / float(p.scale)) > 15;
        const int top = LiquidCode(hi, p), codes[] = {u, top, 0, u};
        ASSERT_EQ(SignedBytes(LiquidBytes(Word(codes), p)),
                  (Bytes{u * p.scale + lo, top * p.scale + lo, lo, u * p.scale + lo}));
      }
    }
  EXPECT_EQ(least, 9);
  EXPECT_EQ(greatest, 254);
  EXPECT_EQ(cut, 27888);  // as the notes count them
}

TEST(PackedWords, VectorG_NibblesToHalves) {
  const HalfPairs halves = NibblesToHalves(0x76543210);
  const uint32_t want[] = {0x64046400, 0x64506410, 0x64066402, 0x64706430};
  const float values[][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(halves.pair[i], want[i]) << i;
    for (int side = 0; side < 2; ++side) EXPECT_EQ(HalfPairValue(halves, i, side), values[i][side]);
  }
  EXPECT_EQ(kAndOr, 0xEA);
  constexpr int kOrder[] = {0, 4, 1, 5, 2, 6, 3, 7};
  uint32_t word = 12345;
  for (int trial = 0; trial < 20000; ++trial) {
    word = word * 1664525u + 1013904223u;
    const HalfPairs h = NibblesToHalves(word);
    for (int i = 0; i < 8; ++i)
      ASSERT_EQ(HalfPairValue(h, i / 2, i % 2), float(word >> (4 * kOrder[i]) & 15)) << std::hex << word;
  }
}

TEST(PackedWords, Lop3IsItsTable) {
  const uint32_t a = 0xF0F0F0F0, b = 0xCCCCCCCC, c = 0xAAAAAAAA;
  for (int table = 0; table < 256; ++table) EXPECT_EQ(Lop3(a, b, c, table), uint32_t(table) * kEveryByte);
}

using Codes = uint8_t[kTile][kTile];
using Lanes = uint8_t[kLanes][kLaneBytes];

TEST(Fragment, VectorE_WeightPack) {
  Codes w;
  for (int n = 0; n < kTile; ++n)
    for (int k = 0; k < kTile; ++k) w[n][k] = uint8_t((3 * n + 5 * k) % 16);
  Lanes lanes;
  PackTile(w, lanes);
  const struct {
    int lane;
    uint8_t half[8];  // the pattern repeats after eight bytes
  } want[] = {{0, {0x00, 0x55, 0xAA, 0xFF, 0x88, 0xDD, 0x22, 0x77}},
              {1, {0x44, 0x99, 0xEE, 0x33, 0xCC, 0x11, 0x66, 0xBB}},
              {4, {0x33, 0x88, 0xDD, 0x22, 0xBB, 0x00, 0x55, 0xAA}},
              {31, {0x11, 0x66, 0xBB, 0x00, 0x99, 0xEE, 0x33, 0x88}}};
  for (const auto& v : want)
    for (int i = 0; i < kLaneBytes; ++i) EXPECT_EQ(lanes[v.lane][i], v.half[i % 8]) << v.lane << " " << i;
  const struct {
    int n, k, lane, byte;
    bool high;
  } places[] = {{16, 0, 0, 0, true}, {8, 0, 0, 4, false},     {0, 16, 0, 8, false},
                {1, 4, 5, 0, false}, {13, 21, 21, 13, false}, {31, 31, 31, 15, true}};
  for (const auto& p : places) {
    const TilePlace got = PlaceInTile(p.n, p.k);
    EXPECT_EQ(got.lane, p.lane);
    EXPECT_EQ(got.byte, p.byte);
    EXPECT_EQ(got.high, p.high);
  }
  const int order[] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                       4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};
  for (int i = 0; i < 32; ++i) EXPECT_EQ(OutputOfScale(i), order[i]);
  // deepcompressor's exporter has 0 8 1 9 ... 7 15 16 24 ...; a lane would then read the scales of others.
  EXPECT_NE(order[2], 1);
}

// B4, on a pattern without a period: nothing is lost, and a lane finds in its words what it multiplies.
TEST(Fragment, B4_PackingIsABijection) {
  std::set<std::array<int, 3>> places;
  Codes w;
  for (int n = 0; n < kTile; ++n)
    for (int k = 0; k < kTile; ++k) {
      const TilePlace p = PlaceInTile(n, k);
      places.insert({p.lane, p.byte, p.high});
      w[n][k] = uint8_t((n * n * 7 + n * 3 + k * 5 + k * k * 11 + k / 16 + n / 16) & 15);
    }
  EXPECT_EQ(places.size(), 1024u);
  Lanes lanes;
  PackTile(w, lanes);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t words[4];
    std::memcpy(words, lanes[lane], sizeof words);
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(OutputOfScale(lane / 4 * 4 + j), lane / 4 + 8 * j) << "the scales of a lane are one word";
      for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 4; ++i)
          EXPECT_EQ(FragmentOfLane(words, j, half) >> (8 * i) & 0xff,
                    w[lane / 4 + 8 * j][16 * half + 4 * (lane % 4) + i]);
    }
  }
}

TEST(Fragment, VectorM_AccumulatorsOfALane) {
  std::set<int> rows, columns;
  for (int i = 0; i < 4; ++i) {
    rows.insert(AccumulatorCell(13, i).row);
    columns.insert(AccumulatorCell(13, i).column);
  }
  EXPECT_EQ(rows, (std::set<int>{3, 11}));
  EXPECT_EQ(columns, (std::set<int>{2, 3}));
  // All that a lane holds of a 32 x 64 tile of scores has one scale of Q and one of K.
  const ref::RowGroups q = ref::QueryGroups(ref::Granularity::kThread),
                       k = ref::KeyGroups(ref::Granularity::kThread);
  std::set<std::pair<int, int>> cells;
  for (int lane = 0; lane < kLanes; ++lane) {
    std::set<int> q_scales, k_scales;
    for (int row_tile = 0; row_tile < 2; ++row_tile)
      for (int column_tile = 0; column_tile < 8; ++column_tile)
        for (int i = 0; i < 4; ++i) {
          const TileCell c = AccumulatorCell(lane, i);
          q_scales.insert(q.Of(16 * row_tile + c.row));
          k_scales.insert(k.Of(8 * column_tile + c.column));
          cells.insert({16 * row_tile + c.row, 8 * column_tile + c.column});
        }
    EXPECT_EQ(q_scales, std::set<int>{lane / 4});
    EXPECT_EQ(k_scales, std::set<int>{lane % 4});
  }
  EXPECT_EQ(cells.size(), 32u * 64u);
}

}  // namespace
}  // namespace nibble::weight
