// SPDX-License-Identifier: Apache-2.0
// Floor 4. A block of threads has 16 outputs; its warps share the inputs, each with its part of the weights
// in registers before the kernel ahead has ended. Integer sums are exact, so that their order cannot show;
// the float end has the order of operations of kernels/ref/linear_int.cc.
#include "kernels/cuda/linear_dot.h"
#include "kernels/cuda/programmatic.cuh"

namespace nibble::cuda {
namespace {

using weight::Storage;

constexpr int kUnit = 16;        // outputs of a block
constexpr int kBlocksAhead = 4;  // blocks of weights that a warp holds

__device__ __forceinline__ uint4 LoadOnce(const std::byte* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ int Dot(uint32_t u, uint32_t s, int sum) {  // u8 x s8
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(u), "r"(s), "r"(sum));
  return d;
}

// A lane's part of 16 outputs x 128 inputs: outputs g and g + 8 (g = lane / 4), of each 64 inputs 16.
template <Storage kStorage>
struct Piece {
  uint4 half[2];
  uint32_t scales;  // scale and scale * zero of g, then of g + 8

  __device__ __forceinline__ void Load(const std::byte* block, int strip) {
    const int lane = int(threadIdx.x % 32);
    half[0] = LoadOnce(block + strip * 512 + lane * 16);
    half[1] = LoadOnce(block + 2048 + strip * 512 + lane * 16);
    if constexpr (kStorage == Storage::kW4A8Group)
      scales = __ldg(reinterpret_cast<const uint32_t*>(block + 4096) + strip * 8 + lane / 4);
  }
  // x: of the block's first input, in shared memory.
  template <int kRows>
  __device__ __forceinline__ void Add(const uint8_t* x, int x_stride, int (&sum)[kRows][2]) const {
    const int j = int(threadIdx.x % 4);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      int dot[2] = {0, 0}, ones = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t words[4] = {half[h].x, half[h].y, half[h].z, half[h].w};
        const auto* from = reinterpret_cast<const uint32_t*>(x + m * x_stride + 64 * h) + j;
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // inputs 16 i .. and 32 + 16 i ..
          const uint32_t low = from[4 * i], high = from[8 + 4 * i];
#pragma unroll
          for (int o = 0; o < 2; ++o) {
            dot[o] = Dot(words[2 * i + o] & 0x0F0F0F0Fu, low, dot[o]);
            dot[o] = Dot(words[2 * i + o] >> 4 & 0x0F0F0F0Fu, high, dot[o]);
          }
          if constexpr (kStorage == Storage::kW4A8Group)
            ones = Dot(0x01010101u, low, Dot(0x01010101u, high, ones));
        }
      }
      if constexpr (kStorage == Storage::kW4A8Group) {
        sum[m][0] += int(scales & 0xFF) * dot[0] - int(scales >> 8 & 0xFF) * ones;
        sum[m][1] += int(scales >> 16 & 0xFF) * dot[1] - int(scales >> 24) * ones;
      } else {
        sum[m][0] += dot[0], sum[m][1] += dot[1];
      }
    }
  }
};

// Rows of x into shared memory, zeros behind the last input.
template <int kRows, int kThreads>
__device__ __forceinline__ void LoadInputs(const LinearIntArgs& a, int x_stride, uint8_t* x) {
  const int sixteens = x_stride / 16;
  for (int i = int(threadIdx.x); i < kRows * sixteens; i += kThreads) {
    const int m = i / sixteens, at = i % sixteens * 16;
    reinterpret_cast<uint4*>(x)[i] = m < a.rows && at < a.w.k
                                         ? *reinterpret_cast<const uint4*>(a.x + int64_t{m} * a.w.k + at)
                                         : uint4{0, 0, 0, 0};
  }
}

// ---- a row that has yet to be made: who has which values, and all sums, as in rows.cu ----

constexpr int kEach = 8, kRowThreads = 512;

