// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of SageAttention 1, 2 and 2++ (arXiv 2410.02367, 2411.10958, 2505.21136) on one
// head: smoothed integer QK, P and V in FP8, INT8 or FP16, and the accumulators of the tensor cores, so that
// a quality figure made here predicts the GPU's.
#pragma once
#include <vector>

#include "kernels/ref/dense.h"
#include "kernels/ref/sage_quantize.h"

namespace nibble::ref {

// How sum over tokens of P V is accumulated. The products of `step` tokens are summed exactly, as one
// instruction does; what they are added to is rounded. two_level: a tile starts from zero and is added to the
// float output; otherwise one accumulator runs over all tiles.
struct PvAccumulator {
  enum class Kind { kExact, kFp22, kF16 } kind = Kind::kExact;
  int step = 32;
  bool two_level = true;

  double Round(double x) const;
};

enum class PvFormat {
  kExact,
  kF16,   // P and V in FP16
  kE4M3,  // P with offset, V by channel to v_max
  kE5M2,
  kInt8,  // P in steps of 1/127 of the running maximum, V by channel (SageAttention1 -vB)
};

struct SageSpec {
  bool quantize_qk = true;
  QuantizerSpec q{QueryGroups(Granularity::kThread)}, k{KeyGroups(Granularity::kThread)};
  bool smooth_k = true;
  // Used instead of the mean row of K when not null: any vector is exact as long as it is one for all keys.
  const std::vector<double>* k_center = nullptr;
  bool smooth_q = false;  // by block of q.groups.block_rows queries, with the delta-S term
  bool smooth_v = false;
  PvFormat pv = PvFormat::kE4M3;
  double v_max = 448;                   // 448; 2.25 in SageAttention2++, so that 64 products fit FP16
  double p_offset = 8.807354922057604;  // log2 of the scale of P: log2(448); 8.807 in the released code; 8
  PvAccumulator accumulator{PvAccumulator::Kind::kFp22, 32, true};
  int tile_tokens = 64;  // keys of one pass of the loop, and the extent of two-level accumulation
  double scale = 1;      // of the scores, usually head_dim^-0.5
  Mask mask = Mask::kCausal;
};
// What the papers call -B, -vB, 2-8b, 2-4b and 2++, for a head size.
SageSpec Sage1(int head_dim);
SageSpec Sage1Int8Pv(int head_dim);
SageSpec Sage2Int8(int head_dim);
SageSpec Sage2Int4(int head_dim);
SageSpec Sage2PlusPlus(int head_dim);

struct SageResult {
  Matrix out;
  std::vector<double> lse;   // natural, of the scores before smoothing
  std::vector<double> lse2;  // base 2, of the smoothed scores, as the kernels return it
};
SageResult SageAttention(View q, View k, View v, const SageSpec& spec);

// V as the kernels see it: by channel, v ~ value * scale, minus `mean` when smoothed.
struct SageValues {
  Matrix value;
  std::vector<double> scale, mean;
};
SageValues QuantizeValues(View v, const SageSpec& spec);

// Packed sequences: q [total queries, heads * head_dim], k and v [total keys, kv_heads * head_dim]; sequence
// i owns rows q_offsets[i] .. q_offsets[i + 1]. Every sequence and KV head has its own mean of K. lse is
// [total queries * heads].
struct PackedHeads {
  View q, k, v;
  int heads = 1, kv_heads = 1;
  std::vector<int> q_offsets, k_offsets;
};
SageResult SageAttentionPacked(const PackedHeads& batch, const SageSpec& spec);

}  // namespace nibble::ref
