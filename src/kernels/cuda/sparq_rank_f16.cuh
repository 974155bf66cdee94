// SPDX-License-Identifier: Apache-2.0
// Logits of a tile from f16 copies of K, by the tensor cores: heads are the 16 rows of a matrix instruction,
// tokens its 8 columns. A lane reads eight neighbouring tokens of eight channels: of a batch of 32 in the
// order of s.channels it has 8 j .. 8 j + 7, and of a page the tokens 8 g .. 8 g + 7 (g = lane / 4, j = lane
// % 4). It receives the logits of head g (and g + 8) for tokens 16 j .. 16 j + 15.
#pragma once
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sparq_rank.cuh"

namespace nibble::cuda::sparq {

inline constexpr int kPagesOfWarp = kTilePages / kWarps;

// The queries as the A operand: of batch b, head h and lane place j the halves at ((b * kMostHeads + h) * 4 +
// j) * 8. bf16 fits into f16 but for the least.
__device__ __forceinline__ void MakeOperand(const Row& row, const RankShared& s, int r) {
  const int batches = (r + 31) / 32;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < batches * kMostHeads * 16; i += kThreads) {
    const int h = i / 16 % kMostHeads, at = i / (kMostHeads * 16) * 32 + i % 16 * 2;
    float x[2] = {0, 0};
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (h < row.group && at + e < r) x[e] = s.q[h * row.dim + s.channels[at + e]];
    s.operand[i] = __floats2half2_rn(x[0], x[1]);
  }
  if (int(threadIdx.x) < batches * 32 - r) s.channels[r + int(threadIdx.x)] = s.channels[r - 1];
  __syncthreads();
}

// sum[t] += Q K^T over a batch, for token t of each column's eight.
template <bool kWide>
__device__ __forceinline__ void MultiplyBatch(const RankShared& s, int batch, const uint4 (&x)[8],
                                              float (&sum)[8][4]) {
  const uint4* operand =
      reinterpret_cast<const uint4*>(s.operand) + batch * kMostHeads * 4 + threadIdx.x % 32;
  const uint4 low = operand[0], high = kWide ? operand[32] : uint4{0, 0, 0, 0};
  const uint32_t a[4] = {low.x, low.y, low.z, low.w}, b[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t k[4][4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint4 w = x[4 * step + c];
      k[c][0] = w.x, k[c][1] = w.y, k[c][2] = w.z, k[c][3] = w.w;
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const uint32_t pick = t % 2 == 0 ? 0x5410 : 0x7632;
      if (!kWide) sum[t][2] = sum[t][3] = 0;
      Mma16816<false>(sum[t], a[2 * step], b[2 * step], a[2 * step + 1], b[2 * step + 1],
                      __byte_perm(k[0][t / 2], k[1][t / 2], pick),
                      __byte_perm(k[2][t / 2], k[3][t / 2], pick));
    }
  }
}

// Keeps a lane's 16 logits of head h and adds them to its level.
__device__ __forceinline__ void KeepSixteen(const Plan& plan, const Row& row, int page, int h,
                                            const float (&x)[2][8], float2* level) {
  const int first = page * kPage + int(threadIdx.x % 4) * 16;
  float* to = plan.logits + (row.index * row.group + h) * plan.tokens + first;
  float max = level->x;
  const bool whole = page * kPage >= row.first && page < row.own;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    reinterpret_cast<float4*>(to)[2 * e] = {x[e][0], x[e][1], x[e][2], x[e][3]};
    reinterpret_cast<float4*>(to)[2 * e + 1] = {x[e][4], x[e][5], x[e][6], x[e][7]};
#pragma unroll
    for (int t = 0; t < 8; ++t)
      if (whole || row.Sees(first + 8 * e + t)) max = fmaxf(max, x[e][t]);
  }
  float sum = level->y * Exp2(level->x - max);
#pragma unroll
  for (int e = 0; e < 2; ++e)
#pragma unroll
    for (int t = 0; t < 8; ++t)
      if (whole || row.Sees(first + 8 * e + t)) sum += Exp2(x[e][t] - max);
  *level = {max, sum};
}

// A lane's logits of a page, from the products or of the open page from s.open.
template <bool kWide>
__device__ __forceinline__ void KeepPage(const Plan& plan, const Row& row, const RankShared& s, int page,
                                         const float (&sum)[8][4], float2 (&level)[kWide ? 2 : 1]) {
  const int g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
#pragma unroll
  for (int half = 0; half < (kWide ? 2 : 1); ++half) {
    const int h = g + 8 * half;
    if (h >= row.group) continue;
    float logit[2][8];
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int t = 0; t < 8; ++t)
        logit[e][t] =
            page == row.own ? s.open[h * kPage + (2 * j + e) * 8 + t] : sum[t][2 * half + e] * s.factor[h];
    KeepSixteen(plan, row, page, h, logit, &level[half]);
  }
}

template <bool kWide>
__device__ __forceinline__ void RankTileF16(const SparqDecodeArgs& a, const Plan& plan, const Row& row,
                                            const RankShared& s, int table, int r) {
  const int warp = int(threadIdx.x / 32), g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
  const int batches = (r + 31) / 32;
  float2 level[kWide ? 2 : 1];
#pragma unroll
  for (float2& x : level) x = {kNoScore, 0};
  const int first = int(blockIdx.x) * kTilePages + warp * kPagesOfWarp, items = kPagesOfWarp * batches;
  float sum[8][4];
  // An item is a batch of a page. While one is multiplied the next is under way.
  const auto load = [&](uint4(&x)[8], int item) {
    const int page = first + item / batches;
    const int64_t at = __shfl_sync(kAll, table, item / batches);
    if (!row.SeesPage(page) || page == row.own) return;
    const std::byte* copy =
        a.records + at * a.record_stride + row.head * a.record_head_stride + a.k_copy + g * 16;
    const int* channels = s.channels + item % batches * 32 + 8 * j;
#pragma unroll
    for (int c = 0; c < 8; ++c) x[c] = Load<uint4>(copy + channels[c] * (kPage * 2));
  };
  const auto use = [&](const uint4(&x)[8], int item) {
    const int page = first + item / batches, batch = item % batches;
    if (!row.SeesPage(page)) return;
    if (batch == 0) {
#pragma unroll
      for (int t = 0; t < 8; ++t) sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = 0;
    }
    if (page < row.own) MultiplyBatch<kWide>(s, batch, x, sum);
    if (batch == batches - 1) KeepPage<kWide>(plan, row, s, page, sum, level);
  };
  uint4 even[8], odd[8];
  load(even, 0);
#pragma unroll 1
  for (int item = 0; item < items; item += 2) {
    if (item + 1 < items) load(odd, item + 1);
    use(even, item);
    if (item + 2 < items) load(even, item + 2);
    if (item + 1 < items) use(odd, item + 1);
  }
#pragma unroll
  for (int half = 0; half < (kWide ? 2 : 1); ++half) {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2)
      level[half] = Joined(level[half], {__shfl_xor_sync(kAll, level[half].x, lanes),
                                         __shfl_xor_sync(kAll, level[half].y, lanes)});
    if (j == 0 && g + 8 * half < row.group) s.levels[(g + 8 * half) * kWarps + warp] = level[half];
  }
}

}  // namespace nibble::cuda::sparq
