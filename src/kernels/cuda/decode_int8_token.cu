// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_kernel.cuh"

namespace nibble::cuda::decode {

Launch LaunchInt8Token(const DecodeArgs& a, const Plan& plan, Stream stream) {
  return LaunchCodec<Int8Token, Int8Token>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
