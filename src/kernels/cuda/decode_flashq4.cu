// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_kernel.cuh"

namespace nibble::cuda::decode {

Launch LaunchFlashQ4(const DecodeArgs& a, const Plan& plan, Stream stream) {
  return LaunchCodec<FlashQ4, FlashQ4>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
