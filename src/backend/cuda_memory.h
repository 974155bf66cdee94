// SPDX-License-Identifier: Apache-2.0
// Floor 5. What the CUDA backend's files share: errors of the device, and small arrays that travel to it in
// every step.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/copy_parts.h"
#include "kernels/cuda/stream.h"

namespace nibble {

// A device that fails has lost what it held: ends the program with one line. REQUIRES nothing.
void CheckCuda(cudaError_t error, const char* what);
void CheckCuda(cuda::Launch launch);

// Copies host arrays to the device in stream order without waiting: the source may change as soon as Send
// returns. Grows to the largest array seen.
class SendRing {
 public:
  explicit SendRing(cudaStream_t stream) : stream_(stream) {}
  ~SendRing();
  SendRing(const SendRing&) = delete;
  SendRing& operator=(const SendRing&) = delete;
  void Send(const void* from, void* to, size_t bytes);
  // Arrays of whole words that are sent between the two go together, by one kernel.
  void Gather();
  void SendGathered();
  void Pause(bool paused) { paused_ = paused; }  // while paused, sending is a mistake

 private:
  static constexpr size_t kSlots = 32;
  struct Slot {
    void* host = nullptr;  // pinned
    size_t bytes = 0;
    cudaEvent_t sent = nullptr;  // the copy out of it has ended
  };
  Slot& Take(size_t bytes);  // the next one, with room, when the copy out of it has ended

  cudaStream_t stream_;
  std::array<Slot, kSlots> slots_;
  size_t next_ = 0;
  bool paused_ = false, gathering_ = false;
  struct Part {
    size_t offset, bytes;  // in gathered_
    void* to;
  };
  std::vector<Part> parts_;
  std::vector<std::byte> gathered_;
};

// An array that is sent when it differs from what was sent last: the plan of a step is the same in every
// layer.
template <class T>
class Mirror {
 public:
  ~Mirror() { cudaFree(device_); }
  Mirror() = default;
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  const T* Send(std::span<const T> values, SendRing& ring);
  const T* device() const { return device_; }

 private:
  T* device_ = nullptr;
  size_t capacity_ = 0;
  std::vector<T> last_;
};

template <class T>
const T* Mirror<T>::Send(std::span<const T> values, SendRing& ring) {
  if (values.size() == last_.size() && std::memcmp(values.data(), last_.data(), values.size_bytes()) == 0)
    return device_;
  if (values.size() > capacity_) {
    CheckCuda(cudaFree(device_), "step memory");  // waits for kernels that read it
    capacity_ = values.size() * 2;
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&device_), capacity_ * sizeof(T)), "step memory");
  }
  last_.assign(values.begin(), values.end());
  ring.Send(values.data(), device_, values.size_bytes());
  return device_;
}

}  // namespace nibble
