// SPDX-License-Identifier: Apache-2.0
// Matrices that several tests of the flat definitions share: the four-token block of the TurboAttention
// vectors, the generated case G of all engines, seeded random heads; and comparison of rows.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <random>
#include <vector>

#include "kernels/ref/matrix.h"

namespace nibble::ref {

inline Matrix MatrixOf(std::initializer_list<std::initializer_list<double>> rows) {
  Matrix m(int(rows.size()), int(rows.begin()->size()));
  int r = 0;
  for (const auto& row : rows) std::copy(row.begin(), row.end(), m[r++]);
  return m;
}

inline std::vector<double> RowOf(View x, int row) { return {x[row], x[row] + x.dim}; }
inline std::vector<int> RowOf(const Codes& x, int row) { return {x[row], x[row] + x.dim}; }

inline void ExpectRow(const double* got, const std::vector<double>& want, double tolerance = 1e-6) {
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << "element " << i;
}
inline void ExpectRow(const std::vector<double>& got, const std::vector<double>& want,
                      double tolerance = 1e-6) {
  ASSERT_EQ(got.size(), want.size());
  ExpectRow(got.data(), want, tolerance);
}

inline double Distance(const double* a, const double* b, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return std::sqrt(sum);
}

// T1 and T6.
inline Matrix BlockK() {
  return MatrixOf(
      {{.45, -.12, .75, .6}, {-.55, .35, -.2, -.65}, {.75, .85, .1, -.15}, {-.05, -.95, .8, .45}});
}
inline Matrix BlockV() {
  return MatrixOf({{.2, .7, -.5, .4}, {.6, -.8, 1, -.2}, {-.9, .5, .3, .1}, {.8, -.6, .7, -.4}});
}
inline Matrix BlockQ() { return MatrixOf({{.7, -.3, 1.2, -.8}}); }

// Case G: q [1, 8], K and V [16, 8] from a linear congruential generator.
struct CaseG {
  Matrix q{1, 8}, k{16, 8}, v{16, 8};
  CaseG() {
    uint32_t state = 12345;
    for (Matrix* m : {&q, &k, &v})
      for (double& x : m->data) {
        state = state * 1664525u + 1013904223u;
        x = 2 * (double(state >> 8) / 16777216.0) - 1;
      }
    q.data[2] *= 4;
    q.data[5] *= 3;
  }
};

// Independent of the standard library's distributions, so that a seed means the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double Uniform() { return double(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  int Below(int n) { return int(Uniform() * n); }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(1 - Uniform())), angle = 2 * M_PI * Uniform();
    return radius * std::cos(angle);
  }

 private:
  std::mt19937_64 engine_;
};

inline Matrix RandomMatrix(Random& random, int rows, int dim, double scale = 1) {
  Matrix m(rows, dim);
  for (double& x : m.data) x = scale * random.Normal();
  return m;
}

// What the property tests run over: tokens 1 to 4096 (by size: as many short as long), every head size, every
// number of query heads a KV head; the corners first.
struct RandomShape {
  int tokens, dim, group;
};
inline std::vector<RandomShape> RandomShapes(Random& random, int count) {
  constexpr int kDims[] = {64, 80, 128};
  std::vector<RandomShape> shapes = {{1, 64, 1}, {4096, 80, 8}, {64, 128, 3}, {65, 64, 5}};
  while (int(shapes.size()) < count) {
    const int tokens = int(std::lround(std::exp2(12 * random.Uniform())));
    shapes.push_back({tokens, kDims[random.Below(3)], 1 + random.Below(8)});
  }
  return shapes;
}

}  // namespace nibble::ref
