// SPDX-License-Identifier: Apache-2.0
// Tests. What the tests of the GPU share: both backends, random numbers, and a measure of difference.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"

namespace nibble::test {

std::vector<float> Random(size_t count, uint32_t seed, float scale = 1);

// |got - want| / |want|, Euclidean; infinite for a value that is not finite on one side alone.
double Difference(const std::vector<float>& got, const std::vector<float>& want);

// Heads of a layer that attends.
struct AttentionShape {
  int heads, kv_heads, head_dim;
  int64_t window = 0;
};

// f32 rows of the step that the cache began, [rows, heads or kv_heads, head_dim]: appended to its first layer
// and attended. The outputs of all rows.
std::vector<float> AppendAndAttend(Backend&, KvCache&, const AttentionShape&, const std::vector<float>& q,
                                   const std::vector<float>& k, const std::vector<float>& v);

// A recipe that the CUDA backend refuses, and a word of its reason.
std::vector<std::pair<std::string, std::string>> RefusedOnGpu();

// Both backends. Where there is no GPU a test skips; with NIBBLE_TEST_GPU=1 in the environment it fails.
class OnGpu : public testing::Test {
 protected:
  void SetUp() override;
  std::unique_ptr<Backend> cpu_, gpu_;
};

}  // namespace nibble::test
