// SPDX-License-Identifier: Apache-2.0
// RMSNorm, RoPE, gated activations and log-sum-exp on every ISA against the double-precision definition; each
// with mistakes that the tolerance must catch.
#include "kernels/ref/elementwise.h"

#include "float_kernels.h"

namespace nibble {
namespace {

using test::Guarded;

constexpr int kWidths[] = {1, 7, 15, 16, 17, 40, 64, 100, 1000, 1024};

// Relative f32 error of a few roundings and of a sum of k squares, times values of order up to 10.
constexpr double kNormDifference = 1e-12, kNormMaxAbs = 4e-6;

TEST(RmsNorm, MatchesReferenceInAndOutOfPlace) {
  const int rows = 3;
  for (const auto* isa : test::Isas()) {
    for (const int k : kWidths) {
      const int64_t stride = k + 5;
      const auto x = test::Normal(size_t(rows * stride), 1, 3), weight = test::Normal(size_t(k), 2);
      Guarded<float> y(size_t(rows * stride));
      NormArgs a{x.data(), weight.data(), y.data(), stride, stride, rows, k, 1e-5f};
      std::vector<double> want(size_t(rows * k));
      ref::RmsNorm(a, want.data());
      isa->rms_norm(a);
      EXPECT_TRUE(
          test::IsWithin(test::Compare(y.data(), stride, want.data(), rows, k), kNormDifference, kNormMaxAbs))
          << isa->isa << " " << k;
      for (int r = 0; r < rows; ++r)
        for (int64_t i = k; i < stride; ++i) EXPECT_TRUE(std::isnan(y[size_t(r * stride + i)]));
      EXPECT_TRUE(y.Intact());
      auto in_place = x;
      a.x = a.y = in_place.data();
      isa->rms_norm(a);
      for (int r = 0; r < rows; ++r)
        EXPECT_TRUE(test::SameBits(&in_place[size_t(r * stride)], y.data() + r * stride, size_t(k)))
            << isa->isa;
    }
  }
}

TEST(RmsNorm, BrokenVariantsAreCaught) {
  const int k = 1000;
  const auto x = test::Normal(k, 3), weight = test::Normal(k, 4);
  std::vector<float> y(k);
  const NormArgs a{x.data(), weight.data(), y.data(), k, k, 1, k, 1e-5f};
  std::vector<double> want(k);
  ref::RmsNorm(a, want.data());
  const auto caught = [&](NormArgs broken, const cpu::CpuKernels* isa) {
    broken.y = y.data();
    isa->rms_norm(broken);
    return !test::Within(test::Compare(y.data(), k, want.data(), 1, k), kNormDifference, kNormMaxAbs);
  };
  for (const auto* isa : test::Isas()) {
    NormArgs broken = a;
    EXPECT_FALSE(caught(broken, isa));
    broken.eps = 0;
    EXPECT_TRUE(caught(broken, isa)) << "eps forgotten";
    broken = a;
    auto one_less = x;
    one_less[k - 1] = 0;
    broken.x = one_less.data();
    EXPECT_TRUE(caught(broken, isa)) << "last element forgotten";
    broken = a;
    auto shifted = weight;
    std::rotate(shifted.begin(), shifted.begin() + 1, shifted.end());
    broken.weight = shifted.data();
    EXPECT_TRUE(caught(broken, isa)) << "weight off by one";
  }
}

// cos and sin are f32 of values up to 1: half a unit in the last place is 3e-8, and libm may err by one.
constexpr double kTrigMaxAbs = 6.1e-8;

TEST(RopeTable, MatchesReferenceUpToLongContexts) {
  const std::vector<int32_t> positions = {0, 1, 2, 63, 64, 1000, 4095, 32767, 131071};
  const int rows = int(positions.size());
  for (const int head_dim : {8, 64, 80, 256}) {
    const int half = head_dim / 2;
    std::vector<float> inv_freq;
    for (int i = 0; i < half; ++i) inv_freq.push_back(float(std::pow(10000.0, -double(i) / half)));
    std::vector<double> cos(size_t(rows * half)), sin(cos.size());
    for (const auto* isa : test::Isas()) {
      Guarded<float> c(cos.size()), s(sin.size());
      const RopeTableArgs a{positions.data(), inv_freq.data(), c.data(), s.data(), rows, head_dim};
      ref::RopeTable(a, cos.data(), sin.data());
      isa->rope_table(a);
      EXPECT_TRUE(test::IsWithin(test::Compare(c.data(), half, cos.data(), rows, half), 1e-14, kTrigMaxAbs));
      EXPECT_TRUE(test::IsWithin(test::Compare(s.data(), half, sin.data(), rows, half), 1e-14, kTrigMaxAbs));
      EXPECT_TRUE(c.Intact() && s.Intact());
      // An angle kept in double is another function at long contexts.
      if (head_dim > 8) {
        for (int i = 0; i < half; ++i)
          c[size_t((rows - 1) * half + i)] = float(std::cos(131071.0 * double(inv_freq[size_t(i)])));
        EXPECT_FALSE(test::Within(test::Compare(c.data(), half, cos.data(), rows, half), 1e-14, kTrigMaxAbs));
      }
    }
  }
}

constexpr double kRopeDifference = 1e-13, kRopeMaxAbs = 1e-6;

TEST(Rope, MatchesReferenceAndCatchesWrongPairs) {
  const int rows = 4, heads = 3;
  for (const int head_dim : {8, 24, 64, 72, 80, 96, 128, 256}) {
    const int half = head_dim / 2, width = heads * head_dim;
    const int64_t stride = width + 9;
    std::vector<float> cos, sin;
    for (int i = 0; i < rows * half; ++i) {
      cos.push_back(std::cos(0.37f * float(i)));
      sin.push_back(std::sin(0.37f * float(i)));
    }
    for (const auto* isa : test::Isas()) {
      Guarded<float> x(size_t(rows * stride));
      for (int r = 0; r < rows; ++r) test::FillNormal(x.data() + r * stride, size_t(width), uint32_t(r));
      RopeArgs a{x.data(), cos.data(), sin.data(), stride, rows, heads, head_dim};
      std::vector<double> want(size_t(rows * width));
      ref::Rope(a, want.data());
      const std::vector<float> before(x.data(), x.data() + x.size());
      isa->rope(a);
      const auto error = [&](const float* got) {
        return test::Compare(got, stride, want.data(), rows, width);
      };
      EXPECT_TRUE(test::IsWithin(error(x.data()), kRopeDifference, kRopeMaxAbs))
          << isa->isa << " " << head_dim;
      for (int r = 0; r < rows; ++r)
        for (int64_t i = width; i < stride; ++i) EXPECT_TRUE(std::isnan(x[size_t(r * stride + i)]));
      EXPECT_TRUE(x.Intact());

      auto turned_back = before;  // the rotation the other way
      for (float& s : sin) s = -s;
      a.x = turned_back.data();
      isa->rope(a);
      for (float& s : sin) s = -s;
      EXPECT_FALSE(test::Within(error(turned_back.data()), kRopeDifference, kRopeMaxAbs));

      auto neighbours = before;  // pairs (2i, 2i + 1), GPT-J's convention
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < width; i += 2) {
          const size_t at = size_t(r * stride + i), angle = size_t(r * half + i % head_dim / 2);
          const float u = before[at], v = before[at + 1];
          neighbours[at] = u * cos[angle] - v * sin[angle];
          neighbours[at + 1] = v * cos[angle] + u * sin[angle];
        }
      }
      EXPECT_FALSE(test::Within(error(neighbours.data()), kRopeDifference, kRopeMaxAbs));
    }
  }
}

