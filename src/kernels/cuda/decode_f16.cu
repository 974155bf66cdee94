// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_kernel.cuh"

namespace nibble::cuda::decode {

Launch LaunchF16(const DecodeArgs& a, const Plan& plan, Stream stream) {
  return LaunchCodec<F16, F16>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
