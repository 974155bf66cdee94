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

std::vector<float> AppendAndAttend(Backend& backend, KvCache& cache, const AttentionShape& shape,
                                   const std::vector<float>& q, const std::vector<float>& k,
                                   const std::vector<float>& v) {
  std::vector<Buffer> buffers;
  const auto put = [&](const std::vector<float>& x, int heads) {
    const Buffer b = *backend.Alloc(x.size() * 4);
    buffers.push_back(b);
    backend.Upload(x.data(), b.data, x.size() * 4);
    return Tensor::Dense(b.data, DType::kF32, backend.Info().device,
                         {int64_t(x.size()) / heads / shape.head_dim, heads, shape.head_dim});
  };
  const Tensor qt = put(q, shape.heads), kt = put(k, shape.kv_heads), vt = put(v, shape.kv_heads),
               out = put(std::vector<float>(q.size(), NAN), shape.heads);
  const KvView view = cache.View(0);
  backend.KvAppend({view, kt, vt});
  backend.Attention({view, qt, out, shape.heads, 1 / std::sqrt(float(shape.head_dim)), shape.window});
  std::vector<float> host(q.size());
  backend.Download(static_cast<const std::byte*>(out.data), host.data(), host.size() * 4);
  backend.Sync();
  for (const Buffer& b : buffers) backend.Free(b);
  return host;
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
