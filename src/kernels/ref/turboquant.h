// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of TurboQuant (arXiv 2504.19874) in the form that engines use: unit vectors rotated
// by a normalised Walsh-Hadamard transform, components rounded to the Lloyd-Max levels of N(0, 1/dim).
#pragma once
#include <vector>

namespace nibble::ref {

// The scalar quantizer of N(0,1) with least mean squared error: each level is the mean of its cell, each
// boundary the middle between levels. Computed by Lloyd's iteration.
struct LloydMax {
  std::vector<double> levels, boundaries;  // ascending
  double distortion = 0;                   // mean squared error
  double entropy = 0;                      // of the index, in bits
};
LloydMax LloydMaxNormal(int bits);

// x <- H x / sqrt(n). Its own inverse. REQUIRES n a power of two.
void Hadamard(std::vector<double>& x);

struct TurboQuantVector {
  double norm = 0;
  std::vector<int> index;  // of the level of each rotated component
};
TurboQuantVector TurboQuantEncode(const std::vector<double>& x, const LloydMax& table);
enum class NormCorrection { kOff, kOn };  // on: the decoded unit vector is brought back to length 1
std::vector<double> TurboQuantDecode(const TurboQuantVector& v, const LloydMax& table,
                                     NormCorrection correction);

}  // namespace nibble::ref
