// SPDX-License-Identifier: Apache-2.0
// QoQ's transformations leave the function of a model unchanged: rotation, folding, reordering and smoothing,
// one by one and together, on the tiny models of every architecture and on the embedded one. Broken variants
// do not.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "model/model.h"
#include "model/qoq/layer.h"
#include "model/qoq/reorder.h"
#include "model/qoq/rotate.h"
#include "model/qoq/smooth_attention.h"
#include "model/qoq/smooth_output.h"
#include "tests/support/run_nibble.h"
#include "tests/support/tiny_model.h"

namespace nibble::qoq {
namespace {

using Ids = std::vector<int32_t>;
constexpr float kTolerance = 1e-4f;

// A model taken apart, to be transformed and put together again.
struct Parts {
  ModelConfig config;
  std::vector<Layer> layers;
  Ends ends;
  HeadShape shape() const { return {config.heads, config.kv_heads, config.head_dim}; }
};

Parts Read(const std::string& dir) {
  Parts p;
  p.config = *ReadModelConfig(dir);
  const auto weights = io::Weights::Open(dir);
  EXPECT_TRUE(weights.ok()) << weights.status().message();
  for (int i = 0; i < p.config.layers; ++i) {
    auto layer = ReadLayer(**weights, p.config, i);
    EXPECT_TRUE(layer.ok()) << layer.status().message();
    p.layers.push_back(*std::move(layer));
  }
  p.ends = *ReadEnds(**weights, p.config);
  return p;
}

std::vector<float> Logits(Parts p, const Ids& tokens) {
  MemoryWeights weights;
  p.config.tied_head = p.ends.head.rows == 0;
  for (int i = 0; i < p.config.layers; ++i) AddLayer(std::move(p.layers[size_t(i)]), i, &weights);
  AddEnds(std::move(p.ends), &weights);
  const auto backend = MakeCpuBackend(1);
  const int rows = int(tokens.size());
  const auto model = Model::FromWeights(p.config, weights, **backend, {DType::kF32, rows, rows});
  EXPECT_TRUE(model.ok()) << model.status().message();
  KvCacheOptions options;
  options.shape = {p.config.layers, p.config.kv_heads, p.config.head_dim};
  options.max_step_tokens = rows;
  options.max_tokens = 256;
  const auto cache = KvCache::Make(**backend, options);
  const SeqId seq = *(*cache)->Open();
  const int32_t count = rows;
  EXPECT_TRUE((*cache)->BeginStep({&seq, 1}, {&count, 1}).ok());
  Ids all(tokens.size());
  std::iota(all.begin(), all.end(), 0);
  const Tensor logits = (*model)->Forward({tokens, all}, **cache);
  const auto* data = logits.as<const float>();
  return {data, data + logits.numel()};
}

float Difference(const std::vector<float>& a, const std::vector<float>& b) {
  float worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const float d = std::fabs(a[i] - b[i]);
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

Math& TestMath() {
  static const std::unique_ptr<Math> math = *Math::Make(1);
  return *math;
}

// Factors in [1/4, 4], equal in both channels of a RoPE pair unless broken; one head's for all if shared.
std::vector<float> RandomLambda(HeadShape s, bool shared, bool paired, std::mt19937& rng) {
  std::uniform_real_distribution<float> exponent(-2, 2);
  std::vector<float> lambda(size_t(s.kv_heads * s.head_dim));
  const int half = s.head_dim / 2;
  for (int h = 0; h < s.kv_heads; ++h)
    for (int i = 0; i < s.head_dim; ++i) {
      float& x = lambda[size_t(h * s.head_dim + i)];
      x = std::exp2(exponent(rng));
      if (paired && i >= half) x = lambda[size_t(h * s.head_dim + i - half)];
      if (shared && h > 0) x = lambda[size_t(i)];
    }
  return lambda;
}

void FoldAndRotate(Parts* p, bool rotate) {
  for (Layer& layer : p->layers) FoldNorms(&layer);
  FoldFinalNorm(&p->ends);
  if (!rotate) return;
  const Hadamard r(p->config.hidden);
  RotateEnds(r, TestMath(), &p->ends);
  for (Layer& layer : p->layers) RotateLayer(r, TestMath(), &layer);
}

void Reorder(Parts* p, std::mt19937& rng) {
  std::vector<int> order(size_t(p->config.intermediate));
  std::iota(order.begin(), order.end(), 0);
  for (Layer& layer : p->layers) {
    std::shuffle(order.begin(), order.end(), rng);
    ReorderMlp(order, &layer);
  }
}

void SmoothKeys(Parts* p, bool paired, std::mt19937& rng) {
  for (Layer& layer : p->layers)
    SmoothAttention(RandomLambda(p->shape(), !layer.k_norm.empty(), paired, rng), p->shape(), &layer);
}

void SmoothOutputs(Parts* p, std::mt19937& rng) {
  std::uniform_real_distribution<float> exponent(-2, 2);
  for (Layer& layer : p->layers) {
    SmoothValues(RandomLambda(p->shape(), false, false, rng), p->shape(), &layer);
    std::vector<float> lambda(size_t(p->config.intermediate));
    for (float& x : lambda) x = std::exp2(exponent(rng));
    SmoothMlp(lambda, &layer);
  }
}

class QoqTransform : public testing::TestWithParam<std::string> {
 protected:
  QoqTransform() {
    if (GetParam() == "novelist-10m") {
      original_ = Read(test::Model10m());
      for (int i = 0; i < 64; ++i) tokens_.push_back((i * 37) % 4000);
    } else {
      const auto golden = test::ReadTinyGolden(GetParam());
      const test::TempDir dir;
      test::WriteTinyModel(golden, nlohmann::json::object(), dir.path());
      original_ = Read(dir.path());
      tokens_ = golden["prompt"].get<Ids>();
    }
    logits_ = Logits(original_, tokens_);
  }
  float After(const Parts& p) const { return Difference(logits_, Logits(p, tokens_)); }

  Parts original_;
  Ids tokens_;
  std::vector<float> logits_;
  std::mt19937 rng_{7};
};

TEST_P(QoqTransform, FoldingAndRotation) {
  Parts p = original_;
  FoldAndRotate(&p, false);
  EXPECT_LE(After(p), kTolerance) << "folded";
  p = original_;
  FoldAndRotate(&p, true);
  EXPECT_LE(After(p), kTolerance) << "rotated";
  for (const Layer& layer : p.layers)
    for (const float w : layer.input_norm) EXPECT_EQ(w, 1.0f);
  // The head must move along.
  if (p.ends.head.rows > 0) {
    p.ends.head = original_.ends.head.rows > 0 ? original_.ends.head : original_.ends.embedding;
    EXPECT_GT(After(p), 0.01f);
  }
}

TEST_P(QoqTransform, Reordering) {
  Parts p = original_;
  Reorder(&p, rng_);
  EXPECT_LE(After(p), kTolerance);
  ReorderColumns(ByEnergy(p.layers[0].linear[kDown].w), &p.layers[0].linear[kDown].w);  // a consumer alone
  EXPECT_GT(After(p), 0.01f);
}

TEST_P(QoqTransform, SmoothAttentionPairedAndNot) {
  Parts p = original_;
  SmoothKeys(&p, true, rng_);
  EXPECT_LE(After(p), kTolerance);
  p = original_;
  SmoothKeys(&p, false, rng_);
  EXPECT_GT(After(p), 0.01f) << "RoPE mixes channels i and i + d/2: lambda must be equal there";
}

TEST_P(QoqTransform, OutputSmoothing) {
  Parts p = original_;
  SmoothOutputs(&p, rng_);
  EXPECT_LE(After(p), kTolerance);
  for (float& x : p.layers[0].linear[kUp].w.v) x *= 1.1f;
  EXPECT_GT(After(p), 0.001f);
}

TEST_P(QoqTransform, AllTogether) {
  Parts p = original_;
  FoldAndRotate(&p, true);
  Reorder(&p, rng_);
  SmoothKeys(&p, true, rng_);
  SmoothOutputs(&p, rng_);
  EXPECT_LE(After(p), kTolerance);
}

std::vector<std::string> AllModels() {
  std::vector<std::string> names = test::TinyModelNames();
  names.emplace_back("novelist-10m");
  return names;
}
INSTANTIATE_TEST_SUITE_P(Models, QoqTransform, testing::ValuesIn(AllModels()), [](const auto& model) {
  std::string name = model.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// SmoothAttention in four channels, by hand: Kmax = 4 .25 1 9 with alpha 1/2.
TEST(SmoothAttention, HandVector) {
  const std::vector<float> k_max = {4, 0.25f, 1, 9}, ones(4, 1.0f);
  const std::vector<float> lambda = PairedLambda(k_max, ones, 0.5, 0);
  EXPECT_EQ(lambda, (std::vector<float>{2, 3, 2, 3}));
  const float after[] = {2, 0.08333333f, 0.5f, 3};
  for (size_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(k_max[i] / lambda[i], after[i]);

  // RoPE at angle .7 with frequencies 1 and .1: scaling before it equals scaling after it when paired.
  using Four = std::array<double, 4>;
  const auto rope = [](const Four& x) {
    Four y;
    for (size_t i = 0; i < 2; ++i) {
      const double angle = i == 0 ? 0.7 : 0.07, c = std::cos(angle), s = std::sin(angle);
      y[i] = x[i] * c - x[i + 2] * s, y[i + 2] = x[i] * s + x[i + 2] * c;
    }
    return y;
  };
  const auto mismatch = [&](std::span<const float> by) {
    const auto scale = [&](Four x) {
      for (size_t i = 0; i < 4; ++i) x[i] *= by[i];
      return x;
    };
    const Four q = {1, -2, 0.5, 3}, first = rope(scale(q)), last = scale(rope(q));
    double worst = 0;
    for (size_t i = 0; i < 4; ++i) worst = std::max(worst, std::fabs(first[i] - last[i]));
    return worst;
  };
  EXPECT_LT(mismatch(lambda), 1e-12);
  EXPECT_NEAR(mismatch(std::array{2.0f, 0.5f, 1.0f, 3.0f}), 0.644, 0.001);
}

TEST(SmoothAttention, ZeroChannelsStay) {
  const std::vector<float> k_max = {0, 4, 0, 1}, q_max = {1, 1, 1, 1};
  EXPECT_EQ(PairedLambda(k_max, q_max, 0.5, 0), (std::vector<float>{1, 2, 1, 2}));
}

}  // namespace
}  // namespace nibble::qoq
