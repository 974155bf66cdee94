// SPDX-License-Identifier: Apache-2.0
// What the tests of the float kernels share: the processors' kernels, buffers with sentinels, error measures.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace nibble::test {

inline std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas())
    if (isa->runs_here()) isas.push_back(isa);
  return isas;
}

// `size` elements between two runs of sentinel bytes, 64-byte aligned. Everything starts as sentinel, which
// as a float is a NaN: what a kernel forgets to write and what it should not have read both show.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t size) : size_(size), bytes_(size * sizeof(T) + 3 * kGuard, kSentinel) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + Offset()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + Offset()); }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return size_; }
  bool Intact() const {
    const auto is_sentinel = [](std::byte b) { return b == kSentinel; };
    const auto begin = bytes_.begin() + int64_t(Offset());
    return std::all_of(bytes_.begin(), begin, is_sentinel) &&
           std::all_of(begin + int64_t(size_ * sizeof(T)), bytes_.end(), is_sentinel);
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr std::byte kSentinel{0xff};
  size_t Offset() const {
    return kGuard + (kGuard - reinterpret_cast<uintptr_t>(bytes_.data()) % kGuard) % kGuard;
  }
  size_t size_;
  std::vector<std::byte> bytes_;
};

struct Error {
  double difference;  // 1 - 2xy / (xx + yy)
  double max_abs;     // NaN if any element is
};

// `got` has row stride `stride`, `want` is dense [rows, n].
inline Error Compare(const float* got, int64_t stride, const double* want, int rows, int n) {
  double xy = 0, norms = 0, max = 0;
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < n; ++i) {
      const double x = double(got[r * stride + i]), y = want[int64_t{r} * n + i];
      xy += x * y;
      norms += x * x + y * y;
      const double e = std::abs(x - y);
      if (!(e <= max) && !std::isnan(max)) max = e;
    }
  }
  return {norms == 0 ? 0 : 1 - 2 * xy / norms, max};
}

inline bool Within(const Error& e, double difference, double max_abs) {
  return e.difference <= difference && e.max_abs <= max_abs;  // false for NaN
}

inline ::testing::AssertionResult IsWithin(const Error& e, double difference, double max_abs) {
  if (Within(e, difference, max_abs)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "difference " << e.difference << " (at most " << difference
                                       << "), max abs " << e.max_abs << " (at most " << max_abs << ")";
}

inline void FillNormal(float* x, size_t n, uint32_t seed, float deviation = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (size_t i = 0; i < n; ++i) x[i] = normal(rng);
}

inline std::vector<float> Normal(size_t n, uint32_t seed, float deviation = 1) {
  std::vector<float> x(n);
  FillNormal(x.data(), n, seed, deviation);
  return x;
}

inline bool SameBits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

}  // namespace nibble::test
