// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of TurboAttention's integer attention (arXiv 2412.08585) on one head: INT8 QK and
// PV over blocks of keys, P to INT8 by row, SAS, exact correction factors. Prefill and decode are one loop.
#pragma once
#include <vector>

#include "kernels/ref/dense.h"
#include "kernels/ref/flashq.h"
#include "kernels/ref/sas.h"

namespace nibble::ref {

struct TurboSpec {
  int block_tokens = 64;       // of K and V; queries have blocks of the same size
  int k_bits = 8, v_bits = 8;  // 8: stage 1 only, as in prefill; 4, 3, 2: through stage 2
  Stage2Form form = Stage2Form::kCanonical;
  SasSpec softmax;
  bool sas_correction = false;  // the paper's loop literally: exp(old max - new max) by SAS too
  bool l_from_codes = false;    // the denominator from P's codes, so that the weights sum to exactly 1
  int p_levels = kFlashRange;
  Rounding rounding = Rounding::kEven;
  Storage storage = Storage::kExact;
  double scale = 1;  // of the scores
  Mask mask = Mask::kCausal;
};

// One row's state after some keys: out is not divided by sum yet. Partials of disjoint keys merge by
// log-sum-exp.
struct TurboPartial {
  std::vector<double> out;
  double max, sum;
  std::vector<std::vector<int>> p_codes;  // by block, for tests
  int64_t p_zeros = 0, sas_zeros = 0;     // codes of P that became 0; scores below the threshold
};

// K and V after quantization, in INT8 codes.
struct TurboCache {
  std::vector<FlashBlock> k, v;  // by block of tokens
  int tokens = 0;
};
TurboCache TurboQuantize(View k, View v, const TurboSpec& spec);

// One query, as INT8 codes with their scale, over the first `visible` tokens.
TurboPartial TurboAttendRow(const int* q8, double q_scale, const TurboCache& cache, int visible,
                            const TurboSpec& spec);
TurboPartial MergePartials(const TurboPartial& a, const TurboPartial& b);
std::vector<double> Finish(const TurboPartial& partial);  // out / sum; 0 for a row that saw nothing

AttentionResult TurboAttention(View q, View k, View v, const TurboSpec& spec);

}  // namespace nibble::ref
