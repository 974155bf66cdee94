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

SendRing::Slot& SendRing::Take(size_t bytes) {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  if (slot.sent == nullptr) CheckCuda(cudaEventCreateWithFlags(&slot.sent, cudaEventDisableTiming), "event");
  CheckCuda(cudaEventSynchronize(slot.sent), "copy of a step's plan");
  if (bytes > slot.bytes) {
    CheckCuda(cudaFreeHost(slot.host), "pinned memory");
    slot.bytes = bytes * 2;
    CheckCuda(cudaHostAlloc(&slot.host, slot.bytes, cudaHostAllocDefault), "pinned memory");
  }
  return slot;
}

void SendRing::Gather() {
  NIBBLE_CHECK(!gathering_ && !paused_, "Gather");
  gathering_ = true;
  parts_.clear(), gathered_.clear();
}

void SendRing::SendGathered() {
  gathering_ = false;
  if (parts_.empty()) return;
  Slot& slot = Take(gathered_.size());
  std::memcpy(slot.host, gathered_.data(), gathered_.size());
  cuda::CopyPartsArgs args{};
  for (const Part& part : parts_)
    args.parts[args.count++] = {
        reinterpret_cast<const uint32_t*>(static_cast<std::byte*>(slot.host) + part.offset),
        static_cast<uint32_t*>(part.to), int(part.bytes / 4)};
  CheckCuda(cuda::CopyParts(args, stream_));
  CheckCuda(cudaEventRecord(slot.sent, stream_), "copy of a step's plan");
}

void SendRing::Send(const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  NIBBLE_CHECK(!paused_, "an array of a recorded step was not sent before");
  if (gathering_) {
    NIBBLE_CHECK(bytes % 4 == 0 && parts_.size() < cuda::kMostParts, "more than one kernel sends");
    parts_.push_back({gathered_.size(), bytes, to});
    const auto* first = static_cast<const std::byte*>(from);
    gathered_.insert(gathered_.end(), first, first + bytes);
    return;
  }
  Slot& slot = Take(bytes);
  std::memcpy(slot.host, from, bytes);
  CheckCuda(cudaMemcpyAsync(to, slot.host, bytes, cudaMemcpyHostToDevice, stream_), "copy of a step's plan");
  CheckCuda(cudaEventRecord(slot.sent, stream_), "copy of a step's plan");
}

}  // namespace nibble
