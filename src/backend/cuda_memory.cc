// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda_memory.h"

#include <cstdio>
#include <cstdlib>

#include "base/check.h"

namespace nibble {

void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "nibble: cuda: %s: %s\n", what, cudaGetErrorString(error));
  std::fflush(nullptr);
  std::_Exit(1);
}

void CheckCuda(cuda::Launch launch) { CheckCuda(cudaError_t(launch.error), launch.what); }

SendRing::~SendRing() {
  for (const Slot& slot : slots_) {
    if (slot.sent != nullptr) cudaEventDestroy(slot.sent);
    cudaFreeHost(slot.host);
  }
}

void SendRing::Send(const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  NIBBLE_CHECK(!paused_, "an array of a recorded step was not sent before");
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  if (slot.sent == nullptr) CheckCuda(cudaEventCreateWithFlags(&slot.sent, cudaEventDisableTiming), "event");
  CheckCuda(cudaEventSynchronize(slot.sent), "copy of a step's plan");
  if (bytes > slot.bytes) {
    CheckCuda(cudaFreeHost(slot.host), "pinned memory");
    slot.bytes = bytes * 2;
    CheckCuda(cudaHostAlloc(&slot.host, slot.bytes, cudaHostAllocDefault), "pinned memory");
  }
  std::memcpy(slot.host, from, bytes);
  CheckCuda(cudaMemcpyAsync(to, slot.host, bytes, cudaMemcpyHostToDevice, stream_), "copy of a step's plan");
  CheckCuda(cudaEventRecord(slot.sent, stream_), "copy of a step's plan");
}

}  // namespace nibble
