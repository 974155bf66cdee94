// SPDX-License-Identifier: Apache-2.0
// Attention: every ISA, codec and shape against the double-precision definition on the same bytes, bitwise
// independence of the rows of a call, and a scalar online softmax whose seeded mistakes the tolerance must
// catch.
#include "attention_problem.h"

namespace nibble {
namespace {

using kv::CodecId;
using test::MakeCache;
using test::Problem;
using test::Shape;

// Outputs are of order 1 (often less, as averages of V); scores of order 2 to 10 carry f32 errors of a few
// 1e-7.
constexpr double kDifference = 1e-12, kMaxAbs = 5e-6;

// Where codes meet integers, a weight that is near the middle of two of its 15-bit codes may take the other
// one: 2^-15 of the page's greatest, times codes that reach over the range of a row, some 8 here.
struct Bounds {
  double difference, max_abs;
};
Bounds BoundsOf(const Shape& s) {
  if (test::MeetsIntegers(s.k, s.head_dim) || test::MeetsIntegers(s.v, s.head_dim)) return {1e-9, 2.5e-4};
  return {kDifference, kMaxAbs};
}

void RunAll(const Shape& s) {
  Problem p(s);
  const std::vector<double> want = p.Reference();
  const Bounds bounds = BoundsOf(s);
  for (const auto* isa : test::Isas()) {
    isa->attention(p.args);
    EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want), bounds.difference, bounds.max_abs))
        << isa->isa << " " << isa->attention_name(s.k, s.v) << " head_dim " << s.head_dim << " group "
        << s.group << " position " << s.position << " rows " << s.rows << " window " << s.window;
    EXPECT_TRUE(p.out.Intact() && p.scratch.Intact()) << isa->isa;
  }
}

TEST(Attention, PositionsGroupsWindows) {
  for (const int64_t position : {0, 1, 63, 64, 65, 127, 200})
    for (const int group : {1, 2, 4, 7})
      for (const int64_t window : {0, 1, 16, 64, 65, 100})
        for (const int rows : {1, 5, 64})
          RunAll({64, group, position, std::min(rows, 64 - int(position % 64)), window, CodecId::kF32,
                  CodecId::kF32});
}

// Each codec for K and for V, with itself, with f32 and with another of its neighbourhood.
TEST(Attention, PairsOfCodecs) {
  const size_t count = kv::kRegistry.size();
  for (size_t i = 0; i < count; ++i) {
    const CodecId codec = kv::kRegistry[i].id, next = kv::kRegistry[(i + 1) % count].id;
    for (const auto& [k, v] : {std::pair{codec, codec}, std::pair{codec, CodecId::kF32},
                               std::pair{CodecId::kF32, codec}, std::pair{codec, next}})
      for (const int64_t position : {40, 150}) RunAll({64, 2, position, 24, 0, k, v});
  }
}

TEST(Attention, HeadSizes) {
  for (const auto& codec : kv::kRegistry)
    for (const int head_dim : {8, 16, 24, 40, 72, 80, 96, 128, 136, 256})
      for (const int rows : {1, 9}) RunAll({head_dim, 3, 130, rows, 70, codec.id, codec.id});
}

TEST(Attention, RowDoesNotDependOnTheOthers) {
  for (const auto& codec : kv::kRegistry) {
    for (const int64_t window : {0, 1, 16, 100}) {
      for (const int head_dim : {72, 128}) {
        Problem p({head_dim, 3, 192, 64, window, codec.id, codec.id});
        for (const auto* isa : test::Isas()) {
          isa->attention(p.args);
          for (const int count : {1, 2, 7, 33}) {
            std::vector<float> apart(p.out.size(), NAN);
            for (int row = 0; row < 64; row += count)
              p.RunSlice(*isa, row, std::min(count, 64 - row), apart.data());
            EXPECT_TRUE(test::SameBits(apart.data(), p.out.data(), apart.size()))
                << isa->isa << " " << codec.name << " window " << window << " rows " << count;
          }
        }
      }
    }
  }
}

