// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sm90/linear_int.cuh"

namespace nibble::cuda::sm90 {

Launch linear_w8a8(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  return launch_linear_of<Storage::kW8A8>(a, plan, processors, stream);
}

}  // namespace nibble::cuda::sm90
