// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definitions of KIVI's quantizer (arXiv 2402.02750) and of GEAR (arXiv 2403.05527) on flat
// matrices: X ~ D + L + S, quantized, low rank, sparse.
#pragma once
#include <vector>

#include "kernels/ref/matrix.h"
#include "kernels/ref/rounding.h"

namespace nibble::ref {

// min-max quantizer of one group: code = round((x - min) / scale), scale = range / (2^bits - 1).
struct KiviGroup {
  double min = 0, scale = 0;
  std::vector<int> codes;
};
KiviGroup KiviQuantize(const std::vector<double>& x, int bits, Rounding rounding = Rounding::kEven,
                       Storage storage = Storage::kExact);

enum class GroupAxis { kChannel, kToken };  // K by channel along tokens, V by token along channels
// Quantized and decoded. group: values of a group, a short last one included; 0: the whole row or column.
Matrix KiviDecoded(View x, int bits, GroupAxis axis, int group, Rounding rounding = Rounding::kEven);

// E ~ q * p^T by power iteration from p [dim, rank]: Q = E P, P = E^T Q, `loops` times; P is orthonormalised
// before and Q within the last one.
struct LowRank {
  Matrix q, p;  // [rows, rank], [dim, rank]
};
LowRank PowerIteration(View e, View start, int loops = 3);
Matrix Product(const LowRank& l);  // q * p^T

struct GearSpec {
  int bits = 4;
  GroupAxis axis = GroupAxis::kChannel;
  int group = 0;
  int rank = 4, loops = 3;
  double sparse = 0.02;  // share of a row's (token axis) or column's values kept exact; 0 is GEAR-L
};
// D + L + S. start [dim, rank].
Matrix GearDecoded(View x, const GearSpec& spec, View start);

double FrobeniusNorm(View x);

}  // namespace nibble::ref