// Every ISA rounds every product: the same bits.
TEST(Rope, SameBitsOnEveryIsa) {
  const auto cos = test::Normal(64, 1), sin = test::Normal(64, 2), x = test::Normal(256, 3);
  std::vector<std::vector<float>> results;
  for (const auto* isa : test::Isas()) {
    results.push_back(x);
    isa->rope({results.back().data(), cos.data(), sin.data(), 256, 1, 2, 128});
    EXPECT_TRUE(test::SameBits(results.back().data(), results.front().data(), x.size())) << isa->isa;
  }
}

// Products of order 10 of an activation with 2e-7 relative error; GELU's is absolute and times x.
constexpr double kGluDifference = 1e-12, kGluMaxAbs = 1e-5;
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh};

TEST(Glu, MatchesReference) {
  for (const auto* isa : test::Isas()) {
    for (const Activation activation : kActivations) {
      for (const int k : kWidths) {
        const int rows = 3;
        const int64_t stride = k + 3;
        const auto gate = test::Normal(size_t(rows * stride), 5, 3),
                   up = test::Normal(size_t(rows * stride), 6);
        Guarded<float> y(size_t(rows * stride));
        GluArgs a{gate.data(), up.data(), y.data(), stride, stride, stride, rows, k, activation};
        std::vector<double> want(size_t(rows * k));
        ref::Glu(a, want.data());
        isa->glu(a);
        EXPECT_TRUE(
            test::IsWithin(test::Compare(y.data(), stride, want.data(), rows, k), kGluDifference, kGluMaxAbs))
            << isa->isa << " " << int(activation) << " " << k;
        for (int r = 0; r < rows; ++r)
          for (int64_t i = k; i < stride; ++i) EXPECT_TRUE(std::isnan(y[size_t(r * stride + i)]));
        EXPECT_TRUE(y.Intact());
        for (const bool over_gate : {true, false}) {  // y may be either input
          auto in_place = over_gate ? gate : up;
          (over_gate ? a.gate : a.up) = a.y = in_place.data();
          isa->glu(a);
          for (int r = 0; r < rows; ++r)
            EXPECT_TRUE(test::SameBits(&in_place[size_t(r * stride)], y.data() + r * stride, size_t(k)));
          a.gate = gate.data();
          a.up = up.data();
        }
      }
    }
  }
}

