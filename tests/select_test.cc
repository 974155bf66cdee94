// SPDX-License-Identifier: Apache-2.0
// Rows that select tokens: every ISA against the definition in double over random shapes, codecs and
// parameters; dense attention where everything is selected; the paper's transfer formula; the copies of K;
// and seeded mistakes that the tolerance must catch.
#include "kernels/ref/select.h"

#include "meets_integers.h"
#include "select_problem.h"

namespace nibble {
namespace {

using kv::CodecId;
using test::SelectProblem;
using test::SelectShape;

constexpr double kDifference = 1e-9, kMaxAbs = 2e-5;
constexpr double kNearMargin = 2e-5;  // f32 may decide otherwise below it

class Random {
 public:
  explicit Random(uint32_t seed) : random_(seed) {}
  int Between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  template <class T>
  T Of(std::initializer_list<T> values) {
    return values.begin()[Between(0, int(values.size()) - 1)];
  }

 private:
  std::mt19937 random_;
};

SelectShape RandomShape(Random& random) {
  SelectShape s{random.Of({64, 80, 128}), random.Between(1, 8),
                random.Between(0, random.Of({63, 300, 1000, 4095})), 0};
  if (random.Between(0, 3) == 0) s.first = random.Between(0, int(s.position));
  s.k = kv::kRegistry[size_t(random.Between(0, int(kv::kRegistry.size()) - 1))].id;
  s.v = kv::kRegistry[size_t(random.Between(0, int(kv::kRegistry.size()) - 1))].id;
  s.copy = random.Of({KeyCopy::kF16, KeyCopy::kInt8, KeyCopy::kInt4});
  return s;
}

SparqParams RandomParams(Random& random, const SelectShape& s) {
  SparqParams p{.r = random.Between(1, s.head_dim), .k = random.Between(4, 200)};
  p.local = random.Of({-1, 0, 1, p.k / 2});
  p.sinks = random.Of({0, 1, 2});
  p.rho = random.Of({0.0f, 0.0f, 0.6f, 0.8f});
  p.eps = random.Of({0.0f, 0.0f, 0.05f, 0.3f, 0.6f});
  p.mean = random.Of({Reallocation::kAuto, Reallocation::kOff, Reallocation::kMean, Reallocation::kUnselected,
                      Reallocation::kBlocks});
  p.copy = s.copy;
  p.rank_logits = random.Between(0, 3) == 0;
  return p;
}

std::string Show(const SelectShape& s, const SparqParams& p) {
  return fmt::format(
      "head_dim {} group {} tokens {}..{} k={} v={} r={} k={} local={} sinks={} rho={} eps={} "
      "mean={} copy={} logits={}",
      s.head_dim, s.group, s.first, s.position, kv::Get(s.k).name, kv::Get(s.v).name, p.r, p.k, p.local,
      p.sinks, p.rho, p.eps, int(p.mean), int(p.copy), p.rank_logits);
}

TEST(Select, SparqOnRandomShapes) {
  Random random(1);
  int compared = 0, fallbacks = 0;
  for (int i = 0; i < 120; ++i) {
    const SelectShape s = RandomShape(random);
    const SparqParams params = RandomParams(random, s);
    for (const auto* isa : test::Isas()) {
      SelectProblem p = SelectProblem::Random(s, *isa, uint32_t(1000 + i));
      const SparqArgs a = p.Sparq(params);
      const ref::SelectedRow want = ref::Sparq(a);
      if (want.margin < kNearMargin) continue;
      isa->sparq(a);
      EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want.out), kDifference, kMaxAbs))
          << isa->isa << " " << Show(s, params);
      EXPECT_EQ(p.counters.tokens_read, int64_t(want.tokens.size())) << isa->isa << " " << Show(s, params);
      EXPECT_EQ(p.counters.dense_fallbacks, want.dense_fallback) << isa->isa << " " << Show(s, params);
      ++compared;
      fallbacks += want.dense_fallback;
    }
  }
  EXPECT_GE(compared, int(90 * test::Isas().size())) << "near ties hid too much";
  EXPECT_GT(fallbacks, 0);
}

