// SPDX-License-Identifier: Apache-2.0
// Dense matmul: every ISA and layout against the double-precision definition on the same bytes; and the
// promise that a row's bits depend on nothing but the row and the weights.
#include "kernels/ref/linear_dense.h"

#include "base/half.h"
#include "float_kernels.h"

namespace nibble {
namespace {

using test::Guarded;
using weight::Layout;

// Weights of deviation 1 / sqrt(k), so that outputs are of order 1, rounded to the layout's type and packed.
struct Packed {
  weight::PackedWeight w;
  std::vector<std::byte> bytes;
};
Packed Pack(Layout layout, int n, int k, uint32_t seed) {
  Packed p;
  const int size = layout == Layout::kF32 ? 4 : 2, panels = (n + 15) / 16;
  p.bytes.resize(size_t(panels) * 16 * size_t(k) * size_t(size));
  const std::vector<float> values = test::Normal(size_t(n) * size_t(k), seed, 1 / std::sqrt(float(k)));
  for (int row = 0; row < n; ++row) {
    for (int i = 0; i < k; ++i) {
      const float f = values[size_t(row) * size_t(k) + size_t(i)];
      const uint16_t u = layout == Layout::kF16 ? FloatToHalf(f) : FloatToBf16(f);
      const size_t at = ((size_t(row / 16) * size_t(k) + size_t(i)) * 16 + size_t(row % 16)) * size_t(size);
      std::memcpy(&p.bytes[at], size == 4 ? static_cast<const void*>(&f) : &u, size_t(size));
    }
  }
  p.w.layout = layout;
  p.w.n = n;
  p.w.k = k;
  p.w.codes = p.bytes.data();
  return p;
}

constexpr Layout kLayouts[] = {Layout::kF32, Layout::kF16, Layout::kBF16};
constexpr MatmulArith kAriths[] = {MatmulArith::kF32, MatmulArith::kBF16};
// Outputs are of order 1, and a chain of k <= 1031 f32 roundings errs by 6e-6 at most. The difference is
// relative: a single output that nearly cancels raises it from 2e-13 to 2e-12.
constexpr double kDifference = 1e-11, kMaxAbs = 1e-5;

LinearArgs Args(const weight::PackedWeight& w, const float* x, float* y, int rows, MatmulArith arith) {
  LinearArgs a{};
  a.w = w;
  a.x = x;
  a.y = y;
  a.x_stride = w.k;
  a.y_stride = w.n;
  a.rows = rows;
  a.panel_end = (w.n + 15) / 16;
  a.arith = arith;
  return a;
}

TEST(LinearDense, MatchesReference) {
  struct Case {
    int rows, n, k;
  };
  // Every row block size and remainder, partial panels, k across several stretches of x.
  const Case cases[] = {{1, 16, 8}, {1, 1, 1}, {2, 33, 40}, {5, 100, 257}, {13, 272, 1031}, {25, 31, 515}};
  for (const auto* isa : test::Isas()) {
    for (const Layout layout : kLayouts) {
      for (const MatmulArith arith : kAriths) {
        for (const Case& c : cases) {
          for (const bool with_bias : {false, true}) {
            const Packed p = Pack(layout, c.n, c.k, 3);
            const auto x = test::Normal(size_t(c.rows) * size_t(c.k), 4), bias = test::Normal(size_t(c.n), 5);
            Guarded<float> y(size_t(c.rows) * size_t(c.n));
            LinearArgs a = Args(p.w, x.data(), y.data(), c.rows, arith);
            if (with_bias) {
              a.bias = bias.data();
              a.accumulate = true;
              test::FillNormal(y.data(), y.size(), 6);
            }
            std::vector<double> want(y.size());
            ref::LinearDense(a, want.data());
            isa->linear(a);
            EXPECT_TRUE(
                test::IsWithin(test::Compare(y.data(), c.n, want.data(), c.rows, c.n), kDifference, kMaxAbs))
                << isa->isa << " " << isa->linear_name(layout, arith) << " rows " << c.rows << " n " << c.n
                << " k " << c.k;
            EXPECT_TRUE(y.Intact());
          }
        }
      }
    }
  }
}

TEST(LinearDense, RowDoesNotDependOnRowsOrPanels) {
  const int rows = 29, n = 300, k = 1500;
  for (const auto* isa : test::Isas()) {
    for (const Layout layout : kLayouts) {
      for (const MatmulArith arith : kAriths) {
        const Packed p = Pack(layout, n, k, 7);
        const auto x = test::Normal(size_t(rows) * size_t(k), 8);
        std::vector<float> together(size_t(rows) * size_t(n)), apart(together.size());
        isa->linear(Args(p.w, x.data(), together.data(), rows, arith));
        for (int count : {1, 2, 3, 4, 7, 12}) {
          std::fill(apart.begin(), apart.end(), NAN);
          for (int row = 0; row < rows; row += count) {
            LinearArgs a =
                Args(p.w, x.data() + row * k, apart.data() + row * n, std::min(count, rows - row), arith);
            for (int panel = 0; panel < 19; panel += count) {
              a.panel_begin = panel;
              a.panel_end = std::min(panel + count, 19);
              isa->linear(a);
            }
          }
          EXPECT_TRUE(test::SameBits(together.data(), apart.data(), together.size()))
              << isa->isa << " " << count;
        }
      }
    }
  }
}

// Strides wider than the rows: nothing between the rows is read or written.
TEST(LinearDense, Strides) {
  const int rows = 14, n = 40, k = 24, x_stride = 37, y_stride = 55;
  for (const auto* isa : test::Isas()) {
    const Packed p = Pack(Layout::kF32, n, k, 9);
    Guarded<float> x(size_t(rows) * x_stride), y(size_t(rows) * y_stride);
    for (int r = 0; r < rows; ++r) test::FillNormal(&x[size_t(r) * x_stride], k, uint32_t(r));
    LinearArgs a = Args(p.w, x.data(), y.data(), rows, MatmulArith::kF32);
    a.x_stride = x_stride;
    a.y_stride = y_stride;
    std::vector<double> want(size_t(rows) * n);
    ref::LinearDense(a, want.data());
    isa->linear(a);
    EXPECT_TRUE(
        test::IsWithin(test::Compare(y.data(), y_stride, want.data(), rows, n), kDifference, kMaxAbs));
    for (int r = 0; r < rows; ++r)
      for (int i = n; i < y_stride; ++i) EXPECT_TRUE(std::isnan(y[size_t(r * y_stride + i)]));
    EXPECT_TRUE(y.Intact());
  }
}

// Weights are widened exactly: all 65536 bit patterns of both 16-bit types, as weights of a single input 1.
TEST(LinearDense, WidensEveryPattern) {
  const int n = 65536;
  std::vector<uint16_t> all(n);
  for (int i = 0; i < n; ++i) all[size_t(i)] = uint16_t(i);
  const float one = 1;
  for (const auto* isa : test::Isas()) {
    for (const Layout layout : {Layout::kF16, Layout::kBF16}) {
      weight::PackedWeight w;
      w.layout = layout;
      w.n = n;
      w.k = 1;
      w.codes = reinterpret_cast<const std::byte*>(all.data());
      std::vector<float> y(n);
      isa->linear(Args(w, &one, y.data(), 1, MatmulArith::kF32));
      int wrong = 0;
      for (int i = 0; i < n; ++i) {
        const float want = layout == Layout::kF16 ? HalfToFloat(uint16_t(i)) : Bf16ToFloat(uint16_t(i));
        const bool same = std::isnan(want) ? std::isnan(y[size_t(i)]) : y[size_t(i)] == want;
        wrong += !same;
      }
      EXPECT_EQ(wrong, 0) << isa->isa << " " << isa->linear_name(layout, MatmulArith::kF32);
    }
  }
}

// The tolerance must catch a kernel that skips one input of many, and one that forgets to round x to bf16.
TEST(LinearDense, BrokenVariantsAreCaught) {
  const int rows = 3, n = 48, k = 1024;
  const Packed p = Pack(Layout::kBF16, n, k, 10);
  auto x = test::Normal(size_t(rows) * k, 11);
  std::vector<float> y(size_t(rows) * n);
  const LinearArgs a = Args(p.w, x.data(), y.data(), rows, MatmulArith::kBF16);
  std::vector<double> want(y.size());
  ref::LinearDense(a, want.data());
  for (const auto* isa : test::Isas()) {
    LinearArgs unrounded = a;
    unrounded.arith = MatmulArith::kF32;
    isa->linear(unrounded);
    EXPECT_FALSE(test::Within(test::Compare(y.data(), n, want.data(), rows, n), kDifference, kMaxAbs));
    auto missing = x;
    for (int r = 0; r < rows; ++r) missing[size_t(r) * k + 700] = 0;
    LinearArgs skipping = a;
    skipping.x = missing.data();
    isa->linear(skipping);
    EXPECT_FALSE(test::Within(test::Compare(y.data(), n, want.data(), rows, n), kDifference, kMaxAbs));
  }
}

}  // namespace
}  // namespace nibble
