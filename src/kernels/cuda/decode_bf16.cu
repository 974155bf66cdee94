// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_kernel.cuh"

namespace nibble::cuda::decode {

Launch LaunchBF16(const DecodeArgs& a, const Plan& plan, Stream stream) {
  return LaunchCodec<BF16, BF16>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
