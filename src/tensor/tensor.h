// SPDX-License-Identifier: Apache-2.0
// Floor 1. A tensor view: pointer, dtype, shape, strides. Never owns, never allocates, trivially copyable.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "base/check.h"
#include "base/dtype.h"
namespace nibble {
enum class Device : uint8_t { kCpu, kCuda };
struct Tensor {
  static constexpr int kMaxRank = 4;
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  int8_t rank = 0;
  std::array<int64_t, kMaxRank> dim{};     // outermost first
  std::array<int64_t, kMaxRank> stride{};  // in elements

  static Tensor Dense(void* data, DType dtype, Device device, std::initializer_list<int64_t> dims) {
    NIBBLE_CHECK(dims.size() <= kMaxRank, "rank above 4");
    Tensor t{data, dtype, device, int8_t(dims.size())};
    int i = 0;
    for (int64_t d : dims) t.dim[size_t(i++)] = d;
    int64_t s = 1;
    for (int k = t.rank - 1; k >= 0; --k) {
      t.stride[size_t(k)] = s;
      s *= t.dim[size_t(k)];
    }
    return t;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim[size_t(i)];
    return n;
  }
  template <class T>
  T* as() const {
    NIBBLE_CHECK(sizeof(T) == size_t(SizeOf(dtype)), "element size");
    return static_cast<T*>(data);
  }
};
static_assert(std::is_trivially_copyable_v<Tensor>);
}  // namespace nibble
