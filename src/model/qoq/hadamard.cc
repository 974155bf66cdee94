// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/hadamard.h"

#include <cmath>

#include "base/check.h"

namespace nibble::qoq {
namespace {

// The base is multiplied as a dense matrix: beyond this, blocks of a power of two are the better bargain.
constexpr int kMaxBase = 256;

bool IsPrime(int n) {
  if (n < 2) return false;
  for (int d = 2; d * d <= n; ++d)
    if (n % d == 0) return false;
  return true;
}

// chi[x] = 1 for a square modulo q, -1 for a non-square, 0 for 0.
std::vector<int> Squares(int q) {
  std::vector<int> chi(static_cast<size_t>(q), -1);
  chi[0] = 0;
  for (int64_t x = 1; x < q; ++x) chi[static_cast<size_t>(x * x % q)] = 1;
  return chi;
}

// Paley I: q + 1, q a prime that is 3 modulo 4. I + S with S skew.
std::vector<int8_t> PaleyOne(int order) {
  const int q = order - 1;
  const std::vector<int> chi = Squares(q);
  std::vector<int8_t> h(static_cast<size_t>(order) * static_cast<size_t>(order));
  for (int i = 0; i < order; ++i)
    for (int j = 0; j < order; ++j) {
      int s = i == j ? 1 : i == 0 ? 1 : j == 0 ? -1 : chi[static_cast<size_t>(((i - j) % q + q) % q)];
      h[static_cast<size_t>(i) * static_cast<size_t>(order) + static_cast<size_t>(j)] =
          static_cast<int8_t>(s);
    }
  return h;
}

// Paley II: 2 (q + 1), q a prime that is 1 modulo 4. The symmetric conference matrix C of order q + 1 with
// every entry c replaced by c [+ +; + -], and by [+ -; - -] on the diagonal.
std::vector<int8_t> PaleyTwo(int order) {
  const int half = order / 2, q = half - 1;
  const std::vector<int> chi = Squares(q);
  std::vector<int8_t> h(static_cast<size_t>(order) * static_cast<size_t>(order));
  constexpr int kPlus[2][2] = {{1, 1}, {1, -1}}, kDiagonal[2][2] = {{1, -1}, {-1, -1}};
  for (int i = 0; i < order; ++i)
    for (int j = 0; j < order; ++j) {
      const int a = i / 2, b = j / 2;
      const int c = a == 0 || b == 0 ? 1 : chi[static_cast<size_t>(((a - b) % q + q) % q)];
      const int s = a == b ? kDiagonal[i % 2][j % 2] : c * kPlus[i % 2][j % 2];
      h[static_cast<size_t>(i) * static_cast<size_t>(order) + static_cast<size_t>(j)] =
          static_cast<int8_t>(s);
    }
  return h;
}

}  // namespace

std::vector<int8_t> PaleyHadamard(int order) {
  if (order % 4 == 0 && IsPrime(order - 1)) return PaleyOne(order);
  if (order % 4 == 0 && IsPrime(order / 2 - 1)) return PaleyTwo(order);
  return {};
}

Hadamard::Hadamard(int n) : n_(n) {
  NIBBLE_CHECK(n >= 1, "size of a rotation");
  int odd = n, twos = 0;
  for (; odd % 2 == 0; odd /= 2) ++twos;
  power_ = 1 << twos;
  signs_ = {1};
  if (odd == 1) return;
  for (int e = 2; e <= twos && (odd << e) <= kMaxBase;
       ++e) {  // the least base leaves the most to the fast part
    std::vector<int8_t> signs = PaleyHadamard(odd << e);
    if (signs.empty()) continue;
    base_ = odd << e;
    power_ = 1 << (twos - e);
    signs_ = std::move(signs);
    return;
  }
}

void Hadamard::Rotate(float* x) const {
  const int size = block();
  const double norm = 1.0 / std::sqrt(double(size));
  std::vector<double> y(static_cast<size_t>(size)), t(static_cast<size_t>(base_));
  for (int first = 0; first < n_; first += size) {
    for (int i = 0; i < size; ++i) y[static_cast<size_t>(i)] = x[first + i];
    for (int step = 1; step < power_; step *= 2)  // over the low bits of the index
      for (int i = 0; i < size; i += 2 * step)
        for (int j = i; j < i + step; ++j) {
          const double a = y[static_cast<size_t>(j)], b = y[static_cast<size_t>(j + step)];
          y[static_cast<size_t>(j)] = a + b, y[static_cast<size_t>(j + step)] = a - b;
        }
    for (int low = 0; base_ > 1 && low < power_; ++low) {
      for (int j = 0; j < base_; ++j) {
        double sum = 0;
        for (int i = 0; i < base_; ++i)
          sum += y[static_cast<size_t>(i * power_ + low)] * signs_[static_cast<size_t>(i * base_ + j)];
        t[static_cast<size_t>(j)] = sum;
      }
      for (int j = 0; j < base_; ++j) y[static_cast<size_t>(j * power_ + low)] = t[static_cast<size_t>(j)];
    }
    for (int i = 0; i < size; ++i) x[first + i] = static_cast<float>(y[static_cast<size_t>(i)] * norm);
  }
}

}  // namespace nibble::qoq