__host__ __device__ constexpr int RowThreads(int k) {
  return (k / kEach + 31) / 32 * 32 < kRowThreads ? (k / kEach + 31) / 32 * 32 : kRowThreads;
}

__device__ __forceinline__ void LoadFloats(const float* from, float (&x)[kEach]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0],
               high = reinterpret_cast<const float4*>(from)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
__device__ __forceinline__ void StoreFloats(float* to, const float (&x)[kEach]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// Calls f(first of kEach neighbouring values, thread of the row) for those of this thread.
template <int kThreads, class F>
__device__ __forceinline__ void VisitRow(int k, F f) {
  const int count = RowThreads(k);
  for (int v = int(threadIdx.x); v < count; v += kThreads)
    for (int at = v * kEach; at < k; at += count * kEach) f(at);
}

struct MadeRow {
  float scale;
  uint32_t sum;
};

// values, weights: [k] in shared memory, the latter filled. x receives the codes.
template <bool kNorm, int kThreads>
__device__ __forceinline__ MadeRow MakeRow(const DotRow& row, int k, int x_stride, float* values,
                                           const float* weights, uint8_t* x) {
  __shared__ float squares[kRowThreads / 32];
  __shared__ uint32_t greatest_of[kThreads / 32];
  __shared__ int sum_of[kThreads / 32];
  const int t = int(threadIdx.x), count = RowThreads(k);
  float factor = 1;
  if constexpr (kNorm) {
    for (int v = t; v < count; v += kThreads) {
      float square = 0;
      for (int at = v * kEach; at < k; at += count * kEach) {
        float e[kEach];
        LoadFloats(row.x + at, e);
        StoreFloats(values + at, e);
#pragma unroll
        for (const float f : e) square = __fmaf_rn(f, f, square);
      }
      for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
      if (t % 32 == 0) squares[v / 32] = square;
    }
    __syncthreads();
    float square = squares[0];
    for (int i = 1; i < count / 32; ++i) square += squares[i];
    factor = 1.0f / sqrtf(square / float(k) + row.eps);
  }
  uint32_t greatest = 0;
  VisitRow<kThreads>(k, [&](int at) {
    float e[kEach];
    if constexpr (kNorm) {
      float w[kEach];
      LoadFloats(values + at, e), LoadFloats(weights + at, w);
#pragma unroll
      for (int j = 0; j < kEach; ++j) e[j] = e[j] * factor * w[j];
    } else {
      const uint4 word = *reinterpret_cast<const uint4*>(row.bf16 + at);
      const uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        e[j] = __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xFFFF0000u);
    }
#pragma unroll
    for (const float f : e) greatest = max(greatest, __float_as_uint(f) & 0x7FFFFFFFu);
    StoreFloats(values + at, e);
    if (blockIdx.x == 0) StoreFloats(row.y + at, e);
  });
  greatest = __reduce_max_sync(~0u, greatest);
  if (t % 32 == 0) greatest_of[t / 32] = greatest;
  __syncthreads();
  for (const uint32_t g : greatest_of) greatest = max(greatest, g);
  const float amax = __uint_as_float(greatest);
  const bool finite = greatest < 0x7F800000u, zero = finite && amax < 0x1p-119f;
  const float inverse = finite && !zero ? __fdiv_rn(127.0f, amax) : 0.0f;
  int sum = 0;
  VisitRow<kThreads>(k, [&](int at) {
    float e[kEach];
    LoadFloats(values + at, e);
    uint32_t packed[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int q = finite ? max(-127, min(127, __float2int_rn(__fmul_rn(e[j], inverse)))) : 0;
      sum += q;
      packed[j / 4] |= uint32_t(q & 0xFF) << (8 * (j % 4));
    }
    *reinterpret_cast<uint2*>(x + at) = make_uint2(packed[0], packed[1]);
  });
  for (int i = k + 8 * t; i < x_stride; i += 8 * kThreads) *reinterpret_cast<uint2*>(x + i) = uint2{0, 0};
  sum = __reduce_add_sync(~0u, sum);
  if (t % 32 == 0) sum_of[t / 32] = sum;
  __syncthreads();
  sum = 0;
  for (const int s : sum_of) sum += s;
  return {!finite ? __uint_as_float(0x7FC00000u) : zero ? 0.0f : __fdiv_rn(amax, 127.0f), uint32_t(sum)};
}

