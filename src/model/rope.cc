// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace nibble {
namespace {

float Llama3Frequency(const RopeConfig& rope, float f) {
  const auto factor = static_cast<float>(rope.factor), low = static_cast<float>(rope.low_freq_factor),
             high = static_cast<float>(rope.high_freq_factor);
  const auto context = static_cast<float>(rope.original_max_position);
  const float wavelength = 2 * std::numbers::pi_v<float> / f;
  if (wavelength < context / high) return f;
  if (wavelength > context / low) return f / factor;
  const float smooth = (context / wavelength - low) / (high - low);
  return (1 - smooth) * f / factor + smooth * f;
}

}  // namespace

std::vector<float> InverseFrequencies(const RopeConfig& rope, int head_dim) {
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  for (int i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float f = 1.0f / std::pow(static_cast<float>(rope.theta), exponent);
    switch (rope.scaling) {
      case RopeScaling::kNone:
        out[i] = f;
        break;
      case RopeScaling::kLinear:
        out[i] = f / static_cast<float>(rope.factor);
        break;
      case RopeScaling::kLlama3:
        out[i] = Llama3Frequency(rope, f);
        break;
    }
  }
  return out;
}

}  // namespace nibble
