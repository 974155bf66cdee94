// SPDX-License-Identifier: Apache-2.0
// KV codecs: page layout to the byte, QServe's vectors, error bounds over many kinds of rows, rows that are
// broken, and pages made by an independent simulation. QServe's own encoder must be seen to fail.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <set>

#include "golden_hex.h"
#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::byte> Encode(const CodecInfo& c, PageShape s, const std::vector<float>& rows, int fill = 0) {
  std::vector<std::byte> page(size_t(c.page_bytes(s)), std::byte(fill));
  c.encode_page(s, rows.data(), page.data());
  return page;
}

std::vector<float> Decode(const CodecInfo& c, PageShape s, const std::vector<std::byte>& page) {
  std::vector<float> out(size_t(s.tokens * s.head_dim));
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d < s.head_dim; d += 8) c.decode8(s, page.data(), t, d, &out[size_t(t * s.head_dim + d)]);
  return out;
}

float RoundTo(DType raw, float x) {
  if (raw == DType::kF16) return HalfToFloat(FloatToHalf(x));
  if (raw == DType::kBF16) return Bf16ToFloat(FloatToBf16(x));
  return x;
}

// Rows as they come out of the tail: already in the raw type.
std::vector<float> RandomRows(PageShape s, DType raw, float mean, float sd, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, sd);
  std::vector<float> rows(size_t(s.tokens * s.head_dim));
  for (float& x : rows) x = RoundTo(raw, normal(random));
  return rows;
}

int Levels(const CodecInfo& c) { return c.id == CodecId::kInt8Token ? 255 : 15; }
uint16_t ScaleBits(const CodecInfo& c, PageShape s, const std::vector<std::byte>& page, int token) {
  return LoadU16(page.data() + c.page_bytes(s) - 4 * s.tokens + 2 * token);
}
uint16_t MinBits(const CodecInfo& c, PageShape s, const std::vector<std::byte>& page, int token) {
  return LoadU16(page.data() + c.page_bytes(s) - 2 * s.tokens + 2 * token);
}
int CodeAt(const CodecInfo& c, PageShape s, const std::vector<std::byte>& page, int token, int channel) {
  const int i = token * s.head_dim + channel;
  if (c.id == CodecId::kInt8Token) return int(page[size_t(i)]);
  return int(page[size_t(i / 2)]) >> (channel % 2 == 0 ? 0 : 4) & 15;
}

const CodecInfo& Int4() { return Get(CodecId::kInt4Token); }
const CodecInfo& Int8() { return Get(CodecId::kInt8Token); }

// docs/formats/kv_pages.md names every codec, its raw type, the bytes of a page of 64 x 128 and the bits a
// value:
// "| `flashq4` | f16 | ... | 4356 | 4.254 |". How many codecs the text describes rightly.
size_t CountDescribed(const std::string& text) {
  const PageShape s{128, 64};
  size_t described = 0;
  for (const CodecInfo& c : kRegistry) {
    const auto at = text.find(fmt::format("\n| `{}` | {} |", c.name,
                                          c.raw == DType::kF32   ? "f32"
                                          : c.raw == DType::kF16 ? "f16"
                                                                 : "bf16"));
    if (at == text.npos) continue;
    const std::string row = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
    const std::string bits = fmt::format("{:.3f}", 8.0 * c.page_bytes(s) / (64 * 128));
    std::string shortest = bits;
    while (shortest.back() == '0') shortest.pop_back();
    if (shortest.back() == '.') shortest.pop_back();
    described += row.ends_with(fmt::format(" | {} | {} |", c.page_bytes(s), shortest));
  }
  return described;
}

