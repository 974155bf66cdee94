// SPDX-License-Identifier: Apache-2.0
// A matmul with random or extreme weights: in storage form on the host, packed on the device.
#pragma once
#include <memory>
#include <vector>

#include "bench/gpu/support.h"
#include "kernels/cuda/linear.h"
#include "quant/weight/pack.h"

namespace nibble::gpu {

inline constexpr weight::Storage kLinearStorages[] = {weight::Storage::kW4A8Group,
                                                      weight::Storage::kW4A8Channel, weight::Storage::kW8A8};

struct StoredWeight {
  weight::WeightView view;  // of the vectors below
  std::vector<uint8_t> codes, group_scale, zero;
  std::vector<uint16_t> scale;
  // extreme: only the ends of every range, where (u - z) * s2 reaches -128..127.
  StoredWeight(weight::Storage, int n, int k, uint32_t seed, bool extreme);
  StoredWeight(const StoredWeight&) = delete;
};

// Copies of a weight on the device, packed there.
class DeviceWeight {
 public:
  explicit DeviceWeight(const StoredWeight&);
  cuda::LinearWeight packed() const;
  const Buffer<std::byte>& memory() const { return memory_; }

 private:
  weight::WeightView shape_;
  Buffer<std::byte> memory_;
};

// Device pointers of `stored`, whose copies live in `buffers`.
weight::WeightView Upload(const StoredWeight& stored, std::vector<Buffer<uint8_t>>* buffers);

}  // namespace nibble::gpu
