// SPDX-License-Identifier: Apache-2.0
// Floor 4. The 4-bit integer matmul for up to 16 rows, at the speed of memory.
//
// A block has `units` of 16 outputs and all inputs. An item is 16 outputs x 128 inputs of the packed matrix,
// four steps of m16n8k32; a warp takes an equal part of the block's items in order, whatever the shape, and
// adds its integer sums up in shared memory when it comes to another unit: integers, so that the order cannot
// show. A lane copies the very bytes of its fragments to shared memory and reads them back itself, which
// needs no barrier. The rings are under way before the kernel ahead has ended.
#pragma once
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sm90/linear_weights.cuh"
#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::cuda::sm90 {

inline constexpr int kFewThreads = 512, kFewWarps = kFewThreads / 32, kUnitRows = 16;
inline constexpr int kFewMostShared = 226 * 1024, kFewAlone = 116 * 1024;  // more than half of what there is

inline constexpr int kFewDeep = 6;  // with rings from this depth on a block is alone on its multiprocessor

// Where things lie in a block's shared memory, host and device.
struct FewLayout {
  int units;       // of a block
  int x_stride;    // bytes; rows of x start 16 bytes apart modulo 128
  int sum_stride;  // words between the sums of two rows of x
  int x, sums, outputs, bytes;

  static FewLayout Of(const LinearIntArgs& a, int units, int ring_bytes) {
    FewLayout l{};
    l.units = units;
    l.x_stride = KBlocks(a.w.k) * kBlockK + 16;
    l.sum_stride = units * kUnitRows + 4;
    l.x = ring_bytes;
    l.sums = l.x + a.rows * l.x_stride;
    l.outputs = l.sums + a.rows * l.sum_stride * 4;
    l.bytes = l.outputs + units * kUnitRows * 8;
    return l;
  }
};

// What a lane copies of an item: its 16 bytes of either half, its word of scales.
struct FewSlot {
  uint4 codes[2][32];
  uint32_t scales[32];
};

// The items of a warp, in order.
template <Storage kStorage>
struct FewCursor {
  const std::byte* block;  // of the item
  int unit, kb, k_blocks;
  const std::byte* blocks;

  NIBBLE_DEVICE FewCursor(const LinearWeight& w, int first_unit, int item)
      : k_blocks(KBlocks(w.k)), blocks(w.blocks) {
    unit = first_unit + item / k_blocks, kb = item % k_blocks;
    block = blocks + (int64_t{unit / 4} * k_blocks + kb) * BlockBytes(kStorage);
  }
  NIBBLE_DEVICE void advance() {
    block += BlockBytes(kStorage);
    if (++kb < k_blocks) return;
    kb = 0;
    if (++unit % 4 != 0) block -= int64_t{k_blocks} * BlockBytes(kStorage);
  }
  NIBBLE_DEVICE void copy(FewSlot* slot) const {
    const int lane = int(threadIdx.x % 32);
    const std::byte* codes = block + unit % 4 * 512 + lane * 16;
    CopyAsync<16>(SharedAddress(&slot->codes[0][lane]), codes);
    CopyAsync<16>(SharedAddress(&slot->codes[1][lane]), codes + 2048);
    if constexpr (kStorage == Storage::kW4A8Group)
      CopyAsync<4>(SharedAddress(&slot->scales[lane]), block + 4096 + unit % 4 * 32 + lane / 4 * 4);
  }
};

NIBBLE_DEVICE void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x: address of this lane's row for the matrices of the item's first 64 inputs.
template <Storage kStorage, int kTiles>
NIBBLE_DEVICE void multiply_item(const FewSlot& slot, uint32_t x, const int (&row_offset)[kTiles],
                                 int32_t (&sum)[kTiles][4]) {
  const int lane = int(threadIdx.x % 32);
  const GroupInfo group = group_of<kStorage>(kStorage == Storage::kW4A8Group ? slot.scales[lane] : 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t fragment[2][4];
    dequantize_words<kStorage>(slot.codes[half][lane], group, fragment);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      uint32_t b[4];
      LoadMatrices<false>(b, x + uint32_t(row_offset[t] + 64 * half));
      mma_u8s8(sum[t], fragment[0], b[0], b[1]);
      mma_u8s8(sum[t], fragment[1], b[2], b[3]);
    }
  }
}

