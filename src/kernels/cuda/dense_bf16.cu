// SPDX-License-Identifier: Apache-2.0
// Floor 4. bf16 products on the tensor cores of sm_80 and later. Outputs are the 16 rows of an instruction
// and tokens its 8 columns, so that one token wastes little. Up to 16 rows one warp streams 16 outputs
// through a ring of its own: at that size only the weights' bytes count. Above, 128 outputs a block.
#include "kernels/cuda/dense.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/mma.cuh"

namespace nibble::cuda {
namespace {

__device__ void Store(const DenseBf16Args& a, int n, int row, float value) {
  if (n >= a.n || row >= a.rows) return;
  float* y = a.y + row * a.y_stride + n;
  if (a.bias != nullptr) value = __fadd_rn(value, a.bias[n]);
  *y = a.accumulate ? __fadd_rn(value, *y) : value;
}

// An instruction's outputs n0 .. n0 + 15 of tokens row0 .. row0 + 7.
__device__ void StoreTile(const DenseBf16Args& a, int n0, int row0, const float (&d)[4]) {
  const int g = int(threadIdx.x) % 32 / 4, j = int(threadIdx.x) % 4;
  for (int i = 0; i < 4; ++i) Store(a, n0 + g + i / 2 * 8, row0 + 2 * j + i % 2, d[i]);
}

// Starts the copy of eight inputs of row `row` of a matrix with `rows` rows; zeros outside.
__device__ void CopyEight(uint32_t to, const uint16_t* matrix, int row, int rows, int at, int k) {
  const bool inside = row < rows && at < k;
  CopyAsync<16>(to, inside ? matrix + int64_t{row} * k + at : matrix, inside ? 16 : 0);
}

// ---- few rows ----

constexpr int kRingSlab = 128, kRingStages = 6, kRingRow = kRingSlab * 2;  // bytes

// kEights x 8 tokens.
template <int kEights>
__global__ void __launch_bounds__(32) FewRowsKernel(DenseBf16Args a) {
  constexpr int kRows = 16 + 8 * kEights, kStage = kRows * kRingRow, kChunks = kRingSlab / 8;
  extern __shared__ __align__(128) std::byte ring[];
  const uint32_t base = SharedAddress(ring);
  const int lane = int(threadIdx.x), n0 = int(blockIdx.x) * 16, slabs = (a.k + kRingSlab - 1) / kRingSlab;
  const auto copy = [&](int slab) {
    if (slab < slabs) {
      const uint32_t to = base + slab % kRingStages * kStage;
      for (int i = lane; i < kRows * kChunks; i += 32) {
        const int r = i / kChunks, c = i % kChunks, k = slab * kRingSlab + c * 8;
        const uint32_t at = to + r * kRingRow + (c ^ (r & 7)) * 16;
        r < 16 ? CopyEight(at, a.w, n0 + r, a.n, k, a.k) : CopyEight(at, a.x, r - 16, a.rows, k, a.k);
      }
    }
    CopyCommit();
  };
  for (int s = 0; s < kRingStages - 1; ++s) copy(s);
  float sum[kEights][4] = {};
  const int row = lane % 16, half = lane / 16;
  for (int slab = 0; slab < slabs; ++slab) {
    CopyWait<kRingStages - 2>();
    __syncwarp();
    copy(slab + kRingStages - 1);
    const uint32_t from = base + slab % kRingStages * kStage;
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      uint32_t w[4], x[4];
      LoadMatrices<false>(w, from + row * kRingRow + ((c + half) ^ (row & 7)) * 16);
      const int token = kEights == 2 ? lane / 16 * 8 + lane % 8 : lane % 8, chunk = c + lane / 8 % 2;
      LoadMatrices<false>(x, from + (16 + token) * kRingRow + (chunk ^ (token & 7)) * 16);
      for (int e = 0; e < kEights; ++e)
        Mma16816<true>(sum[e], w[0], w[1], w[2], w[3], x[2 * e], x[2 * e + 1]);
    }
  }
  for (int e = 0; e < kEights; ++e) StoreTile(a, n0, 8 * e, sum[e]);
}

// ---- many rows ----

constexpr int kOutputs = 128, kSlab = 32, kStages = 4, kThreads = 256, kRow = kSlab * 2;  // bytes

__device__ uint32_t Swizzled(int row, int chunk) { return row * kRow + (chunk ^ (row >> 1 & 3)) * 16; }

// 4 x 2 warps of 32 outputs and half of the block's tokens.
template <int kTokens>
__global__ void __launch_bounds__(kThreads) ManyRowsKernel(DenseBf16Args a) {
  constexpr int kStage = (kOutputs + kTokens) * kRow, kEights = kTokens / 16;
  extern __shared__ __align__(128) std::byte ring[];
  const uint32_t base = SharedAddress(ring);
  const int t = int(threadIdx.x), lane = t % 32, warp = t / 32, slabs = (a.k + kSlab - 1) / kSlab;
  const int n0 = int(blockIdx.y) * kOutputs, row0 = int(blockIdx.x) * kTokens;
  const auto copy = [&](int slab) {
    if (slab < slabs) {
      const uint32_t to = base + slab % kStages * kStage;
#pragma unroll
      for (int i = t; i < (kOutputs + kTokens) * 4; i += kThreads) {
        const int r = i / 4, k = slab * kSlab + i % 4 * 8;
        r < kOutputs ? CopyEight(to + Swizzled(r, i % 4), a.w, n0 + r, a.n, k, a.k)
                     : CopyEight(to + Swizzled(r, i % 4), a.x, row0 + r - kOutputs, a.rows, k, a.k);
      }
    }
    CopyCommit();
  };
  for (int s = 0; s < kStages - 1; ++s) copy(s);
  float sum[2][kEights][4] = {};
  const int w_row = warp / 2 * 32 + lane % 16,
            x_row = kOutputs + warp % 2 * (kTokens / 2) + lane / 16 * 8 + lane % 8;
  for (int slab = 0; slab < slabs; ++slab) {
    CopyWait<kStages - 2>();
    __syncthreads();
    copy(slab + kStages - 1);
    const uint32_t from = base + slab % kStages * kStage;
#pragma unroll
    for (int c = 0; c < kSlab / 8; c += 2) {
      uint32_t w[2][4], x[4];
      for (int i = 0; i < 2; ++i) LoadMatrices<false>(w[i], from + Swizzled(w_row + 16 * i, c + lane / 16));
#pragma unroll
      for (int e = 0; e < kEights; e += 2) {
        LoadMatrices<false>(x, from + Swizzled(x_row + 8 * e, c + lane / 8 % 2));
        for (int i = 0; i < 2; ++i)
          for (int half = 0; half < 2; ++half)
            Mma16816<true>(sum[i][e + half], w[i][0], w[i][1], w[i][2], w[i][3], x[2 * half],
                           x[2 * half + 1]);
      }
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int e = 0; e < kEights; ++e)
      StoreTile(a, n0 + warp / 2 * 32 + 16 * i, row0 + warp % 2 * (kTokens / 2) + 8 * e, sum[i][e]);
}

__global__ void RoundKernel(RoundArgs a) {
  const int row = int(blockIdx.y), i = int(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i >= a.k) return;
  const float4 x = *reinterpret_cast<const float4*>(a.x + row * a.x_stride + i);
  const ushort4 y = {FloatToBf16(x.x), FloatToBf16(x.y), FloatToBf16(x.z), FloatToBf16(x.w)};
  *reinterpret_cast<ushort4*>(a.to + int64_t{row} * a.k + i) = y;
}

__global__ void WidenKernel(WidenArgs a) {
  const int row = int(blockIdx.y), i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < a.k) a.to[row * a.to_stride + i] = Bf16ToFloat(a.x[int64_t{row} * a.k + i]);
}

template <int kEights>
cudaError_t LaunchFew(const DenseBf16Args& a, Stream stream) {
  constexpr int kShared = kRingStages * (16 + 8 * kEights) * kRingRow;
  const cudaError_t error = AllowShared(&FewRowsKernel<kEights>, kShared);
  if (error == cudaSuccess) FewRowsKernel<kEights><<<unsigned((a.n + 15) / 16), 32, kShared, stream>>>(a);
  return error;
}

template <int kTokens>
cudaError_t LaunchMany(const DenseBf16Args& a, Stream stream) {
  constexpr int kShared = kStages * (kOutputs + kTokens) * kRow;
  const cudaError_t error = AllowShared(&ManyRowsKernel<kTokens>, kShared);
  const dim3 grid(unsigned((a.rows + kTokens - 1) / kTokens), unsigned((a.n + kOutputs - 1) / kOutputs));
  if (error == cudaSuccess) ManyRowsKernel<kTokens><<<grid, kThreads, kShared, stream>>>(a);
  return error;
}

}  // namespace

Launch DenseBf16(const DenseBf16Args& a, Stream stream) {
  if (a.k % 8 != 0) return Refused("bf16 product: k must be a multiple of 8");
  const cudaError_t error = a.rows <= 8     ? LaunchFew<1>(a, stream)
                            : a.rows <= 16  ? LaunchFew<2>(a, stream)
                            : a.rows <= 256 ? LaunchMany<64>(a, stream)
                                            : LaunchMany<128>(a, stream);
  return error == cudaSuccess ? Launched("bf16 product") : Launch{int(error), "bf16 product"};
}

Launch RoundToBf16(const RoundArgs& a, Stream stream) {
  if (a.k % 4 != 0) return Refused("rounding to bf16: k must be a multiple of 4");
  RoundKernel<<<dim3(unsigned((a.k / 4 + 255) / 256), unsigned(a.rows)), 256, 0, stream>>>(a);
  return Launched("rounding to bf16");
}

Launch WidenBf16(const WidenArgs& a, Stream stream) {
  WidenKernel<<<dim3(unsigned((a.k + 255) / 256), unsigned(a.rows)), 256, 0, stream>>>(a);
  return Launched("widening bf16");
}

}  // namespace nibble::cuda