// A point of the last test, computed with another parameter or another cache, is out of tolerance.
TEST(Select, MistakesAreCaught) {
  const SelectShape s{128, 2, 700, 0};
  const SparqParams right{.r = 16, .k = 64, .local = 8, .sinks = 2, .mean = Reallocation::kMean};
  for (const auto* isa : test::Isas()) {
    SelectProblem p = SelectProblem::Random(s, *isa, 5);
    const std::vector<double> want = ref::Sparq(p.Sparq(right)).out;
    const auto error = [&](const SparqArgs& a) {
      isa->sparq(a);
      return p.ErrorAgainst(want);
    };
    EXPECT_TRUE(test::IsWithin(error(p.Sparq(right)), kDifference, kMaxAbs));
    std::vector<SparqParams> wrong(7, right);
    wrong[0].r = 15, wrong[1].k = 63, wrong[2].local = 9, wrong[3].sinks = 0;
    wrong[4].mean = Reallocation::kUnselected, wrong[5].mean = Reallocation::kOff,
    wrong[6].rank_logits = true;
    for (size_t i = 0; i < wrong.size(); ++i)
      EXPECT_FALSE(test::Within(error(p.Sparq(wrong[i])), kDifference, kMaxAbs)) << isa->isa << " " << i;
    SparqArgs early = p.Sparq(right);
    early.row.first = 1;  // one token less is seen
    EXPECT_FALSE(test::Within(error(early), kDifference, kMaxAbs)) << isa->isa;
    std::swap(p.record_pointers[3], p.record_pointers[4]);
    EXPECT_FALSE(test::Within(error(p.Sparq(right)), kDifference, kMaxAbs)) << isa->isa;
  }
}

TEST(Select, EverythingSelectedIsDense) {
  for (const auto& codec : kv::kRegistry)
    for (const int64_t position : {0, 63, 64, 300}) {
      const SelectShape s{80, 3, position, position > 100 ? 70 : 0, codec.id, codec.id};
      for (const auto* isa : test::Isas()) {
        SelectProblem p = SelectProblem::Random(s, *isa, 9);
        const std::vector<float> dense = p.Dense(*isa);
        const std::vector<double> want(dense.begin(), dense.end());
        const int seen = int(s.position - s.first) + 1;
        // A selection is computed in f32, dense rows of some codecs with queries and weights of 16 bits.
        const bool integers = test::MeetsIntegers(codec.id, s.head_dim);
        const double difference = integers ? 5e-7 : 1e-11, most = integers ? 2e-3 : 2e-6;
        isa->sparq(p.Sparq({.r = 80, .k = seen}));
        EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want), difference, most)) << isa->isa << " " << codec.name;
        EXPECT_EQ(p.counters.scalars_read, (2 * seen + 2) * 80);
        isa->window({.row = p.Row(), .window = {.k = seen, .sinks = 1}});
        EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want), difference, most)) << isa->isa << " " << codec.name;
        if (seen < 3) continue;
        isa->window({.row = p.Row(), .window = {.k = seen - 1, .sinks = 0}});
        EXPECT_FALSE(test::Within(p.ErrorAgainst(want), difference, most)) << isa->isa << " " << codec.name;
      }
    }
}

TEST(Select, Window) {
  Random random(2);
  for (int i = 0; i < 60; ++i) {
    const SelectShape s = RandomShape(random);
    const int k = random.Between(2, 200);
    const WindowParams params{.k = k, .sinks = random.Between(0, std::min(k - 1, 20))};
    for (const auto* isa : test::Isas()) {
      SelectProblem p = SelectProblem::Random(s, *isa, uint32_t(50 + i));
      const WindowArgs a{.row = p.Row(), .window = params};
      const ref::SelectedRow want = ref::Window(a);
      isa->window(a);
      EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want.out), kDifference, kMaxAbs)) << isa->isa << " " << i;
      EXPECT_EQ(p.counters.tokens_read, int64_t(want.tokens.size()));
      EXPECT_EQ(p.counters.tokens_read, std::min<int64_t>(k, s.position - s.first + 1));
    }
  }
}

// The order of tokens that are neither local nor sinks does not matter.
TEST(Select, PermutedTokens) {
  const SelectShape s{64, 2, 500, 0};
  const SparqParams params{.r = 16, .k = 96, .local = 40, .sinks = 0, .mean = Reallocation::kMean};
  const auto* isa = test::Isas()[0];
  const SelectProblem one = SelectProblem::Random(s, *isa, 21);
  std::vector<float> k = test::Normal(501 * 64, 22), v = test::Normal(501 * 64, 23);
  const auto run = [&] {
    SelectProblem p(s, *isa, one.q, k, v);
    isa->sparq(p.Sparq(params));
    return p.out;
  };
  const std::vector<float> before = run();
  for (int t = 0; t < 230; ++t)  // mirrors the first 460
    for (int d = 0; d < 64; ++d) {
      std::swap(k[size_t(t * 64 + d)], k[size_t((459 - t) * 64 + d)]);
      std::swap(v[size_t(t * 64 + d)], v[size_t((459 - t) * 64 + d)]);
    }
  const std::vector<float> after = run();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(before[i], after[i], 1e-5);
}