// A head of a group gives the same bits as that head alone.
TEST(Attention, HeadDoesNotDependOnTheGroup) {
  const int head_dim = 80, group = 7, rows = 10;
  Problem p({head_dim, group, 100, rows, 0, CodecId::kF16, CodecId::kInt4Token});
  for (const auto* isa : test::Isas()) {
    isa->attention(p.args);
    for (int g = 0; g < group; ++g) {
      std::vector<float> alone(size_t(rows * head_dim));
      AttentionArgs a = p.args;
      a.group = 1;
      a.q += g * head_dim;
      a.out = alone.data();
      a.out_stride = head_dim;
      isa->attention(a);
      for (int r = 0; r < rows; ++r)
        EXPECT_TRUE(test::SameBits(&alone[size_t(r * head_dim)],
                                   p.out.data() + r * p.args.out_stride + g * head_dim, size_t(head_dim)))
            << isa->isa;
    }
  }
}

TEST(Attention, PageList) {
  Problem p({64, 2, 200, 3, 0, CodecId::kInt8Token, CodecId::kF16});
  const std::vector<double> all = p.Reference();
  for (const auto* isa : test::Isas()) {
    p.args.page_list = nullptr;
    isa->attention(p.args);
    const std::vector<float> unlisted(p.out.data(), p.out.data() + p.out.size());
    const int32_t list[] = {0, 1, 2};
    p.args.page_list = list;
    p.args.list_len = 3;
    isa->attention(p.args);
    EXPECT_TRUE(test::SameBits(unlisted.data(), p.out.data(), unlisted.size())) << isa->isa;
    const int32_t some[] = {0, 2};
    p.args.page_list = some;
    p.args.list_len = 2;
    isa->attention(p.args);
    const Bounds b = BoundsOf({.head_dim = 64, .k = CodecId::kInt8Token, .v = CodecId::kF16});
    EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(p.Reference()), b.difference, b.max_abs)) << isa->isa;
    EXPECT_FALSE(test::Within(p.ErrorAgainst(all), b.difference, b.max_abs))
        << "page 1 was read all the same";
  }
}

// Blocks of pages made apart give the bits of one call, and their order matters.
TEST(Attention, BlocksMadeApart) {
  const int64_t position = 64 * (2 * kAttentionBlockPages + 3) + 5;
  for (const int64_t window : {0, 64 * (kAttentionBlockPages + 7)}) {
    Problem p({64, 3, position, 1, window, CodecId::kInt4Token, CodecId::kFlashQ4});
    for (const auto* isa : test::Isas()) {
      p.args.states = nullptr;
      isa->attention(p.args);
      // Each block has a maximum of its own, and weights relative to it: other codes than in one pass.
      const double max_abs =
          BoundsOf({.head_dim = 64, .k = CodecId::kInt4Token, .v = CodecId::kFlashQ4}).max_abs;
      EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(p.Reference()), 1e-7, max_abs)) << isa->isa;
      const std::vector<float> whole(p.out.data(), p.out.data() + p.out.size());
      const size_t size = size_t(AttentionStateFloats(1, 3, p.page));
      std::vector<float> states(3 * size, NAN);
      for (const int block : {2, 0, 1}) isa->attention_block(p.args, block, &states[size_t(block) * size]);
      p.args.states = states.data();
      isa->attention(p.args);
      EXPECT_TRUE(test::SameBits(whole.data(), p.out.data(), whole.size())) << isa->isa;
      std::copy_n(states.begin(), size, states.begin() + int64_t(size));
      isa->attention(p.args);
      EXPECT_FALSE(test::SameBits(whole.data(), p.out.data(), whole.size())) << isa->isa;
    }
  }
}

// A query that 16 bits hold meets codes without any loss, whatever the shape: the scores are those of f32.
TEST(Attention, QueriesOfSixteenBitsAreExact) {
  for (const CodecId codec : {CodecId::kInt8Token, CodecId::kInt4Token})
    for (const int head_dim : {64, 80, 128, 256})
      for (const int group : {1, 3, 4}) {
        Problem p({head_dim, group, 64 * 5 + 9, 2, 0, codec, CodecId::kF32});
        std::vector<float> on_grid = p.q;
        for (size_t i = 0; i < on_grid.size(); ++i)
          on_grid[i] = i % size_t(head_dim) == 7
                           ? 32767.0f / 4096
                           : std::clamp(std::round(on_grid[i] * 4096) / 4096, -7.0f, 7.0f);
        p.args.q = on_grid.data();
        for (const auto* isa : test::Isas()) {
          isa->attention(p.args);
          EXPECT_TRUE(
              test::IsWithin(p.ErrorAgainst(p.Reference(nullptr, ref::CodePages::kDecoded)), 1e-11, 2e-5))
              << isa->isa << " " << head_dim;
        }
      }
}

