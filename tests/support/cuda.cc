// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda.h"

#include <cmath>
#include <cstdlib>
#include <random>

namespace nibble::test {

std::vector<float> Random(size_t count, uint32_t seed, float scale) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(count);
  for (float& f : x) f = normal(random);
  return x;
}

double Difference(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isfinite(got[i]) != std::isfinite(want[i])) return INFINITY;
    if (!std::isfinite(want[i])) continue;
    const double d = double(got[i]) - double(want[i]);
    difference += d * d, size += double(want[i]) * double(want[i]);
  }
  return size > 0 ? std::sqrt(difference / size) : difference;
}

std::vector<std::pair<std::string, std::string>> RefusedOnGpu() {
  return {{"k=qaq:source=host", "source=host"}, {"v=qaq:source=host", "source=host"}};
}

void OnGpu::SetUp() {
  auto gpu = MakeCudaBackend();
  if (!gpu.ok()) {
    const char* wanted = std::getenv("NIBBLE_TEST_GPU");
    if (wanted != nullptr && std::string(wanted) == "1") FAIL() << gpu.status().message();
    GTEST_SKIP() << "no GPU: " << gpu.status().message();
  }
  gpu_ = *std::move(gpu);
  cpu_ = *MakeCpuBackend(0);
}

}  // namespace nibble::test