// Adds a warp's sums of a unit to the block's, [row of x][output].
template <int kTiles>
NIBBLE_DEVICE void add_sums(int* sums, int stride, int rows, int unit, int32_t (&sum)[kTiles][4]) {
  const int lane = int(threadIdx.x % 32);
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * t + lane % 4 * 2 + i % 2;
      if (row < rows) atomicAdd(sums + row * stride + unit * kUnitRows + lane / 4 + 8 * (i / 2), sum[t][i]);
      sum[t][i] = 0;
    }
}

// Two neighbouring outputs of a row of x, in the order of operations of kernels/ref/linear_int.cc.
template <class T>
NIBBLE_DEVICE void store_pair(const LinearIntArgs& a, int64_t at, float v0, float v1);
template <>
NIBBLE_DEVICE void store_pair<float>(const LinearIntArgs& a, int64_t at, float v0, float v1) {
  float2* y = reinterpret_cast<float2*>(static_cast<float*>(a.y) + at);
  if (a.accumulate) {
    const float2 old = *y;
    v0 = __fadd_rn(v0, old.x), v1 = __fadd_rn(v1, old.y);
  }
  *y = {v0, v1};
}
template <>
NIBBLE_DEVICE void store_pair<__nv_bfloat16>(const LinearIntArgs& a, int64_t at, float v0, float v1) {
  uint32_t* y = reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(a.y) + at);
  if (a.accumulate) {
    const uint32_t old = *y;
    v0 = __fadd_rn(v0, __uint_as_float(old << 16)), v1 = __fadd_rn(v1, __uint_as_float(old & 0xFFFF0000u));
  }
  *y = hopper::to_bf16x2(v0, v1);
}

// outputs: scale and offset of each of the block's.
struct FewOutput {
  float scale;
  uint32_t offset;  // what was added to every weight
};

NIBBLE_DEVICE void finish(const LinearIntArgs& a, const FewLayout& l, int first_unit, const int* sums,
                          const FewOutput* outputs) {
  const int row0 = first_unit * kUnitRows, pairs = min(l.units * kUnitRows, a.w.n - row0) / 2;
  for (int i = int(threadIdx.x); i < pairs * a.rows; i += kFewThreads) {
    const int m = i / pairs, n = i % pairs * 2;
    const float scale_x = a.x_scale[m];
    const uint32_t row_sum = uint32_t(a.row_sum[m]);
    const int2 sum = *reinterpret_cast<const int2*>(sums + m * l.sum_stride + n);
    float v[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const FewOutput o = outputs[n + e];
      const int32_t exact = int32_t(uint32_t(e == 0 ? sum.x : sum.y) - o.offset * row_sum);
      v[e] = __fmul_rn(__int2float_rn(exact), __fmul_rn(o.scale, scale_x));
      if (a.bias != nullptr) v[e] = __fadd_rn(v[e], __ldg(a.bias + row0 + n + e));
    }
    const int64_t at = m * a.y_stride + row0 + n;
    a.type == Real::kF32 ? store_pair<float>(a, at, v[0], v[1])
                         : store_pair<__nv_bfloat16>(a, at, v[0], v[1]);
  }
}