TEST(KvCodecTest, NamesAndSizesAreDocumented) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/docs/formats/kv_pages.md");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(CountDescribed(text), kRegistry.size());
  text.replace(text.find("| 4352 |"), 8, "| 4353 |");
  EXPECT_EQ(CountDescribed(text), kRegistry.size() - 1) << "a wrong size must be seen";
  std::set<std::string_view> names;
  for (const CodecInfo& c : kRegistry) {
    names.insert(c.name);
    EXPECT_EQ(Find(c.name), &c);
    EXPECT_EQ(&Get(c.id), &c) << "two codecs share a number";
  }
  EXPECT_EQ(names.size(), kRegistry.size());
  EXPECT_EQ(Find("int4_token"), nullptr);
  // QServe's page of 8 KV heads, 34816 bytes, is ours head by head.
  EXPECT_EQ(8 * Int4().page_bytes({128, 64}), 34816);
}

// Whatever the page held before, the same bytes come out, and none beyond PageBytes.
TEST(KvCodecTest, WritesEveryByteAndNoMore) {
  for (const CodecInfo& c : kRegistry)
    for (int head_dim : {8, 64, 80, 96, 128, 256, 1024}) {
      const PageShape s{head_dim, kPageTokens};
      EXPECT_EQ(c.page_bytes(s) % 4, 0);
      const auto rows = RandomRows(s, c.raw, 0, 1, uint32_t(head_dim));
      const auto page = Encode(c, s, rows, 0xAB);
      EXPECT_EQ(page, Encode(c, s, rows, 0x54)) << c.name << " " << head_dim;
      std::vector<std::byte> wide(page.size() + 64, std::byte{0x77});
      c.encode_page(s, rows.data(), wide.data());
      for (size_t i = page.size(); i < wide.size(); ++i) ASSERT_EQ(wide[i], std::byte{0x77}) << c.name;
    }
}

TEST(KvCodecTest, FloatPagesAreExact) {
  for (CodecId id : {CodecId::kF32, CodecId::kF16, CodecId::kBF16})
    for (int head_dim : {8, 80, 128}) {
      const CodecInfo& c = Get(id);
      const PageShape s{head_dim, kPageTokens};
      const auto rows = RandomRows(s, c.raw, 0.5f, 3, 9);
      EXPECT_EQ(Decode(c, s, Encode(c, s, rows)), rows) << c.name;
    }
}

// Vector F: a head of 8.
TEST(KvCodecTest, QServeVector) {
  const PageShape s{8, 1};
  std::vector<float> x = {.1f, -.8f, 1.5f, 0, .73f, -.33f, 2.2f, 1.01f};
  for (float& v : x) v = RoundTo(DType::kF16, v);
  const auto page = Encode(Int4(), s, x);
  const uint8_t want[] = {0x04, 0x4C, 0x28, 0x9F, 0x66, 0x32, 0x66, 0xBA};  // codes, scale 0x3266, min
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(page[i], std::byte(want[i])) << i;
  EXPECT_EQ(HalfToFloat(MinBits(Int4(), s, page, 0)), -.7998046875f);
  const auto back = Decode(Int4(), s, page);
  const float deq[] = {0, -.7998f, 1.5996f, 0, .7998f, -.3999f, 2.1992f, 1.0f};
  float worst = 0;
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(RoundTo(DType::kF16, back[i]), deq[i], 5e-5) << i;
    worst = std::max(worst, std::fabs(x[i] - back[i]));
  }
  EXPECT_LE(worst, .199951171875f / 2);
}

// Vector F, wrap case: the largest value must keep the largest code.
TEST(KvCodecTest, LargeMeanDoesNotWrap) {
  const PageShape s{8, 1};
  const std::vector<float> x = {16.9375f, 17.0625f, 17.1875f, 16.9375f,
                                16.9375f, 16.9375f, 16.9375f, 16.9375f};
  const auto page = Encode(Int4(), s, x);
  EXPECT_EQ(HalfToFloat(ScaleBits(Int4(), s, page, 0)), .01666259765625f);
  EXPECT_EQ(CodeAt(Int4(), s, page, 0, 0), 0);
  EXPECT_EQ(CodeAt(Int4(), s, page, 0, 1), 8);
  EXPECT_EQ(CodeAt(Int4(), s, page, 0, 2), 15);
  EXPECT_NEAR(Decode(Int4(), s, page)[2], 17.1875f, .0084f);
}