// The whole range of floats: relative error where the result is normal, and no NaN or infinity from overflow
// inside.
TEST(Glu, SiluOverTheWholeRange) {
  std::vector<float> gate;
  for (float x = 1e-30f; x < 3e38f; x *= 1.07f) {
    gate.push_back(x);
    gate.push_back(-x);
  }
  gate.push_back(0);
  const int k = int(gate.size());
  const std::vector<float> up(gate.size(), 1.0f);
  std::vector<float> y(gate.size());
  const GluArgs a{gate.data(), up.data(), y.data(), k, k, k, 1, k, Activation::kSilu};
  std::vector<double> want(gate.size());
  ref::Glu(a, want.data());
  for (const auto* isa : test::Isas()) {
    isa->glu(a);
    for (size_t i = 0; i < gate.size(); ++i)
      EXPECT_LE(std::abs(double(y[i]) - want[i]), 5e-7 * std::abs(want[i]) + 1e-35)
          << isa->isa << " at " << gate[i];
  }
}

TEST(Glu, BrokenVariantsAreCaught) {
  const int k = 1000;
  const auto gate = test::Normal(k, 7), up = test::Normal(k, 8);
  std::vector<float> y(k);
  for (const auto* isa : test::Isas()) {
    for (const Activation right : kActivations) {
      const GluArgs a{gate.data(), up.data(), y.data(), k, k, k, 1, k, right};
      std::vector<double> want(k);
      ref::Glu(a, want.data());
      const auto error = [&] { return test::Compare(y.data(), k, want.data(), 1, k); };
      for (const Activation wrong : kActivations) {  // the two GELUs differ by 5e-4 at most
        GluArgs other = a;
        other.activation = wrong;
        isa->glu(other);
        EXPECT_EQ(test::Within(error(), kGluDifference, kGluMaxAbs), right == wrong);
      }
      GluArgs swapped = a;
      std::swap(swapped.gate, swapped.up);
      isa->glu(swapped);
      EXPECT_FALSE(test::Within(error(), kGluDifference, kGluMaxAbs));
    }
  }
}

struct LseResult {
  std::vector<float> max;
  std::vector<double> lse;
  std::vector<int32_t> argmax;
};
LseResult RunLse(const cpu::CpuKernels* isa, const std::vector<float>& x, int rows, int k) {
  const size_t n = size_t(rows);
  LseResult r{std::vector<float>(n), std::vector<double>(n), std::vector<int32_t>(n)};
  isa->log_sum_exp(
      {x.data(), r.max.data(), r.lse.data(), r.argmax.data(), int64_t(x.size()) / rows, rows, k});
  return r;
}

// In double throughout; quality figures ask for 1e-9.
constexpr double kLseRelative = 1e-13;

TEST(LogSumExp, MatchesReference) {
  for (const int k : {1, 5, 15, 16, 17, 100, 4096, 8191, 8192, 32000}) {
    for (const float spread : {0.01f, 3.0f, 40.0f, 1000.0f}) {
      const int rows = 2, stride = k + 1;
      auto x = test::Normal(size_t(rows * stride), uint32_t(k), spread);
      for (int i = 3; i < k; i += 11) x[size_t(i)] = -INFINITY;  // tokens that a mask forbids
      std::vector<double> lse(rows);
      std::vector<int32_t> argmax(rows);
      ref::LogSumExp({x.data(), nullptr, nullptr, nullptr, stride, rows, k}, lse.data(), argmax.data());
      for (const auto* isa : test::Isas()) {
        const LseResult r = RunLse(isa, x, rows, k);
        for (size_t i = 0; i < size_t(rows); ++i) {
          EXPECT_NEAR(r.lse[i], lse[i], kLseRelative * std::max(1.0, std::abs(lse[i])))
              << isa->isa << " " << k;
          EXPECT_EQ(r.argmax[i], argmax[i]) << isa->isa << " " << k;
          EXPECT_EQ(r.max[i], x[i * size_t(stride) + size_t(argmax[i])]);
        }
      }
    }
  }
}

TEST(LogSumExp, LowestIndexOfEqualMaximaAndNan) {
  for (const auto* isa : test::Isas()) {
    for (const int first : {0, 5, 15, 16, 40, 98}) {
      std::vector<float> x(100, -2.0f);
      for (size_t i = size_t(first); i < 100; i += 7) x[i] = 1.5f;
      EXPECT_EQ(RunLse(isa, x, 1, 100).argmax[0], first) << isa->isa;
      x[size_t(first)] = NAN;
      EXPECT_TRUE(std::isnan(RunLse(isa, x, 1, 100).lse[0])) << isa->isa;
    }
  }
}

TEST(LogSumExp, SinglePrecisionIsCaught) {
  const int k = 8192;
  const auto x = test::Normal(k, 9, 3);
  double lse = 0;
  int32_t argmax = 0;
  ref::LogSumExp({x.data(), nullptr, nullptr, nullptr, k, 1, k}, &lse, &argmax);
  float sum = 0;
  for (const float v : x) sum += std::exp(v - x[size_t(argmax)]);
  const double single = double(x[size_t(argmax)]) + std::log(double(sum));
  EXPECT_GT(std::abs(single - lse), 1e-9 * lse);
}

}  // namespace
}  // namespace nibble
