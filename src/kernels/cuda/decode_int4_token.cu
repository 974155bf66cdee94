// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_kernel.cuh"

namespace nibble::cuda::decode {

Launch LaunchInt4Token(const DecodeArgs& a, const Plan& plan, Stream stream) {
  return LaunchCodec<Int4Token, Int4Token>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
