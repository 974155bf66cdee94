// SPDX-License-Identifier: Apache-2.0
// Floor 4. Several small arrays from pinned memory of the host to the device in one launch.
#pragma once
#include <cstdint>

#include "kernels/cuda/stream.h"

namespace nibble::cuda {

inline constexpr int kMostParts = 12;

struct CopyPartsArgs {
  struct Part {
    const uint32_t* from;  // host, pinned
    uint32_t* to;
    int words;
  };
  Part parts[kMostParts];
  int count;
};
Launch CopyParts(const CopyPartsArgs&, Stream);

}  // namespace nibble::cuda
