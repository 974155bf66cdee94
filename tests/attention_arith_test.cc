// SPDX-License-Identifier: Apache-2.0
// The arithmetic of sealed pages and SAS: every ISA against the definition on the same bytes, for every
// arithmetic, codec, head size, group and window; bitwise independence of the rows of a call; what the
// counters say. The tolerance must tell every arithmetic from the others, and from itself with a mistake.
#include <set>
#include <string>

#include "attention_problem.h"
#include "recipe/attention_recipe.h"

namespace nibble {
namespace {

using kv::CodecId;
using test::Problem;
using test::Shape;

const char* const kArithmetics[] = {
    "qk=int8-block",
    "qk=int8-thread",
    "qk=int4-thread",
    "qk=int8-block smooth=k",
    "qk=int8-thread smooth=k",
    "qk=int4-thread smooth=k",
    "qk=int8-block smooth=qk",
    "qk=int4-thread smooth=qk",
    "pv=fp8",
    "pv=fp8-f16acc",
    "pv=f16",
    "pv=int8",
    "sas",
    "softmax=sas:threshold=-3,cubic=minimax",
    "softmax=sas:threshold=-8,cubic=base2",
    "sas2",
    "softmax=sas2:eps=0.1,cubic=paper",
    "sage1",
    "sage2-8b",
    "sage2-4b",
    "sage2pp-8b",
    "qk=int8-block softmax=sas pv=int8",
    "qk=int4-thread smooth=qk softmax=sas2:eps=0.3 pv=fp8-f16acc",
};

Arithmetic Parse(const char* text) { return ParseRecipe(text, DType::kF32)->arithmetic; }

// A problem whose keys have a mean and outlier channels worth smoothing.
Problem MakeProblem(const Shape& s, const char* arithmetic) {
  const int dim = s.head_dim;
  const auto with_mean = [dim](std::vector<float>& k) {
    for (size_t i = 0; i < k.size(); ++i) {
      const size_t d = i % size_t(dim);
      k[i] += d % 11 == 3 ? 6.0f : 0.2f * float(d % 5);
    }
  };
  return Problem(s, with_mean, Parse(arithmetic));
}

// Where P is rounded, roundings differ now and then: a value between two codes falls to one in f32 and to the
// other in double, and a score at SAS's threshold to either side. One such value moves an output by a step of
// P; all together stay far below what another arithmetic differs by.
struct Tolerance {
  double difference, max_abs;
};
Tolerance ToleranceOf(const Arithmetic& a) {
  if (a.pv == PvArith::kFp8 || a.pv == PvArith::kFp8F16 || a.pv == PvArith::kInt8) return {2e-7, 0.03};
  if (a.pv == PvArith::kF16 || a.softmax != SoftmaxKind::kExact) return {2e-8, 0.01};
  return {1e-12, 1e-5};
}

bool Agrees(const Problem& p, const std::vector<double>& want) {
  const Tolerance t = ToleranceOf(p.args.arithmetic);
  return test::Within(p.ErrorAgainst(want), t.difference, t.max_abs);
}

void RunAll(const Shape& s, const char* arithmetic) {
  Problem p = MakeProblem(s, arithmetic);
  const std::vector<double> want = p.Reference();
  for (const auto* isa : test::Isas()) {
    isa->attention(p.args);
    const test::Error e = p.ErrorAgainst(want);
    EXPECT_TRUE(Agrees(p, want)) << isa->isa << " " << arithmetic << " k " << kv::Get(s.k).name << " v "
                                 << kv::Get(s.v).name << " head_dim " << s.head_dim << " group " << s.group
                                 << " position " << s.position << " rows " << s.rows << " window " << s.window
                                 << ": difference " << e.difference << " max " << e.max_abs;
    EXPECT_TRUE(p.out.Intact() && p.scratch.Intact()) << isa->isa;
  }
}

TEST(AttentionArith, EveryArithmeticOnEveryShape) {
  for (const char* arithmetic : kArithmetics)
    for (const int head_dim : {64, 80, 128})
      for (const int group : {1, 2, 3, 8})
        for (const int rows : {1, 13})
          RunAll({head_dim, group, 130 + rows, rows, 0, CodecId::kF16, CodecId::kF16}, arithmetic);
}

TEST(AttentionArith, Windows) {
  for (const char* arithmetic : kArithmetics)
    for (const int64_t window : {1, 20, 64, 70, 100, 150})
      for (const int rows : {1, 17, 64})
        RunAll({64, 2, 192, rows, window, CodecId::kF32, CodecId::kF32}, arithmetic);
}

TEST(AttentionArith, EveryCodec) {
  for (const char* arithmetic : {"qk=int8-block pv=int8", "qk=int8-thread pv=int8", "sage2-4b", "sage1"})
    for (const auto& codec : kv::kRegistry) RunAll({80, 2, 140, 9, 0, codec.id, codec.id}, arithmetic);
}

TEST(AttentionArith, OnlyRawTokens) {
  for (const char* arithmetic : {"sage2-4b", "sas", "pv=int8"})
    RunAll({64, 2, 0, 40, 0, CodecId::kF16, CodecId::kF16}, arithmetic);
}

TEST(AttentionArith, RowDoesNotDependOnTheOthers) {
  for (const char* arithmetic : kArithmetics) {
    for (const int64_t window : {0, 100}) {
      Problem p = MakeProblem({72, 3, 192, 64, window, CodecId::kFlashQ4, CodecId::kFlashQ4}, arithmetic);
      for (const auto* isa : test::Isas()) {
        isa->attention(p.args);
        for (const int count : {1, 7, 33}) {
          std::vector<float> apart(p.out.size(), NAN);
          for (int row = 0; row < 64; row += count)
            p.RunSlice(*isa, row, std::min(count, 64 - row), apart.data());
          EXPECT_TRUE(test::SameBits(apart.data(), p.out.data(), apart.size()))
              << isa->isa << " " << arithmetic << " window " << window << " rows " << count;
        }
      }
    }
  }
}

// The definition of one arithmetic is not that of another: outputs differ by more than the tolerance.
TEST(AttentionArith, TellsArithmeticsApart) {
  const Shape s{64, 2, 200, 20, 0, CodecId::kF16, CodecId::kF16};
  for (const char* one : kArithmetics) {
    Problem p = MakeProblem(s, one);
    for (const auto* isa : test::Isas()) isa->attention(p.args);
    for (const char* other : kArithmetics) {
      if (one == other) continue;
      Problem q = MakeProblem(s, other);
      EXPECT_FALSE(Agrees(p, q.Reference())) << one << " passes for " << other;
    }
  }
}

// The kernel on arguments with a mistake against the definition on the right ones.
TEST(AttentionArith, BrokenVariantsAreCaught) {
  const Shape s{64, 2, 200, 20, 0, CodecId::kFlashQ4, CodecId::kFlashQ4};
  const auto agrees = [&](const char* arithmetic, auto&& breakage) {
    Problem p = MakeProblem(s, arithmetic);
    const std::vector<double> want = p.Reference();
    breakage(p);
    test::Isas().front()->attention(p.args);
    p.args.arithmetic = Parse(arithmetic);
    return Agrees(p, want);
  };
  EXPECT_TRUE(agrees("sage2-4b", [](Problem&) {}));
  EXPECT_FALSE(agrees("sage2-4b", [](Problem& p) { p.k_mean[5] += 0.5f; }));
  EXPECT_FALSE(agrees("sage2-4b", [](Problem& p) { p.args.q_mean = nullptr; }));
  EXPECT_FALSE(agrees("sage2-8b", [](Problem& p) { p.args.arithmetic.qk = QkArith::kInt8Block; }));
  EXPECT_FALSE(agrees("turbo tail=float", [](Problem& p) { p.args.arithmetic.sas.threshold = -5; }));
  EXPECT_FALSE(agrees("turbo tail=float", [](Problem& p) { p.args.v_pages = p.args.k_pages; }));
}

// Smoothing changes how K is cut into codes and nothing else: with the means the result comes nearer to the
// exact one, on keys that have a mean.
TEST(AttentionArith, SmoothingHelps) {
  const Shape s{128, 2, 320, 32, 0, CodecId::kF32, CodecId::kF32};
  const std::vector<double> exact = MakeProblem(s, "exact").Reference();
  double previous = INFINITY;
  for (const char* arithmetic : {"qk=int4-thread", "qk=int4-thread smooth=k", "qk=int8-thread smooth=k"}) {
    Problem p = MakeProblem(s, arithmetic);
    test::Isas().front()->attention(p.args);
    const double difference = p.ErrorAgainst(exact).difference;
    EXPECT_LT(difference, previous) << arithmetic;
    previous = difference;
  }
}

// A page of FlashQ gives its own codes: INT8 QK of one query against the integer sums written out.
TEST(AttentionArith, FlashQCodesAreTakenAsTheyAre) {
  Problem p = MakeProblem({64, 1, 64, 1, 0, CodecId::kFlashQ4, CodecId::kF32}, "qk=int8-block");
  const std::vector<double> want = p.Reference();
  const std::vector<float> zero(64, 0.0f);
  Problem again = MakeProblem({64, 1, 64, 1, 0, CodecId::kFlashQ4, CodecId::kF32}, "qk=int8-block");
  again.args.k_mean = zero.data();  // takes nothing off, but has the page quantized again to +-127
  test::Isas().front()->attention(again.args);
  EXPECT_FALSE(test::Within(again.ErrorAgainst(want), 1e-12, 1e-5));
  for (const auto* isa : test::Isas()) {
    isa->attention(p.args);
    EXPECT_TRUE(test::IsWithin(p.ErrorAgainst(want), 1e-12, 1e-5)) << isa->isa;
  }
}

AttentionCounters Count(const cpu::CpuKernels& isa, Problem& p, int chunk) {
  AttentionCounters counters{};
  std::vector<float> out(p.out.size());
  p.args.counters = &counters;
  for (int row = 0; row < p.args.rows; row += chunk)
    p.RunSlice(isa, row, std::min(chunk, p.args.rows - row), out.data());
  return counters;
}

TEST(AttentionArith, CountersOfSas) {
  for (const char* arithmetic : {"softmax=sas:threshold=-3", "sas2:eps=0.3", "turbo tail=float"}) {
    Problem p = MakeProblem({64, 2, 200, 30, 100, CodecId::kF16, CodecId::kF16}, arithmetic);
    AttentionCounters want{};
    p.Reference(&want);
    EXPECT_GT(want.sas_dropped, 0);
    EXPECT_GT(want.sas_dropped_mass, 0);
    for (const auto* isa : test::Isas()) {
      const AttentionCounters whole = Count(*isa, p, 30);
      EXPECT_EQ(whole.sas_rows, 60);
      EXPECT_NEAR(double(whole.sas_dropped), double(want.sas_dropped), 2) << "scores at the threshold";
      EXPECT_NEAR(double(whole.sas_dropped_mass), double(want.sas_dropped_mass),
                  1e-3 * double(want.sas_dropped_mass));
      for (const int chunk : {1, 7}) {
        const AttentionCounters cut = Count(*isa, p, chunk);
        EXPECT_EQ(cut.sas_dropped, whole.sas_dropped) << arithmetic << chunk;
        EXPECT_EQ(cut.sas_dropped_mass, whole.sas_dropped_mass) << arithmetic << chunk;
        EXPECT_EQ(cut.sas_rows, whole.sas_rows);
      }
    }
  }
  Problem exact = MakeProblem({64, 2, 200, 3, 0, CodecId::kF16, CodecId::kF16}, "exact");
  EXPECT_EQ(Count(*test::Isas().front(), exact, 3).sas_dropped, 0);
}

// One token at 0 and 1023 at -6.1: the fixed threshold takes 70% of the mass, sas2 nothing.
TEST(AttentionArith, FlatRows) {
  for (const auto& [arithmetic, share] : {std::pair{"sas", 0.70}, std::pair{"sas2", 0.0}}) {
    Problem p({64, 1, 1023, 1, 0, CodecId::kF32, CodecId::kF32}, nullptr, Parse(arithmetic));
    std::vector<float> flat(64 * 64, 0.0f);
    for (size_t i = 0; i < 64; ++i) flat[i * 64] = -6.1f * 8;  // the scale is 1/8
    for (auto& page : p.k.pages) std::memcpy(page.data(), flat.data(), page.size());
    std::memcpy(p.k.raw.data(), flat.data(), p.k.raw.size());
    const float top = 0;  // the first token, so that the maximum is known from the start
    std::memcpy(p.k.pages[0].data(), &top, 4);
    std::fill(p.q.begin(), p.q.end(), 0.0f);
    p.q[0] = 1;
    for (const auto* isa : test::Isas()) {
      const AttentionCounters c = Count(*isa, p, 1);
      EXPECT_NEAR(double(c.sas_dropped_mass) / 4294967296.0, share, 0.005) << isa->isa << " " << arithmetic;
      EXPECT_EQ(c.sas_dropped, share > 0 ? 1023 : 0) << isa->isa;
    }
  }
}

// NaN and infinity in the cache reach the output; none turns into a number on the way.
TEST(AttentionArith, BrokenValuesStayBroken) {
  for (const char* arithmetic : kArithmetics) {
    for (const bool in_v : {false, true}) {
      for (const float broken : {NAN, INFINITY}) {
        Problem p = MakeProblem({64, 1, 64, 1, 0, CodecId::kF32, CodecId::kF32}, arithmetic);
        std::memcpy((in_v ? p.v : p.k).pages[0].data() + 4 * (64 * 5 + 7), &broken, 4);
        if (!in_v && std::isinf(broken) && !IsInteger(p.args.arithmetic.qk)) continue;  // may weigh 0
        for (const auto* isa : test::Isas()) {
          isa->attention(p.args);
          EXPECT_FALSE(std::isfinite(p.out[7])) << isa->isa << " " << arithmetic << " " << in_v << broken;
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
