// SPDX-License-Identifier: Apache-2.0
// The second launch of SparQ, second half, step 3: exact attention over the listed tokens, and the mean of V
// for the weight of the others.
#pragma once
#include "kernels/cuda/sparq_select.cuh"

namespace nibble::cuda::sparq {

// Approximate weight of the block's listed tokens. A warp a head.
__device__ __forceinline__ void WeighList(const Plan& plan, const Row& row, const Shared& s, int count) {
#pragma unroll 1
  for (int h = int(threadIdx.x / 32); h < row.group; h += kWarps) {
    float sum = 0;
#pragma unroll 1
    for (int i = int(threadIdx.x % 32); i < count; i += 32)
      sum += Exp2(row.Logits(plan, h)[s.list[i]] - s.level[h]);
    sum = SumOfWarp(sum);
    if (threadIdx.x % 32 == 0) s.alpha[h] = sum;
  }
}

// The sum of V over all that the row sees, in this block's share of the channels: the running sums of the
// pages, less the rows before the window, and the open rows. Parts of a channel's rows are added in order.
__device__ __forceinline__ void SumValues(const SparqDecodeArgs& args, const Row& row, const Share& blocks,
                                          const Shared& s) {
  const DecodeArgs& a = args.cache;
  const int share = row.dim / blocks.blocks, parts = kThreads / share;
  const int part = int(threadIdx.x) / share, d = blocks.rank * share + int(threadIdx.x) % share;
  const int32_t* table = a.page_table + int64_t{row.entry} * a.max_pages;
  if (part < parts) {
    const int begin = max(row.first - row.own * kPage, 0), end = row.position % kPage + 1;
    const std::byte* open = OpenPage(a, a.v, row);
    float sum = 0;
#pragma unroll 1
    for (int t = begin + part; t < end; t += parts)
      sum += Pair(Load<uint16_t>(open + (t * row.dim + d) * 2), RawIsBf16(a.v)).x;
    if (row.first_page < row.own) {
      const std::byte* page = SealedPage(a.v, row, table[row.first_page]);
#pragma unroll 1
      for (int t = part; t < row.first % kPage; t += parts) {
        const float4 x = SealedChannels(page, a.v.codec, row.dim, t, d & ~3);
        sum -= d % 4 == 0 ? x.x : d % 4 == 1 ? x.y : d % 4 == 2 ? x.z : x.w;
      }
    }
    s.parts[part * share + int(threadIdx.x) % share] = sum;
  }
  __syncthreads();
  if (int(threadIdx.x) < share) {
    const auto running = [&](int page) {
      return Load<float>(args.records + int64_t{table[page]} * args.record_stride +
                         row.head * args.record_head_stride + args.v_sum + d * 4);
    };
    float sum = row.first_page < row.own ? running(row.own - 1) : 0.0f;
    if (row.first_page < row.own && row.first_page > 0) sum -= running(row.first_page - 1);
    for (int i = 0; i < parts; ++i) sum += s.parts[i * share + int(threadIdx.x)];
    s.mean[threadIdx.x] = sum;
  }
  __syncthreads();
}

// A warp's online softmax for kHeads heads; a lane has channels 4 lane .. 4 lane + 3 of each 128.
template <int kChunks>
struct Attention {
  float max[kHeads], sum[kHeads];
  float4 out[kHeads][kChunks];

  __device__ __forceinline__ Attention() {
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {
      max[e] = kNoScore, sum[e] = 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) out[e][c] = {0, 0, 0, 0};
    }
  }
  // q: [kHeads][head_dim].
  __device__ __forceinline__ void Add(const float4 (&k)[kChunks], const float4 (&v)[kChunks], const float* q,
                                      int dim, float scale) {
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {
      float score = 0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int d = int(threadIdx.x % 32) * 4 + 128 * c;
        if (d >= dim) continue;
        const float4 x = *reinterpret_cast<const float4*>(q + e * dim + d);
        score = fmaf(x.x, k[c].x, fmaf(x.y, k[c].y, fmaf(x.z, k[c].z, fmaf(x.w, k[c].w, score))));
      }
      score = SumOfWarp(score) * scale;
      const float next = fmaxf(max[e], score), fix = Exp2(max[e] - next), weight = Exp2(score - next);
      max[e] = next;
      sum[e] = fmaf(sum[e], fix, weight);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float4& o = out[e][c];
        o.x = fmaf(o.x, fix, weight * v[c].x), o.y = fmaf(o.y, fix, weight * v[c].y);
        o.z = fmaf(o.z, fix, weight * v[c].z), o.w = fmaf(o.w, fix, weight * v[c].w);
      }
    }
  }
};

