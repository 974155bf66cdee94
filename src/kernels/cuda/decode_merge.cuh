// SPDX-License-Identifier: Apache-2.0
// Which work a block has, and how partial results become one: over the warps of a block, then over the chunks
// of an entry, always in ascending order.
#pragma once
#include <cuda_bf16.h>

#include "kernels/cuda/decode_tile.cuh"
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda::decode {

inline constexpr int kMostChunks = 400;  // of an entry: their factors fit into shared memory

struct Plan {       // of a launch, host side
  int queries;      // of a block, at most: 8 or 16
  int groups;       // blocks that share a chunk and KV head when there are more queries
  int chunks;       // of the longest entry that max_pages allows
  float scale;      // scale * log2(e)
  int32_t* counts;  // [batch, kv_heads, groups]: chunks that are done; 0 between launches
  float* partials;  // [batch, kv_heads, groups, chunks]: [queries, head_dim] outputs, [queries, 2] maxima and
                    // sums
};

struct Item {
  int entry, head, chunk, group0;   // of the launch; group0: which group of queries
  int group, query0, rows, length;  // query = row * group + head of the group
  int64_t row0;
  int sealed, first_seen;                // sealed pages; first position that a row sees
  int first_chunk, last_chunk;           // with work
  int chunk_page, page_begin, page_end;  // sealed pages of this chunk that are seen
  bool has_open;

  __device__ __forceinline__ Item(const DecodeArgs& a, const Plan& plan, int queries) {
    entry = int(blockIdx.z), head = int(blockIdx.y);
    chunk = int(blockIdx.x) / plan.groups, group0 = int(blockIdx.x) % plan.groups;
    group = a.heads / a.kv_heads;
    query0 = group0 * queries;
    length = a.lengths[entry];
    row0 = a.row_begin != nullptr ? a.row_begin[entry] : int64_t{entry} * a.rows;
    rows = a.row_begin != nullptr ? a.row_begin[entry + 1] - int(row0) : a.rows;
    sealed = (length - 1) / kPage;
    first_seen = a.window > 0 ? max(0, length - rows - a.window + 1) : 0;
    first_chunk = first_seen / kPage / a.chunk_pages;
    last_chunk = sealed / a.chunk_pages;
    chunk_page = chunk * a.chunk_pages;
    page_begin = max(chunk_page, first_seen / kPage);
    page_end = min(chunk_page + a.chunk_pages, sealed);
    has_open = chunk == last_chunk;
  }
  __device__ __forceinline__ bool Present() const {
    return length > 0 && query0 < rows * group && chunk >= first_chunk && chunk <= last_chunk;
  }
  __device__ __forceinline__ int Queries(int queries) const { return min(queries, rows * group - query0); }
};

// Shared memory of the merge: [kWarps][8 kN][kDim + 4] outputs, [kWarps][8 kN][2] maxima and sums, then
// factors of the warps [8 kN][kWarps] and [8 kN][2] of the block.
template <int kDim, int kN>
constexpr int MergeBytes() {
  return Max(8 * kN * (kWarps * (kDim + 4 + 2 + 1) + 2 + 1) * 4, 8 * kN * (kMostChunks + 2) * 4);
}

template <class V, int kDim, int kN>
__device__ __forceinline__ void KeepState(const State<kDim, kN>& state, float* shared) {
  constexpr int kQueries = 8 * kN, kPitch = kDim + 4;
  const int warp = int(threadIdx.x / 32), g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
  float* o = shared + warp * kQueries * kPitch;
  float* ends = shared + kWarps * kQueries * kPitch + warp * kQueries * 2;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int query = 8 * n + 2 * j + e;
      const float sum = SumGroups(state.sum[n][e]), least = SumGroups(state.least[n][e]);
      if (g == 0) ends[query * 2] = state.max[n][e], ends[query * 2 + 1] = sum;
#pragma unroll
      for (int u = 0; u < kDim / 8; ++u)
        o[query * kPitch + ValueChannel<V>(u, g)] =
            state.o[u / 2][n][u % 2 * 2 + e] * ValueUnit<V>(u) + least;
    }
}

__device__ __forceinline__ void AddScaled(float4& sum, float4 x, float by) {
  sum.x += x.x * by, sum.y += x.y * by, sum.z += x.z * by, sum.w += x.w * by;
}

// Writes four channels of a query: o / sum. The lane of channel 0 writes the log-sum-exp.
__device__ __forceinline__ void Write(const DecodeArgs& a, const Item& item, int query, int channel, float4 o,
                                      float max, float sum) {
  const int at = item.query0 + query;
  const int64_t row = item.row0 + at / item.group;
  const int head = item.head * item.group + at % item.group;
  const float by = 1.0f / sum;
  __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(o.x * by, o.y * by),
                            __floats2bfloat162_rn(o.z * by, o.w * by)};
  *reinterpret_cast<uint2*>(a.out + row * a.out_stride + int64_t{head} * a.head_dim + channel) =
      *reinterpret_cast<uint2*>(pair);
  if (a.lse != nullptr && channel == 0)
    a.lse[row * a.heads + head] = (max + log2f(sum)) * 0.6931471805599453f;
}

