// SPDX-License-Identifier: Apache-2.0
// The kernels by codec, each compiled in a file of its own (decode_CODEC.cu).
#pragma once
#include "kernels/cuda/decode_merge.cuh"

namespace nibble::cuda::decode {

Launch LaunchF16(const DecodeArgs&, const Plan&, Stream);
Launch LaunchBF16(const DecodeArgs&, const Plan&, Stream);
Launch LaunchInt8Token(const DecodeArgs&, const Plan&, Stream);
Launch LaunchInt4Token(const DecodeArgs&, const Plan&, Stream);
Launch LaunchFlashQ4(const DecodeArgs&, const Plan&, Stream);
Launch LaunchFlashQ2(const DecodeArgs&, const Plan&, Stream);

}  // namespace nibble::cuda::decode
