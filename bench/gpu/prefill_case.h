// SPDX-License-Identifier: Apache-2.0
// One problem of prefill attention: packed sequences, their offsets on the device, and how far a result is
// from exact attention.
#pragma once
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <string>
#include <vector>

#include "bench/gpu/support.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/ref/sage.h"

namespace nibble::gpu {

struct PrefillCase {
  std::vector<int> queries, keys;  // of each sequence
  int heads, kv_heads;
  bool causal, outliers;
  int head_dim = 128;

  std::string Name() const {
    return fmt::format("q={} k={} heads={}/{} d{} {}{}", fmt::join(queries, ","), fmt::join(keys, ","), heads,
                       kv_heads, head_dim, causal ? "causal" : "full", outliers ? " outliers" : "");
  }
};

// Offsets and running sums of tiles on the device.
struct PrefillBatch {
  std::vector<int32_t> q_offsets{0}, k_offsets{0}, q_ends, k_ends;
  int delta_tiles = 0;  // SageShape's, where queries are smoothed
  Buffer<int32_t> device;
  cuda::SageShape shape;

  explicit PrefillBatch(const PrefillCase&);

 private:
  static std::vector<int32_t> Flatten(PrefillBatch&, const PrefillCase&);
};

// bf16 [rows, heads, head_dim].
std::vector<uint16_t> PrefillValues(size_t rows, int heads, int head_dim, uint32_t seed, bool outliers);

// Packed rows of bf16.
struct PrefillInputs {
  const std::vector<uint16_t>&q, &k, &v;
};

// Of all rows of all heads, against exact attention or what SageAttention is by definition (scale, mask and
// the center of K are filled in): cosine, and the greatest distance of a row relative to its length.
struct PrefillError {
  double cosine, worst_row;
};
PrefillError ErrorOf(const PrefillCase&, const PrefillBatch&, const PrefillInputs&,
                     const std::vector<uint16_t>& got, const ref::SageSpec* spec = nullptr);
// The same of exact attention whose queries and keys are in E4M3 with a scale a row: what FP8 Q K^T costs.
PrefillError ErrorOfFp8Scores(const PrefillCase&, const PrefillBatch&, const PrefillInputs&);

// In threads of their own.
void ForEachHead(const PrefillCase&, const std::function<void(size_t sequence, int head)>& run);

// The timed shapes: 16k tokens of 32 heads in sequences of one length.
inline constexpr int kPrefillHeads = 32, kPrefillTokens = 16384;
struct PrefillTiming {
  PrefillTiming(int length, int head_dim, bool causal);
  std::string Shape() const;
  double Operations() const;

  int length, head_dim;
  bool causal;
  PrefillBatch batch;
  Buffer<uint16_t> q, k, v, out;
};

}  // namespace nibble::gpu