// Byte and nibble of (token 17, channel 5), scale and minimum, in a page of head_dim 128.
TEST(KvCodecTest, FieldsLieWhereDocumented) {
  const PageShape s{128, 64};
  std::vector<float> rows(size_t(s.tokens * s.head_dim), 0.0f);
  rows[17 * 128 + 5] = 15;
  rows[17 * 128 + 4] = -15;
  auto page = Encode(Int4(), s, rows);
  EXPECT_EQ(page[(17 * 128 + 5) / 2], std::byte{0xF0});
  EXPECT_EQ(LoadU16(&page[4096 + 34]), FloatToHalf(2.0f));
  EXPECT_EQ(LoadU16(&page[4224 + 34]), FloatToHalf(-15.0f));
  page = Encode(Int8(), s, rows);
  EXPECT_EQ(page[17 * 128 + 5], std::byte{255});
  EXPECT_EQ(page[17 * 128 + 4], std::byte{0});
  EXPECT_EQ(LoadU16(&page[8192 + 34]), FloatToHalf(30.0f / 255));
  EXPECT_EQ(LoadU16(&page[8320 + 34]), FloatToHalf(-15.0f));
}

// QServe's KV4 encoder as released (2.6.2 of its code): f16 zero point, no clamp. The broken variant.
float QServeRoundTrip(const float* x, int head_dim, float* back) {
  float lo = x[0], hi = x[0];
  for (int i = 0; i < head_dim; ++i) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
  }
  const float scale = RoundTo(DType::kF16, (hi - lo) / 15), zero = RoundTo(DType::kF16, -15 * lo / (hi - lo));
  for (int i = 0; i < head_dim; ++i) {
    const int code = int(std::nearbyint(x[i] * (1 / scale) + zero)) & 15;
    back[i] = float(code) * scale + RoundTo(DType::kF16, -scale * zero);
  }
  return scale;
}

// Vector F, QServe's own encoder on the wrap case: codes 0 8 16 before the mask, so the greatest value falls
// to the bottom.
TEST(KvCodecTest, QServeEncoderWraps) {
  const float x[] = {16.9375f, 17.0625f, 17.1875f};
  const float range = x[2] - x[0], scale = RoundTo(DType::kF16, range / 15);
  const float zero = RoundTo(DType::kF16, -15 * x[0] / range);
  EXPECT_EQ(scale, .01666259765625f);
  EXPECT_EQ(zero, -1016);
  const int raw[] = {0, 8, 16};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(int(std::nearbyint(x[i] * (1 / scale) + zero)), raw[i]);
  float back[3];
  QServeRoundTrip(x, 3, back);
  EXPECT_NEAR(back[2], 16.93, .01);
  const float head[] = {.1f, -.8f, 1.5f, 0, .73f, -.33f, 2.2f, 1.01f};  // its zero point, which ours is not
  EXPECT_EQ(RoundTo(DType::kF16, -15 * RoundTo(DType::kF16, head[1]) /
                                     (RoundTo(DType::kF16, head[6]) - RoundTo(DType::kF16, head[1]))),
            4.0f);
}

