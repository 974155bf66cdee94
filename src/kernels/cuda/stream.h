// SPDX-License-Identifier: Apache-2.0
// Floor 4. What the entry points of the CUDA kernels share. The headers of this folder are plain C++ and need
// no CUDA header, so that every floor above can include them; its .cu files include neither Status nor fmt.
// All pointers in argument structs are device pointers unless a comment says "host". A launch allocates
// nothing and does not wait.
#pragma once

struct CUstream_st;

namespace nibble::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// What came of a launch: what the runtime refused at once (a bad shape, a missing device), not what the
// kernel does later.
struct [[nodiscard]] Launch {
  int error = 0;               // cudaError_t
  const char* what = nullptr;  // which kernel, or which rule the arguments break: static text
  bool ok() const { return error == 0; }
};

}  // namespace nibble::cuda
