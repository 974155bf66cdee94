// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu/linear_problem.h"

namespace nibble::gpu {
namespace {

using weight::Storage;

int Pick(uint32_t i, uint32_t seed, int lo, int hi) { return lo + int(Mix(i, seed) % uint32_t(hi - lo + 1)); }

// A code of a group such that (u - z) * s2 lies in -128..127.
int GroupedCode(uint32_t i, uint32_t seed, int s2, int z, bool extreme) {
  const int lo = std::max(0, z - 128 / s2), hi = std::min(15, z + 127 / s2);
  return extreme ? (Mix(i, seed) & 1 ? hi : lo) : Pick(i, seed, lo, hi);
}

}  // namespace

StoredWeight::StoredWeight(Storage storage, int n, int k, uint32_t seed, bool extreme) {
  const bool group = storage == Storage::kW4A8Group, bytes = storage == Storage::kW8A8;
  const int groups = group ? k / weight::kGroup : 1;
  codes.resize(size_t(n) * k / (bytes ? 1 : 2));
  scale.resize(size_t(n));
  if (group) group_scale.resize(size_t(n) * groups);
  if (!bytes) zero.resize(size_t(n) * groups);
  for (int row = 0; row < n; ++row) scale[size_t(row)] = uint16_t(Pick(uint32_t(row), seed, 0x0400, 0x3C00));
  for (size_t i = 0; i < group_scale.size(); ++i)
    group_scale[i] = uint8_t(extreme ? 16 : Pick(uint32_t(i), seed + 1, 1, 16));
  for (size_t i = 0; i < zero.size(); ++i)
    zero[i] = uint8_t(extreme ? 15 * (Mix(uint32_t(i), seed + 2) & 1) : Mix(uint32_t(i), seed + 2) & 15);
  for (size_t i = 0; i < codes.size(); ++i) {
    const auto at = uint32_t(i);
    if (bytes) {
      codes[i] = uint8_t(extreme ? (Mix(at, seed + 3) & 1 ? 127 : -127) : Pick(at, seed + 3, -127, 127));
    } else if (group) {
      const size_t g = i / (weight::kGroup / 2);
      codes[i] = uint8_t(GroupedCode(at, seed + 4, group_scale[g], zero[g], extreme) |
                         GroupedCode(at, seed + 5, group_scale[g], zero[g], extreme) << 4);
    } else {
      codes[i] = uint8_t(extreme ? 0xF0F0F00Fu >> (Mix(at, seed + 3) & 15) : Mix(at, seed + 3));
    }
  }
  view.storage = storage;
  view.n = n;
  view.k = k;
  view.codes = reinterpret_cast<const std::byte*>(codes.data());
  view.scale = scale.data();
  view.group_scale = group ? group_scale.data() : nullptr;
  view.zero = bytes ? nullptr : zero.data();
}

weight::WeightView Upload(const StoredWeight& stored, std::vector<Buffer<uint8_t>>* buffers) {
  const auto upload = [&](const void* data, size_t bytes) -> const uint8_t* {
    const auto* from = static_cast<const uint8_t*>(data);
    if (bytes == 0) return nullptr;
    buffers->emplace_back(std::vector<uint8_t>(from, from + bytes));
    return buffers->back().data();
  };
  weight::WeightView view = stored.view;
  view.codes = reinterpret_cast<const std::byte*>(upload(stored.codes.data(), stored.codes.size()));
  view.scale = reinterpret_cast<const uint16_t*>(upload(stored.scale.data(), stored.scale.size() * 2));
  view.group_scale = upload(stored.group_scale.data(), stored.group_scale.size());
  view.zero = upload(stored.zero.data(), stored.zero.size());
  return view;
}

DeviceWeight::DeviceWeight(const StoredWeight& stored)
    : shape_(stored.view), memory_(cuda::LinearBytes(stored.view.storage, stored.view.n, stored.view.k)) {
  std::vector<Buffer<uint8_t>> buffers;
  Require(cuda::PackLinear(Upload(stored, &buffers), memory_.data(), nullptr));
  Require(cudaDeviceSynchronize(), "packing");
}

cuda::LinearWeight DeviceWeight::packed() const {
  return cuda::LinearWeightAt(shape_.storage, shape_.n, shape_.k, memory_.data());
}

}  // namespace nibble::gpu
