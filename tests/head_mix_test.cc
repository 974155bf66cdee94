// SPDX-License-Identifier: Apache-2.0
// Precision by head (quant/kv/head_mix.h) against its definition in kernels/ref: the priority of a page,
// which heads get 2 bits, and where the pages of a row lie. A priority without its gap must be seen.
#include "quant/kv/head_mix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/ref/flashq.h"

namespace nibble::kv {
namespace {

std::vector<HeadPlace> PlacesOf(const std::vector<double>& priority, int two_bit) {
  std::vector<HeadPlace> places(priority.size());
  for (size_t h = 0; h < places.size(); ++h) places[h].priority = priority[h];
  PlaceByPriority(places, two_bit);
  return places;
}
std::vector<bool> TwoBits(const std::vector<HeadPlace>& places) {
  std::vector<bool> two;
  for (const HeadPlace& p : places) two.push_back(p.two_bit != 0);
  return two;
}

// Vector T5 of the definition's own test, in the channels there are: a head has 8 or more, and the vector's 4
// stand twice, which changes no gap and no standard deviation.
TEST(HeadMix, VectorOfTwoHeads) {
  const std::vector<float> four[] = {{.1f, -.2f, .3f, 0, .4f, .1f, -.1f, .2f, -.3f, .2f, .1f, -.2f},
                                     {.1f, -2, .3f, 0, .4f, 3, -.1f, .2f, -.3f, .5f, .1f, -.2f}};
  const double want[] = {.090933, 9.762012};
  std::vector<double> priority;
  for (int h = 0; h < 2; ++h) {
    std::vector<float> rows;
    for (int t = 0; t < 3; ++t)
      for (int d = 0; d < 8; ++d) rows.push_back(four[h][size_t(t * 4 + d % 4)]);
    priority.push_back(HeadPriority({.head_dim = 8, .tokens = 3}, rows.data()));
    EXPECT_NEAR(priority.back(), want[h], 1e-6);
  }
  EXPECT_EQ(TwoBits(PlacesOf(priority, 1)), (std::vector<bool>{true, false}));
}

// Pages as models have them: channels of very different width, some constant.
std::vector<float> RandomPage(std::mt19937& random, int tokens, int dim) {
  std::normal_distribution<float> normal;
  std::vector<float> scale, rows;
  for (int d = 0; d < dim; ++d) scale.push_back(d % 11 == 3 ? 0 : std::exp(1.5f * normal(random)));
  for (int i = 0; i < tokens * dim; ++i) rows.push_back(scale[size_t(i % dim)] * normal(random) + 0.5f);
  return rows;
}

double Reference(const std::vector<float>& rows, int tokens, int dim) {
  ref::Matrix page(tokens, dim);
  for (int t = 0; t < tokens; ++t)
    for (int d = 0; d < dim; ++d) page[t][d] = double(rows[size_t(t * dim + d)]);
  return ref::HeadPriority(page);
}

TEST(HeadMix, PriorityIsTheDefinitions) {
  std::mt19937 random(5);
  for (const int dim : {8, 64, 80, 128, 1024})
    for (const int tokens : {1, 3, 64}) {
      const std::vector<float> rows = RandomPage(random, tokens, dim);
      const double got = HeadPriority({.head_dim = dim, .tokens = tokens}, rows.data());
      EXPECT_DOUBLE_EQ(got, Reference(rows, tokens, dim)) << dim << " " << tokens;
    }
}

TEST(HeadMix, PriorityScalesAndForgetsTheOrderOfTokens) {
  std::mt19937 random(6);
  const PageShape shape{.head_dim = 64, .tokens = 64};
  std::vector<float> rows = RandomPage(random, 64, 64);
  const double priority = HeadPriority(shape, rows.data());
  std::vector<float> twice, backwards;
  for (const float x : rows) twice.push_back(2 * x);
  for (int t = 64; t-- > 0;)
    backwards.insert(backwards.end(), rows.begin() + t * 64, rows.begin() + (t + 1) * 64);
  EXPECT_EQ(HeadPriority(shape, twice.data()), 4 * priority) << "a gap times a deviation";
  EXPECT_EQ(HeadPriority(shape, backwards.data()), priority);
  EXPECT_EQ(HeadPriority(shape, std::vector<float>(64 * 64, 3.0f).data()), 0);
  rows[77] = NAN;
  EXPECT_EQ(HeadPriority(shape, rows.data()), INFINITY) << "a broken head keeps 4 bits";
}

// The deviation of channel gaps alone orders other heads first: the test of the order can fail.
TEST(HeadMix, HeadsAreTheDefinitions) {
  std::mt19937 random(7);
  int missed = 0;
  for (int round = 0; round < 200; ++round) {
    const int heads = 1 + int(random() % 12), two_bit = int(random() % unsigned(heads + 1));
    std::vector<double> priority, broken;
    for (int h = 0; h < heads; ++h) {
      priority.push_back(double(random() % 5));  // many are equal
      broken.push_back(double(random() % 5));
    }
    const std::vector<bool> want = ref::TwoBitHeads(priority, two_bit);
    EXPECT_EQ(TwoBits(PlacesOf(priority, two_bit)), want);
    missed += TwoBits(PlacesOf(broken, two_bit)) != want;
  }
  EXPECT_GT(missed, 100) << "other priorities give other heads";
}

TEST(HeadMix, PagesOfARowFillItWithoutOverlap) {
  const CodecInfo& codec = Get(CodecId::kFlashQMixed);
  const PageShape page{.head_dim = 80, .tokens = kPageTokens};
  const int bytes[] = {codec.pool_bytes(page), Get(codec.two_bit).pool_bytes(page)};
  ASSERT_LT(bytes[1], bytes[0]);
  std::mt19937 random(8);
  for (int round = 0; round < 100; ++round) {
    const int heads = 1 + int(random() % 9), two_bit = int(random() % unsigned(heads + 1));
    std::vector<double> priority;
    for (int h = 0; h < heads; ++h) priority.push_back(double(random()));
    const std::vector<HeadPlace> places = PlacesOf(priority, two_bit);
    int64_t at = 0;
    for (int h = 0; h < heads; ++h) {
      EXPECT_EQ(RowBytes(codec, page, h, places[size_t(h)].two_bit_before), at);
      at += bytes[places[size_t(h)].two_bit];
    }
    EXPECT_EQ(RowBytes(codec, page, heads, two_bit), at) << "the same whichever heads have 2 bits";
  }
  for (const CodecInfo& c : kRegistry)
    EXPECT_EQ(RowBytes(c, page, 3, 0), 3 * int64_t{c.pool_bytes(page)}) << c.name;
}

}  // namespace
}  // namespace nibble::kv