TEST(Select, CountersFollowTheTransferFormula) {
  for (const int64_t position : {600, 1000, 3499})
    for (const int r : {8, 16, 32})
      for (const int k : {64, 128}) {
        const SelectShape s{128, 2, position, 0};
        const auto* isa = test::Isas()[0];
        SelectProblem p = SelectProblem::Random(s, *isa, 31);
        const int64_t tokens = position + 1, dim = 128;
        isa->sparq(p.Sparq({.r = r, .k = k, .mean = Reallocation::kMean}));
        EXPECT_EQ(p.counters.scalars_read, tokens * r + 2 * k * dim + 4 * dim);
        EXPECT_EQ(p.counters.rows, 1);
        const int64_t sealed = position / 64 * 64, raw = tokens - sealed;
        const int64_t local_raw = std::min<int64_t>(raw, k / 4);  // at least; more may be chosen
        EXPECT_LE(p.counters.bytes_read,
                  sealed * r * 2 + raw * r * 4 + k * 2 * dim * 4 + dim * 4 + (raw - local_raw) * dim * 4);
        EXPECT_GE(p.counters.bytes_read, sealed * r * 2 + raw * r * 4 + k * 2 * dim * 4 + dim * 4);
        isa->sparq(p.Sparq({.r = r, .k = k, .mean = Reallocation::kOff}));
        EXPECT_EQ(p.counters.scalars_read, tokens * r + 2 * k * dim + 2 * dim);
        EXPECT_EQ(p.counters.bytes_read, sealed * r * 2 + raw * r * 4 + k * 2 * dim * 4);
      }
}

// Codes and scales as the definition has them, and how many of the tokens chosen with the f16 copy are
// chosen.
TEST(Select, KeyCopies) {
  const std::pair<KeyCopy, double> formats[] = {
      {KeyCopy::kF16, 1}, {KeyCopy::kInt8, 0.98}, {KeyCopy::kInt4, 0.9}};
  std::vector<int64_t> exact;
  for (const auto& [format, least_overlap] : formats) {
    const SelectShape s{64, 2, 1500, 0, CodecId::kF16, CodecId::kF16, format};
    for (const auto* isa : test::Isas()) {
      SelectProblem p = SelectProblem::Random(s, *isa, 41);
      const double levels = format == KeyCopy::kInt8 ? 127 : 7;
      for (int d = 0; d < 64; ++d)
        for (int t0 = 0; t0 < 64; t0 += 32) {
          double amax = 0;
          std::vector<float> x;
          for (int t = t0; t < t0 + 32; ++t) {
            float out8[8];
            kv::Get(s.k).decode8(p.page, p.k_pages[2].data(), t, d / 8 * 8, out8);
            x.push_back(out8[d % 8]);
            amax = std::max(amax, std::abs(double(x.back())));
          }
          for (int t = t0; t < t0 + 32; ++t) {
            const double got = ref::KeyCopyElement(format, p.page, p.records[2].data() + 256, t, d);
            const double step = format == KeyCopy::kF16 ? 0 : amax / levels;
            EXPECT_LE(std::abs(got - double(x[size_t(t - t0)])), step * 0.503) << isa->isa << " " << d;
          }
        }
      SparqParams params{.r = 16, .k = 128, .copy = format};
      const std::vector<int64_t> tokens = ref::Sparq(p.Sparq(params)).tokens;
      if (format == KeyCopy::kF16) exact = tokens;
      const auto same = std::count_if(tokens.begin(), tokens.end(), [&](int64_t t) {
        return std::binary_search(exact.begin(), exact.end(), t);
      });
      EXPECT_GE(double(same) / 128, least_overlap) << isa->isa << " format " << int(format);
    }
  }
}

// Generated case G of the vectors: 16 tokens, one head.
TEST(Select, VectorsOfCaseG) {
  uint32_t x = 12345;
  const auto draw = [&x](size_t n) {
    std::vector<float> values(n);
    for (float& v : values) {
      x = 1664525u * x + 1013904223u;
      v = float(2 * (double(x >> 8) / 16777216.0) - 1);
    }
    return values;
  };
  std::vector<float> q = draw(8);
  const std::vector<float> k = draw(128), v = draw(128);
  q[2] *= 4, q[5] *= 3;
  const double want[8] = {.095333, -.358244, .293050, .063072, .143920, -.154118, -.123155, -.236574};
  for (const auto* isa : test::Isas()) {
    SelectProblem p({8, 1, 15, 0}, *isa, q, k, v);
    isa->sparq(p.Sparq({.r = 2, .k = 4, .local = 1}));
    for (int d = 0; d < 8; ++d) EXPECT_NEAR(p.out[size_t(d)], want[d], 2e-6) << isa->isa;
    EXPECT_EQ(ref::Sparq(p.Sparq({.r = 2, .k = 4, .local = 1})).tokens,
              (std::vector<int64_t>{7, 13, 14, 15}));
    const std::pair<float, int> adaptive[] = {{.5f, 4}, {.25f, 7}, {.1f, 12}};  // S9: eps, k
    for (const auto& [eps, tokens] : adaptive) {
      isa->sparq(p.Sparq({.r = 4, .k = 15, .local = 1, .eps = eps}));
      EXPECT_EQ(p.counters.tokens_read, tokens) << isa->isa << " eps " << eps;
    }
  }
}

}  // namespace
}  // namespace nibble