// Merges all chunks of an entry. `first`: its partial of chunk 0, each `stride` floats. shared:
// [queries][chunks] factors, then [queries][2] maxima and sums. A warp finds the factors of a query, each
// lane every 32nd chunk.
template <int kQueries>
__device__ __forceinline__ void MergeChunks(const DecodeArgs& a, const Item& item, const float* first,
                                            int64_t stride, float* shared) {
  const int chunks = item.last_chunk - item.first_chunk + 1, queries = item.Queries(kQueries);
  const float* const begin = first + item.first_chunk * stride;
  float* const whole = shared + queries * chunks;
  for (int query = int(threadIdx.x / 32); query < queries; query += kWarps) {
    const float* ends = begin + kQueries * a.head_dim + query * 2;
    float max = kNoScore, sum = 0;
    for (int c = int(threadIdx.x % 32); c < chunks; c += 32) max = fmaxf(max, __ldcg(ends + c * stride));
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, lanes));
    for (int c = int(threadIdx.x % 32); c < chunks; c += 32) {
      const float2 end = __ldcg(reinterpret_cast<const float2*>(ends + c * stride));
      const float by = Exp2(end.x - max);
      shared[query * chunks + c] = by;
      sum += end.y * by;
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
    if (threadIdx.x % 32 == 0) whole[2 * query] = max, whole[2 * query + 1] = sum;
  }
  __syncthreads();
  const int quads = a.head_dim / 4;
  for (int i = int(threadIdx.x); i < queries * quads; i += int(blockDim.x)) {
    const int query = i / quads, channel = i % quads * 4;
    const float* o = begin + query * a.head_dim + channel;
    float4 total = {0, 0, 0, 0};
#pragma unroll 16
    for (int c = 0; c < chunks; ++c)
      AddScaled(total, __ldcg(reinterpret_cast<const float4*>(o + c * stride)), shared[query * chunks + c]);
    Write(a, item, query, channel, total, whole[2 * query], whole[2 * query + 1]);
  }
}

// From the states that KeepState left: the outputs, or this chunk's partial, or as the last block of the
// entry the merge of all.
template <int kDim, int kN>
__device__ __forceinline__ void Finish(const DecodeArgs& a, const Plan& plan, const Item& item,
                                       float* shared) {
  constexpr int kQueries = 8 * kN, kPitch = kDim + 4;
  const float* ends = shared + kWarps * kQueries * kPitch;
  float* factors = shared + kWarps * kQueries * (kPitch + 2);
  float* whole = factors + kWarps * kQueries;
  int* last = reinterpret_cast<int*>(whole + 2 * kQueries);
  if (threadIdx.x < kQueries) {
    const int query = int(threadIdx.x);
    float max = kNoScore, sum = 0;
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, ends[(w * kQueries + query) * 2]);
    for (int w = 0; w < kWarps; ++w) {
      const float by = Exp2(ends[(w * kQueries + query) * 2] - max);
      factors[query * kWarps + w] = by;
      sum += ends[(w * kQueries + query) * 2 + 1] * by;
    }
    whole[2 * query] = max, whole[2 * query + 1] = sum;
  }
  __syncthreads();
  const int64_t stride = int64_t{kQueries} * (a.head_dim + 2);
  const int slot = (item.entry * a.kv_heads + item.head) * plan.groups + item.group0;
  float* const first = plan.partials + int64_t{slot} * plan.chunks * stride;
  float* const mine = first + item.chunk * stride;
  const bool alone = item.first_chunk == item.last_chunk;
  const int quads = a.head_dim / 4;
  for (int i = int(threadIdx.x); i < item.Queries(kQueries) * quads; i += int(blockDim.x)) {
    const int query = i / quads, channel = i % quads * 4;
    float4 total = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      AddScaled(total, *reinterpret_cast<const float4*>(shared + (w * kQueries + query) * kPitch + channel),
                factors[query * kWarps + w]);
    if (alone)
      Write(a, item, query, channel, total, whole[2 * query], whole[2 * query + 1]);
    else
      __stcg(reinterpret_cast<float4*>(mine + query * a.head_dim + channel), total);
  }
  if (alone) return;
  if (threadIdx.x < kQueries)
    __stcg(reinterpret_cast<float2*>(mine + kQueries * a.head_dim) + threadIdx.x,
           float2{whole[2 * threadIdx.x], whole[2 * threadIdx.x + 1]});
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // after the barrier it covers what every thread of the block wrote
    *last = atomicAdd(plan.counts + slot, 1) == item.last_chunk - item.first_chunk;
    if (*last) plan.counts[slot] = 0;
  }
  __syncthreads();
  const bool merge = *last != 0;
  __syncthreads();  // the factors of chunks lie where `last` does
  if (!merge) return;
  __threadfence();
  MergeChunks<kQueries>(a, item, first, stride, shared);
}

}  // namespace nibble::cuda::decode