// Vector F, the page: QServe's holds all heads' codes, then all scales, then all zero points. Ours are the
// same parts by head, so eight of them regroup into one of its 34816 bytes.
TEST(KvCodecTest, QServePageIsOursRegrouped) {
  const PageShape s{128, kPageTokens};
  constexpr int kHeads = 8, kHead = 3, kToken = 17, kChannel = 5;
  std::vector<std::byte> codes, scales, zeros;
  for (int h = 0; h < kHeads; ++h) {
    std::vector<float> rows(size_t(s.tokens * s.head_dim), 0.0f);
    if (h == kHead) rows[kToken * 128 + kChannel] = 15, rows[kToken * 128 + kChannel + 1] = -15;
    const auto page = Encode(Int4(), s, rows);
    codes.insert(codes.end(), page.begin(), page.begin() + 4096);
    scales.insert(scales.end(), page.begin() + 4096, page.begin() + 4224);
    zeros.insert(zeros.end(), page.begin() + 4224, page.end());
  }
  std::vector<std::byte> page = codes;
  page.insert(page.end(), scales.begin(), scales.end());
  page.insert(page.end(), zeros.begin(), zeros.end());
  ASSERT_EQ(page.size(), 34816u);
  EXPECT_EQ(page[13378] >> 4, std::byte{15});  // (h3, t17, c5), the high nibble
  EXPECT_EQ(LoadU16(&page[33186]), FloatToHalf(2.0f));
  EXPECT_EQ(LoadU16(&page[34210]), FloatToHalf(-15.0f));
}

// |x - decoded| <= scale / 2 (B6), with room for the f32 rounding of the decoded value.
int CountOutside(const float* x, const float* back, int head_dim, float scale) {
  int outside = 0;
  for (int i = 0; i < head_dim; ++i)
    outside += !(std::fabs(x[i] - back[i]) <= scale * 0.5001f + std::fabs(x[i]) * 0x1p-23f);
  return outside;
}

TEST(KvCodecTest, ErrorIsAtMostHalfAStep) {
  const std::pair<float, float> kinds[] = {
      {0, 1},     {0, 100},   {50, .1f},      {100, .2f}, {-2000, 1},   {60000, 100}, {0, 1e-3f},
      {0, 1e-5f}, {0, 3e-7f}, {1e-4f, 1e-6f}, {0, 20000}, {-1, 0.001f}, {0.3f, 0.0f}};
  for (const CodecInfo& c : {Int4(), Int8()})
    for (int head_dim : {8, 64, 80, 96, 128, 256, 1024})
      for (const auto& [mean, sd] : kinds) {
        const PageShape s{head_dim, kPageTokens};
        auto rows = RandomRows(s, DType::kF16, mean, sd, 77);
        for (float& x : rows) x = std::fmin(std::fmax(x, -kHalfMax), kHalfMax);
        const auto page = Encode(c, s, rows);
        const auto back = Decode(c, s, page);
        for (int t = 0; t < s.tokens; ++t) {
          const float scale = HalfToFloat(ScaleBits(c, s, page, t));
          ASSERT_GT(scale, 0);
          ASSERT_EQ(CountOutside(&rows[size_t(t * head_dim)], &back[size_t(t * head_dim)], head_dim, scale),
                    0)
              << c.name << " head_dim " << head_dim << " mean " << mean << " sd " << sd << " token " << t;
        }
      }
}

TEST(KvCodecTest, QServeEncoderBreaksTheBound) {
  const PageShape s{128, kPageTokens};
  int broken = 0, fine = 0;
  for (float mean : {0.0f, 50.0f}) {
    const auto rows = RandomRows(s, DType::kF16, mean, mean == 0 ? 1.0f : 0.1f, 3);
    std::vector<float> back(128);
    for (int t = 0; t < s.tokens; ++t) {
      const float scale = QServeRoundTrip(&rows[size_t(t * 128)], 128, back.data());
      // Twice the bound: its f16 zero point alone costs up to half a step at this mean.
      (mean == 0 ? fine : broken) += CountOutside(&rows[size_t(t * 128)], back.data(), 128, 2 * scale);
    }
  }
  EXPECT_EQ(fine, 0);
  EXPECT_GT(broken, 0) << "the wrap of the largest code must be seen";
}