template <int kChunks>
__device__ __forceinline__ void LoadToken(float4 (&x)[kChunks], const DecodeArgs& a, const DecodeSide& side,
                                          const Row& row, int position) {
  const int32_t* table = a.page_table + int64_t{row.entry} * a.max_pages;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int d = int(threadIdx.x % 32) * 4 + 128 * c;
    x[c] = d < row.dim ? Channels(a, side, row, table, position, d) : float4{0, 0, 0, 0};
  }
}

// Attention of heads h0 .. over the list: the warps in turn, then all of them in order. Two tokens of a warp
// are under way together.
template <int kChunks>
__device__ __forceinline__ void AttendList(const DecodeArgs& a, const Plan& plan, const Row& row,
                                           const Shared& s, int h0, int count) {
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32), dim = row.dim;
  Attention<kChunks> state;
#pragma unroll 1
  for (int i = warp; i < count; i += 2 * kWarps) {
    float4 k[2][kChunks], v[2][kChunks];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int position = s.list[min(i + j * kWarps, count - 1)];
      LoadToken(k[j], a, a.k, row, position);
      LoadToken(v[j], a, a.v, row, position);
    }
    state.Add(k[0], v[0], s.q + h0 * dim, dim, plan.scale);
    if (i + kWarps < count) state.Add(k[1], v[1], s.q + h0 * dim, dim, plan.scale);
  }
  float* out = s.parts + warp * kHeads * dim;
  float2* ends = reinterpret_cast<float2*>(s.parts + kWarps * kHeads * dim);
#pragma unroll
  for (int e = 0; e < kHeads; ++e) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      if (lane * 4 + 128 * c < dim)
        *reinterpret_cast<float4*>(out + e * dim + lane * 4 + 128 * c) = state.out[e][c];
    if (lane == 0) ends[e * kWarps + warp] = {state.max[e], state.sum[e]};
  }
  __syncthreads();
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kHeads * dim; i += kThreads) {
    const float2* of_head = ends + i / dim * kWarps;
    float max = kNoScore, sum = 0, total = 0;
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, of_head[w].x);
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) {
      const float by = Exp2(of_head[w].x - max);
      sum = fmaf(of_head[w].y, by, sum);
      total = fmaf(s.parts[w * kHeads * dim + i], by, total);
    }
    s.out[h0 * dim + i] = total;
    if (i % dim == 0) s.ends[h0 + i / dim] = {max, sum};
  }
  __syncthreads();
}

__device__ __forceinline__ float SumOf16(float x) {
#pragma unroll
  for (int lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// The outputs in this block's share of the channels, 16 lanes each: a lane reads what one block has.
__device__ __forceinline__ void WriteOutputs(const DecodeArgs& a, const Plan& plan, const Row& row,
                                             const Share& blocks, const Shared& s) {
  const int share = row.dim / blocks.blocks, b = int(threadIdx.x) % 16, outputs = row.group * share;
  const bool mean = plan.mean && !row.all;
  const float seen = float(row.position - row.first + 1);
#pragma unroll 1
  for (int i0 = int(threadIdx.x) / 32 * 2; i0 < outputs; i0 += kThreads / 16) {
    const int i = min(i0 + int(threadIdx.x) % 32 / 16, outputs - 1), h = i / share;
    const int d = blocks.rank * share + i % share;
    float2 end = {kNoScore, 0};
    float out = 0, alpha = 0;
    if (b < blocks.blocks) {
      end = *OfBlock(s.ends + h, b);
      out = *OfBlock(s.out + h * row.dim + d, b);
      if (mean) alpha = *OfBlock(s.alpha + h, b);
    }
    float max = end.x;
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, lanes));
    const float by = Exp2(end.x - max);
    float y = SumOf16(out * by) / SumOf16(end.y * by);
    if (mean) {
      alpha = SumOf16(alpha);
      y = alpha * y + (1 - alpha) / seen * s.mean[i % share];
    }
    if (b == 0)
      reinterpret_cast<__nv_bfloat16*>(
          a.out)[row.at * a.out_stride + (row.head * row.group + h) * row.dim + d] = __float2bfloat16_rn(y);
  }
}

}  // namespace nibble::cuda::sparq