// Weights meet codes as integers of 15 bits: with equal scores they are all the same integer, and the output
// is the mean of the decoded rows.
TEST(Attention, EqualWeightsAreExact) {
  for (const CodecId codec : {CodecId::kFlashQ4, CodecId::kFlashQ2})
    for (const int head_dim : {64, 80, 128}) {
      Problem p({head_dim, 4, 64 * 5 + 9, 1, 0, CodecId::kF32, codec});
      const std::vector<float> zeros(p.q.size(), 0.0f);
      p.args.q = zeros.data();
      for (const auto* isa : test::Isas()) {
        isa->attention(p.args);
        EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(p.Reference(nullptr, ref::CodePages::kDecoded)),
                                   kDifference, kMaxAbs))
            << isa->isa;
      }
    }
}

TEST(Attention, Names) {
  for (const auto* isa : test::Isas()) {
    EXPECT_STREQ(isa->attention_name(CodecId::kInt4Token, CodecId::kInt4Token), "tiled-flash/int4-token");
    EXPECT_STREQ(isa->attention_name(CodecId::kF16, CodecId::kInt8Token), "tiled-flash/k=f16,v=int8-token");
  }
}

enum class Fault {
  kNone,
  kSeesNext,
  kMissesSelf,
  kWindowWider,
  kWindowNarrower,
  kNoRescale,
  kOtherHead,
  kNoScale
};

// A scalar online softmax over the f32 cache of a problem, with a mistake seeded in.
void ScalarAttention(const Problem& p, Fault fault, float* out) {
  const AttentionArgs& a = p.args;
  const int dim = a.page.head_dim;
  for (int e = 0; e < a.rows * a.group; ++e) {
    const int64_t position = a.position + e / a.group, window = a.window;
    const float* q = a.q + (fault == Fault::kOtherHead ? e ^ 1 : e) * dim;
    int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0, last = position;
    if (fault == Fault::kSeesNext) ++last;
    if (fault == Fault::kMissesSelf) --last;
    if (fault == Fault::kWindowWider) --first;
    if (fault == Fault::kWindowNarrower) ++first;
    float max = -INFINITY, sum = 0;
    std::vector<float> acc(size_t(dim), 0.0f);
    for (int64_t t = first; t <= last; ++t) {
      const bool sealed = t / 64 < a.pages;
      const float* k = reinterpret_cast<const float*>(sealed ? a.k_pages[t / 64] : a.k_raw) + t % 64 * dim;
      const float* v = reinterpret_cast<const float*>(sealed ? a.v_pages[t / 64] : a.v_raw) + t % 64 * dim;
      float score = 0;
      for (int d = 0; d < dim; ++d) score += q[d] * k[d];
      if (fault != Fault::kNoScale) score *= a.scale;
      const float top = std::max(max, score), fix = fault == Fault::kNoRescale ? 1.0f : std::exp(max - top);
      const float weight = std::exp(score - top);
      for (int d = 0; d < dim; ++d) acc[size_t(d)] = acc[size_t(d)] * fix + weight * v[d];
      sum = sum * fix + weight;
      max = top;
    }
    for (int d = 0; d < dim; ++d) out[e * dim + d] = acc[size_t(d)] / sum;
  }
}

TEST(Attention, BrokenVariantsAreCaught) {
  Problem p({64, 2, 170, 8, 100, CodecId::kF32, CodecId::kF32});
  // One more raw token than the rows need, so that seeing too far reads a number.
  p.k = MakeCache(kv::Get(CodecId::kF32), p.page, 2, 64, 100);
  p.v = MakeCache(kv::Get(CodecId::kF32), p.page, 2, 64, 200);
  p.args.k_pages = p.k.pointers.data();
  p.args.v_pages = p.v.pointers.data();
  p.args.k_raw = p.k.raw.data();
  p.args.v_raw = p.v.raw.data();
  const std::vector<double> want = p.Reference();
  ScalarAttention(p, Fault::kNone, p.out.data());
  EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want), kDifference, kMaxAbs));
  for (const Fault fault : {Fault::kSeesNext, Fault::kMissesSelf, Fault::kWindowWider, Fault::kWindowNarrower,
                            Fault::kNoRescale, Fault::kOtherHead, Fault::kNoScale}) {
    ScalarAttention(p, fault, p.out.data());
    EXPECT_FALSE(test::Within(p.ErrorAgainst(want), kDifference, kMaxAbs)) << "fault " << int(fault);
  }
}

}  // namespace
}  // namespace nibble