// The extremes of a row take the extreme codes (B6) wherever the scale is a normal f16.
TEST(KvCodecTest, ExtremesTakeExtremeCodes) {
  const PageShape s{128, kPageTokens};
  for (const CodecInfo& c : {Int4(), Int8()})
    for (float mean : {0.0f, 50.0f, -300.0f}) {
      const auto rows = RandomRows(s, DType::kF16, mean, 2, 21);
      const auto page = Encode(c, s, rows);
      for (int t = 0; t < s.tokens; ++t) {
        const float* x = &rows[size_t(t * 128)];
        const auto lo = std::min_element(x, x + 128) - x, hi = std::max_element(x, x + 128) - x;
        EXPECT_EQ(CodeAt(c, s, page, t, int(lo)), 0);
        EXPECT_EQ(CodeAt(c, s, page, t, int(hi)), Levels(c));
        EXPECT_EQ(HalfToFloat(MinBits(c, s, page, t)), x[lo]) << "the minimum is stored exactly";
      }
    }
}

TEST(KvCodecTest, ConstantRowsAreExact) {
  for (const CodecInfo& c : {Int4(), Int8()})
    for (float value : {0.0f, -0.0f, 1.0f, -17.25f, 65504.0f, 0x1p-24f}) {
      const PageShape s{64, 2};
      const std::vector<float> rows(128, value);
      const auto page = Encode(c, s, rows);
      EXPECT_EQ(Decode(c, s, page), rows) << c.name << " " << value;
      EXPECT_EQ(ScaleBits(c, s, page, 0), 1);
    }
}

// A row that f16 cannot hold decodes as NaN throughout, with fixed bytes; its neighbours are untouched.
TEST(KvCodecTest, BrokenRowsAreDefined) {
  const PageShape s{64, 3};
  for (const CodecInfo& c : {Int4(), Int8()})
    for (float bad : {kNan, -kNan, kInf, -kInf, 70000.0f, -1e30f})
      for (int at : {0, 7, 63}) {
        auto rows = RandomRows(s, DType::kF16, 0, 1, 4);
        const auto good = Decode(c, s, Encode(c, s, rows));
        rows[size_t(64 + at)] = bad;
        const auto page = Encode(c, s, rows);
        const auto back = Decode(c, s, page);
        for (int i = 0; i < 64; ++i) {
          ASSERT_TRUE(std::isnan(back[size_t(64 + i)])) << c.name << " " << bad;
          ASSERT_EQ(CodeAt(c, s, page, 1, i), 0);
          ASSERT_EQ(back[size_t(i)], good[size_t(i)]);
          ASSERT_EQ(back[size_t(128 + i)], good[size_t(128 + i)]);
        }
        EXPECT_EQ(ScaleBits(c, s, page, 1), 0x0001);
        EXPECT_EQ(MinBits(c, s, page, 1), 0x7e00);
      }
}

// Which of +0 and -0 comes first leaves no trace, so a vector kernel may look in any order.
TEST(KvCodecTest, SignOfZeroLeavesNoTrace) {
  const PageShape s{8, 1};
  for (const CodecInfo& c : {Int4(), Int8()}) {
    const auto a = Encode(c, s, {0.0f, -0.0f, 1, 2, 3, 4, 5, 6});
    EXPECT_EQ(a, Encode(c, s, {-0.0f, 0.0f, 1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(MinBits(c, s, a, 0), 0);
  }
}

TEST(KvCodecTest, MatchesIndependentSimulation) {
  const auto golden = ReadGolden("quant.json");
  int pages = 0;
  for (const auto& entry : golden["pages"]) {
    const PageShape s{entry["head_dim"].get<int>(), entry["tokens"].get<int>()};
    const auto rows = FromHex<float>(entry["rows"].get<std::string>());
    ASSERT_EQ(rows.size(), size_t(s.tokens * s.head_dim));
    for (const auto& [name, hex] : entry["codecs"].items()) {
      const CodecInfo* c = Find(name);
      ASSERT_NE(c, nullptr);
      const auto want = FromHex<std::byte>(hex.get<std::string>());
      EXPECT_EQ(Encode(*c, s, rows), want) << name << " head_dim " << s.head_dim;
      ++pages;
    }
  }
  EXPECT_EQ(pages, 4);
}

}  // namespace
}  // namespace nibble::kv
