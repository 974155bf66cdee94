// SPDX-License-Identifier: Apache-2.0
// Floor 4. SAS, the softmax of TurboAttention (arXiv 2412.08585): exp(x) for x <= 0 from a table of powers
// and a cubic, zero below a threshold; and sas2, whose cubic is continuous and whose threshold follows from
// the length.
#pragma once
#include <vector>

namespace nibble::ref {

enum class SasPolynomial {
  kPaper,          // -.1025 t^3 + .4626 t^2 - .9922 t + .9996: steps up by 2.3e-4 at every integer
  kMinimax,        // least greatest error on [0, 1], 2.0e-4
  kEndpointExact,  // P(0) = 1 and P(1) = 1/e: continuous and monotone, 3.3e-4
  kBase2,          // of 2^-f, relative 7.5e-5; the power of two goes into the exponent field
};

struct SasSpec {
  SasPolynomial polynomial = SasPolynomial::kPaper;
  double threshold = -6;  // x below this gives 0
  bool exact = false;     // exp itself, without a threshold
};

double SasExp(const SasSpec& spec, double x);

// The paper's polynomial as FP16 hardware evaluates it: table, coefficients and argument in FP16, Horner with
// one rounding a step (fused multiply-add).
double SasExpF16(double x, double threshold = -6);

// The threshold that bounds the mass that can be dropped from a row of `tokens` to eps: one token at the
// maximum and the others just below the threshold. At least -16, where the table ends.
double SasThreshold(double eps, int tokens);

// What the threshold takes from a row: the exact softmax weight of the scores it zeroes, and their number.
struct SasDropped {
  double mass = 0;
  int count = 0;
};
SasDropped DroppedBySas(const SasSpec& spec, const std::vector<double>& scores);

// The weights of a row: SasExp(score - max), normalised by their own sum.
std::vector<double> SasSoftmax(const SasSpec& spec, const std::vector<double>& scores);

}  // namespace nibble::ref
