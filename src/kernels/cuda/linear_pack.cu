// SPDX-License-Identifier: Apache-2.0
// Floor 4. Packing weights on the device: one block of threads a block of weights.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_pack.h"

namespace nibble::cuda {
namespace {

__global__ void PackBlocks(weight::WeightView w, std::byte* to) {
  const size_t block = size_t{blockIdx.x} * KBlocks(w.k) + blockIdx.y;
  PackBlockThread(w, int(blockIdx.x), int(blockIdx.y), int(threadIdx.x), to + block * BlockBytes(w.storage));
}

__global__ void PackRows(weight::WeightView w, float* scale, uint8_t* zero) {
  const int row = int(blockIdx.x * blockDim.x + threadIdx.x);
  scale[row] = row < w.n ? HalfToFloat(w.scale[row]) : 0.0f;
  if (zero != nullptr) zero[row] = row < w.n ? w.zero[row] : uint8_t{0};
}

}  // namespace

Launch PackLinear(const weight::WeightView& w, std::byte* to, Stream stream) {
  return PackLinearRows(w, LinearWeightAt(w.storage, w.n, w.k, to), stream);
}

Launch PackLinearRows(const weight::WeightView& w, const LinearWeight& to, Stream stream) {
  if (w.storage < weight::Storage::kW4A8Group)
    return Refused("PackLinear takes w4a8-g128, w4a8-chn and w8a8");
  if (w.k % 16 != 0 || (w.storage == weight::Storage::kW4A8Group && w.k % weight::kGroup != 0))
    return Refused("PackLinear: k must be a multiple of 16, of 128 for w4a8-g128");
  PackBlocks<<<dim3(unsigned(RowBlocks(w.n)), unsigned(KBlocks(w.k))), 128, 0, stream>>>(
      w, const_cast<std::byte*>(to.blocks));
  PackRows<<<unsigned(RowBlocks(w.n)), kBlockRows, 0, stream>>>(w, const_cast<float*>(to.scale),
                                                                const_cast<uint8_t*>(to.zero));
  return Launched("PackLinear");
}

}  // namespace nibble::cuda
