// SPDX-License-Identifier: Apache-2.0
// Floor 2. Weights: many storage formats (what files hold) turn at load time into few compute layouts (what
// kernels read). Formats and kernels then add instead of multiplying. Bytes: docs/formats/weights.md.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nibble::weight {

// Storage formats. W4A8: QoQ (arXiv 2405.04532 section 4.1); W8A8: symmetric per output channel.
enum class Storage : uint8_t { kF32, kF16, kBF16, kW4A8Group, kW4A8Channel, kW8A8 };

inline constexpr int kGroup = 128;  // inputs that share one level-2 scale in kW4A8Group

// A weight matrix [n, k] as it lies in a file (or in the quantizer's output): y[n] = sum_k w[n,k] x[k].
// Borrowed.
struct WeightView {
  Storage storage = Storage::kF32;
  int n = 0, k = 0;
  const std::byte* codes = nullptr;      // floats [n,k]; u4 [n,k/2], low nibble = even k; s8 [n,k]
  const uint16_t* scale = nullptr;       // f16 [n]: s1 (group), s (channel, w8a8)
  const uint8_t* group_scale = nullptr;  // kW4A8Group: s2 [n, k/128], 1..16
  const uint8_t* zero = nullptr;         // kW4A8Group: z [n, k/128], kW4A8Channel: z [n]; 0..15
};

// Compute layouts: panels of 16 output rows, so that one vector register holds one input for 16 outputs. Rows
// are padded to a multiple of 16 with zeros. Same bytes for every CPU ISA.
//   kF32, kF16, kBF16: [n/16][k][16] elements
//   kI4*: [n/16][k/8][16][4] bytes; byte j of output r holds k = 8i+j (low nibble) and 8i+4+j (high)
//   kI8Channel: [n/16][k/4][16][4] s8
enum class Layout : uint8_t { kF32, kF16, kBF16, kI4Group, kI4Channel, kI8Channel };

inline constexpr int kPanel = 16;
constexpr int Panels(int n) { return (n + kPanel - 1) / kPanel; }

struct PackedWeight {
  Layout layout = Layout::kF32;
  int n = 0, k = 0;
  const std::byte* codes = nullptr;
  const float* scale = nullptr;          // [n padded]: s1 or s, as f32
  const uint8_t* group_scale = nullptr;  // kI4Group: s2 [n/16][k/128][16]
  const uint8_t* zero = nullptr;         // kI4Group: z [n/16][k/128][16]; kI4Channel: z [n padded]
  const int32_t* row_sum = nullptr;      // kI8Channel: sum_k w8[n,k], for kernels that shift x to unsigned
  size_t bytes = 0;                      // everything above together
};

constexpr bool IsInteger(Layout l) { return l >= Layout::kI4Group; }

}  // namespace nibble::weight