// ---- the product ----

enum class From { kCodes, kNorm, kBf16 };  // what the row of x is made of

template <Storage kStorage, int kRows, int kWarps, From kFrom>
__global__ void __launch_bounds__(32 * kWarps, (kRows == 1 ? 1024 : 512) / (32 * kWarps))
    LinearDotKernel(const __grid_constant__ LinearIntArgs a, const __grid_constant__ DotRow row) {
  constexpr int kThreads = 32 * kWarps;
  extern __shared__ __align__(16) uint8_t x[];  // [kRows, x_stride], then values and weights of DotRow
  __shared__ int sums[kWarps * kRows * kUnit];
  ReleaseNext();
  const int warp = int(threadIdx.x) / 32, t = int(threadIdx.x), k_blocks = KBlocks(a.w.k);
  const int x_stride = k_blocks * kBlockK, strip = int(blockIdx.x) % 4;
  const int begin = k_blocks * warp / kWarps, end = k_blocks * (warp + 1) / kWarps;
  const std::byte* block = a.w.blocks + int64_t(blockIdx.x / 4) * k_blocks * BlockBytes(kStorage);
  Piece<kStorage> pieces[kBlocksAhead];
  const auto load = [&](int i, int k_block) {
    if (k_block < end) pieces[i].Load(block + int64_t{k_block} * BlockBytes(kStorage), strip);
  };
#pragma unroll
  for (int i = 0; i < kBlocksAhead; ++i) load(i, begin + i);
  const int n = int(blockIdx.x) * kUnit + t % kUnit, m = t / kUnit;
  const bool finishes = m < a.rows && n < a.w.n;
  const float scale = finishes ? __ldg(a.w.scale + n) : 0.0f,
              bias = finishes && a.bias != nullptr ? __ldg(a.bias + n) : 0.0f;
  auto* values = reinterpret_cast<float*>(x + kRows * x_stride);
  float* weights = values + a.w.k;
  if constexpr (kFrom == From::kNorm)
    for (int i = 4 * t; i < a.w.k; i += 4 * kThreads)
      *reinterpret_cast<float4*>(weights + i) = __ldg(reinterpret_cast<const float4*>(row.weight + i));
  AwaitPrevious();
  float* y = static_cast<float*>(a.y) + m * a.y_stride + n;
  const float old = finishes && a.accumulate ? *y : 0.0f;
  MadeRow made{0, 0};
  if constexpr (kFrom == From::kCodes) {
    if (finishes) made = {a.x_scale[m], uint32_t(a.row_sum[m])};
    LoadInputs<kRows, kThreads>(a, x_stride, x);
    __syncthreads();
  } else {
    __syncthreads();  // weights
    made = MakeRow<kFrom == From::kNorm, kThreads>(row, a.w.k, x_stride, values, weights, x);
  }
  int sum[kRows][2] = {};
  for (int first = begin; first < end; first += kBlocksAhead) {
#pragma unroll
    for (int i = 0; i < kBlocksAhead; ++i) {
      if (first + i < end) pieces[i].Add(x + (first + i) * kBlockK, x_stride, sum);
      load(i, first + kBlocksAhead + i);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int o = 0; o < 2; ++o) {
      int s = sum[r][o];
      s += __shfl_xor_sync(~0u, s, 1);
      s += __shfl_xor_sync(~0u, s, 2);
      if (t % 4 == 0) sums[(warp * kRows + r) * kUnit + t % 32 / 4 + 8 * o] = s;
    }
  __syncthreads();
  if (!finishes) return;
  int exact = 0;
  for (int w = 0; w < kWarps; ++w) exact += sums[(w * kRows + m) * kUnit + t % kUnit];
  if constexpr (kStorage == Storage::kW4A8Channel) exact = int(uint32_t(exact) - a.w.zero[n] * made.sum);
  float v = __fmul_rn(__int2float_rn(exact), __fmul_rn(scale, made.scale));
  if (a.bias != nullptr) v = __fadd_rn(v, bias);
  *y = a.accumulate ? __fadd_rn(v, old) : v;
}

template <Storage kStorage, int kRows, int kWarps, From kFrom = From::kCodes>
Launch Run(const LinearIntArgs& a, const DotRow& row, Stream stream) {
  const auto kernel = LinearDotKernel<kStorage, kRows, kWarps, kFrom>;
  const int vectors = kFrom == From::kNorm   ? 2
                      : kFrom == From::kBf16 ? 1
                                             : 0,
            shared = kRows * KBlocks(a.w.k) * kBlockK + vectors * a.w.k * 4;
  if (const cudaError_t e = AllowShared(kernel, shared); e != cudaSuccess)
    return {int(e), "LinearDot: shared memory"};
  const dim3 grid(unsigned((a.w.n + kUnit - 1) / kUnit));
  if (a.early_start) return LaunchEarly("LinearDot", kernel, grid, 32 * kWarps, 1, stream, shared, a, row);
  kernel<<<grid, 32 * kWarps, size_t(shared), stream>>>(a, row);
  return Launched("LinearDot");
}

constexpr int kLong = 64;  // blocks of inputs from which on more warps share them

template <Storage kStorage, int kRows>
Launch RunRows(const LinearIntArgs& a, Stream stream) {
  return KBlocks(a.w.k) < kLong ? Run<kStorage, kRows, 8>(a, {}, stream)
                                : Run<kStorage, kRows, 16>(a, {}, stream);
}

template <Storage kStorage>
Launch RunStorage(const LinearIntArgs& a, Stream stream) {
  if (a.rows == 1) return RunRows<kStorage, 1>(a, stream);
  return a.rows == 2 ? RunRows<kStorage, 2>(a, stream) : RunRows<kStorage, 4>(a, stream);
}

template <Storage kStorage>
Launch RunRow(const LinearIntArgs& a, const DotRow& row, Stream stream) {
  return row.weight != nullptr ? Run<kStorage, 1, 8, From::kNorm>(a, row, stream)
                               : Run<kStorage, 1, 8, From::kBf16>(a, row, stream);
}

const char* BrokenRule(const LinearIntArgs& a) {
  if (a.rows < 1 || a.rows > kMostDotRows) return "LinearDot: rows must be 1 .. 4";
  if (a.type != Real::kF32) return "LinearDot: results are f32";
  if (a.w.n % 8 != 0 || a.w.k % (a.w.storage == Storage::kW4A8Group ? weight::kGroup : 16) != 0)
    return "LinearDot: n must be a multiple of 8, k of 16, for w4a8-g128 of 128";
  if (a.w.storage != Storage::kW4A8Group && a.w.storage != Storage::kW4A8Channel)
    return "LinearDot takes w4a8-g128 and w4a8-chn";
  return nullptr;
}

}  // namespace

Launch LinearDot(const LinearIntArgs& a, Stream stream) {
  if (const char* rule = BrokenRule(a)) return Refused(rule);
  return a.w.storage == Storage::kW4A8Group ? RunStorage<Storage::kW4A8Group>(a, stream)
                                            : RunStorage<Storage::kW4A8Channel>(a, stream);
}

Launch LinearDotRow(const LinearIntArgs& a, const DotRow& row, Stream stream) {
  if (const char* rule = BrokenRule(a)) return Refused(rule);
  if (a.rows != 1 || a.w.k > kMostDotRowInputs) return Refused("LinearDotRow: one row of up to 8192 inputs");
  return a.w.storage == Storage::kW4A8Group ? RunRow<Storage::kW4A8Group>(a, row, stream)
                                            : RunRow<Storage::kW4A8Channel>(a, row, stream);
}

}  // namespace nibble::cuda
