// SPDX-License-Identifier: Apache-2.0
// Floor 7. Orthogonal Hadamard rotations of any size. n = 2^a b, where a Hadamard matrix of order b is known
// (1, or one of Paley's up to 256: 12, 20, 24, 28, 36, ...), is rotated as a whole; any other n in equal
// blocks of the greatest power of two that divides it.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace nibble::qoq {

class Hadamard {
 public:
  explicit Hadamard(int n);  // n >= 1
  int size() const { return n_; }
  int block() const { return base_ * power_; }  // n, or the size of a block

  // x becomes x R (a row vector), R orthogonal. Computed in double.
  void Rotate(float* x) const;

 private:
  int n_, base_ = 1, power_ = 1;  // blocks of base * power
  std::vector<int8_t> signs_;     // the matrix of order base: [base, base] of +1, -1
};

// A Hadamard matrix of this order by Paley's constructions, entries +1 and -1; empty when they give none.
std::vector<int8_t> PaleyHadamard(int order);

}  // namespace nibble::qoq
