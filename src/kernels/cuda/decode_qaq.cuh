// SPDX-License-Identifier: Apache-2.0
// Floor 4. AttentionDecode over pages of QAQ: decode_qaq.cu.
#pragma once
#include "kernels/cuda/decode_merge.cuh"

namespace nibble::cuda::decode {

Launch LaunchQaq(const DecodeArgs&, const Plan&, Stream);

}  // namespace nibble::cuda::decode