template <Storage kStorage, int kTiles, int kDepth>
__global__ __launch_bounds__(kFewThreads, 2) void linear_few_kernel(const __grid_constant__ LinearIntArgs a,
                                                                    const __grid_constant__ FewLayout l) {
  using namespace hopper;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint64_t x_full;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x % 32);
  FewSlot* ring = reinterpret_cast<FewSlot*>(memory) + warp * kDepth;
  int* sums = reinterpret_cast<int*>(memory + l.sums);
  FewOutput* outputs = reinterpret_cast<FewOutput*>(memory + l.outputs);
  const int first_unit = int(blockIdx.x) * l.units;
  const int units = min(l.units, (a.w.n + kUnitRows - 1) / kUnitRows - first_unit),
            items = units * KBlocks(a.w.k), begin = items * warp / kFewWarps,
            end = items * (warp + 1) / kFewWarps;

  FewCursor<kStorage> ahead(a.w, first_unit, begin);
  int to_load = end - begin;
  const auto load = [&](int slot) {
    if (to_load-- > 0) ahead.copy(ring + slot), ahead.advance();
    CopyCommit();
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) load(i);
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    barrier_init(&x_full, 1);
    barrier_init_fence();
    wait_for_previous_kernel();
    barrier_arrive_expect(&x_full, uint32_t(a.rows * a.w.k));
    for (int m = 0; m < a.rows; ++m)
      bulk_load(memory + l.x + m * l.x_stride, a.x + int64_t{m} * a.w.k, uint32_t(a.w.k), &x_full);
  }
  for (int i = int(threadIdx.x); i < a.rows * l.sum_stride; i += kFewThreads) sums[i] = 0;
  for (int i = int(threadIdx.x); i < units * kUnitRows; i += kFewThreads) {
    const int n = first_unit * kUnitRows + i;
    outputs[i] = {__ldg(a.w.scale + n),
                  kStorage == Storage::kW4A8Group ? 128u : uint32_t(__ldg(a.w.zero + n))};
  }
  __syncthreads();
  barrier_wait(&x_full, 0);

  // Rows of x beyond the last are the last again; their sums are dropped.
  int row_offset[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) row_offset[t] = min(8 * t + lane % 8, a.rows - 1) * l.x_stride;
  const uint32_t x = SharedAddress(memory + l.x) + uint32_t(lane / 8 * 16);
  int32_t sum[kTiles][4] = {};
  int unit = begin / KBlocks(a.w.k), kb = begin % KBlocks(a.w.k), slot = 0;
  for (int item = begin; item < end; ++item) {
    CopyWait<kDepth - 1>();
    multiply_item<kStorage, kTiles>(ring[slot], x + uint32_t(kb * kBlockK), row_offset, sum);
    load(slot);
    if (++slot == kDepth) slot = 0;
    if (++kb == KBlocks(a.w.k)) {
      add_sums<kTiles>(sums, l.sum_stride, a.rows, unit++, sum);
      kb = 0;
    }
  }
  if (kb > 0 && begin < end) add_sums<kTiles>(sums, l.sum_stride, a.rows, unit, sum);
  wait_for_previous_kernel();  // of every thread that touches y
  __syncthreads();
  finish(a, l, first_unit, sums, outputs);
}

template <Storage kStorage, int kTiles, int kDepth>
Launch launch_few(const LinearIntArgs& a, int processors, cudaStream_t stream) {
  const auto kernel = linear_few_kernel<kStorage, kTiles, kDepth>;
  static const cudaError_t allowed = AllowShared(kernel, kFewMostShared);
  if (allowed != cudaSuccess) return {int(allowed), "LinearInt: shared memory"};
  const int all = (a.w.n + kUnitRows - 1) / kUnitRows, units = (all + processors - 1) / processors;
  const FewLayout l = FewLayout::Of(a, units, kFewWarps * kDepth * int(sizeof(FewSlot)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = a.early_start;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((all + units - 1) / units));
  config.blockDim = dim3(kFewThreads);
  // Of two blocks that share a multiprocessor while another has none, the launch waits for both.
  config.dynamicSmemBytes = size_t(kDepth >= kFewDeep ? max(l.bytes, kFewAlone) : l.bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (const cudaError_t e = cudaLaunchKernelEx(&config, kernel, a, l))
    return {int(e), "LinearInt: the launch"};
  return Launched("LinearInt");
}

Launch linear_few(const LinearIntArgs&, LinearPlan, int processors, cudaStream_t);

// tokens is 0 where the kernel does not apply or the others are faster. Measured on one H200.
LinearPlan PlanFew(Storage, int n, int k, int rows, int processors);

}  // namespace nibble::cuda::sm90
