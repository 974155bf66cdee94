// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sm90/linear_int.cuh"

namespace nibble::cuda::sm90 {

Launch linear_w4a8_group(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  return launch_linear_of<Storage::kW4A8Group>(a, plan, processors, stream);
}

}  // namespace nibble::cuda::sm90
