// SPDX-License-Identifier: Apache-2.0
// Tokens drawn on the GPU against those of the sampler: every filter alone and together, penalties and
// biases, ties, rows that hold no numbers, and rows beside each other. Skips without a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "tests/support/cuda.h"

namespace nibble {
namespace {

struct Case {
  std::string name;
  SamplingParams params;
};

// Each filter alone, then together.
std::vector<Case> Cases() {
  return {{"greedy", {}},
          {"temperature", {.temperature = 0.8f}},
          {"hot", {.temperature = 4}},
          {"cold", {.temperature = 0.05f}},
          {"top-k 1", {.temperature = 1, .top_k = 1}},
          {"top-k", {.temperature = 1.2f, .top_k = 40}},
          {"top-k of all", {.temperature = 1.2f, .top_k = 1 << 30}},
          {"top-p", {.temperature = 1, .top_p = 0.9f}},
          {"small top-p", {.temperature = 1, .top_p = 1e-6f}},
          {"min-p", {.temperature = 1.5f, .min_p = 0.05f}},
          {"all", {.temperature = 0.9f, .top_k = 200, .top_p = 0.8f, .min_p = 0.001f}},
          {"penalties",
           {.temperature = 0.7f,
            .top_p = 0.95f,
            .repetition_penalty = 1.3f,
            .frequency_penalty = 0.4f,
            .presence_penalty = -0.2f,
            .logit_bias = {{3, 4.0f}, {0, -100.0f}}}},
          {"greedy, penalized", {.repetition_penalty = 2, .logit_bias = {{1, 2.5f}}}}};
}

// Some values are equal and some far away, as in the logits of a model.
std::vector<float> Logits(int vocab, uint32_t seed) {
  std::vector<float> x = test::Random(size_t(vocab), seed, 3);
  std::mt19937 random(seed + 1);
  for (int i = 0; i < vocab / 10; ++i) x[random() % x.size()] = std::round(x[random() % x.size()]);
  x[random() % x.size()] = 9;
  return x;
}

class CudaDraw : public test::OnGpu {
 protected:
  ~CudaDraw() override {
    for (const Buffer& b : buffers_) gpu_->Free(b);
  }
  std::vector<int32_t> Draw(const std::vector<float>& logits, int vocab, const std::vector<DrawRow>& rows,
                            const std::vector<LogitChange>& changes) {
    const Buffer x = Keep(logits.size() * sizeof(float)), ids = Keep(rows.size() * sizeof(int32_t));
    gpu_->Upload(logits.data(), x.data, x.bytes);
    gpu_->Draw(Tensor::Dense(x.data, DType::kF32, Device::kCuda, {int64_t(rows.size()), vocab}), rows,
               changes, reinterpret_cast<int32_t*>(ids.data));
    std::vector<int32_t> drawn(rows.size());
    gpu_->Download(ids.data, drawn.data(), ids.bytes);
    gpu_->Sync();
    return drawn;
  }

 private:
  Buffer Keep(size_t bytes) {
    buffers_.push_back(*gpu_->Alloc(bytes));
    return buffers_.back();
  }
  std::vector<Buffer> buffers_;
};

TEST_F(CudaDraw, TokensOfTheSampler) {
  constexpr int kRows = 24;
  for (const int vocab : {7, 1000, 4096, 32003, 128256}) {
    Sampler sampler(vocab);
    for (const Case& c : Cases()) {
      std::vector<float> logits;
      std::vector<DrawRow> rows;
      std::vector<LogitChange> changes;
      std::vector<int32_t> wanted;
      int others = 0;  // another number draws another token: what the comparison would miss
      for (int row = 0; row < kRows; ++row) {
        SamplingParams p = c.params;
        p.seed = uint64_t(row / 2);
        std::vector<float> x = Logits(vocab, uint32_t(row));
        std::vector<int32_t> history;
        for (int i = 0; i < row; ++i) history.push_back((i * i + row) % std::min(vocab, 50));
        const auto index = uint64_t(row / 2), guessed = uint64_t(row % 3 == 0 ? row / 4 : 0);
        rows.push_back(sampler.Prepare(std::span(history).first(history.size() - guessed),
                                       std::span(history).last(guessed), p, index, &changes));
        logits.insert(logits.end(), x.begin(), x.end());
        std::vector<float> copy = x;
        wanted.push_back(sampler.Sample(x, history, p, index));
        p.seed += 1000;
        others += sampler.Sample(copy, history, p, index) != wanted.back() ? 1 : 0;
      }
      EXPECT_EQ(Draw(logits, vocab, rows, changes), wanted) << c.name << ", " << vocab;
      if (c.name == "hot" && vocab > 7) {
        EXPECT_GT(others, kRows / 2) << vocab;
      }
    }
  }
}

TEST_F(CudaDraw, EqualLogitsAreToldApartById) {
  constexpr int kVocab = 5000, kRows = 64;
  Sampler sampler(kVocab);
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1, .top_k = 1500}, SamplingParams{.temperature = 1, .top_p = 0.3f},
        SamplingParams{.temperature = 1, .min_p = 1}}) {
    const std::vector<float> same(kVocab, -2.5f);
    std::vector<float> logits;
    std::vector<DrawRow> rows;
    std::vector<LogitChange> changes;
    std::vector<int32_t> wanted;
    for (int row = 0; row < kRows; ++row) {
      rows.push_back(sampler.Prepare({}, {}, params, uint64_t(row), &changes));
      logits.insert(logits.end(), same.begin(), same.end());
      std::vector<float> copy = same;
      wanted.push_back(sampler.Sample(copy, {}, params, uint64_t(row)));
    }
    EXPECT_EQ(Draw(logits, kVocab, rows, changes), wanted) << params.top_k << " " << params.top_p;
  }
}

TEST_F(CudaDraw, RowsThatHoldNoNumbers) {
  constexpr int kVocab = 3000;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const DrawRow greedy{}, drawn{.uniform = 0.4, .temperature = 1, .top_p = 1, .min_p = 0, .top_k = 0},
      sorted{.uniform = 0.4, .temperature = 1, .top_p = 0.9f, .min_p = 0, .top_k = 5};
  const std::vector<DrawRow> rows = {greedy, drawn, sorted, greedy, drawn, sorted, drawn};
  std::vector<float> logits;
  for (size_t row = 0; row < rows.size(); ++row) {
    const auto x = Logits(kVocab, uint32_t(row));
    logits.insert(logits.end(), x.begin(), x.end());
  }
  const auto clean = Draw(logits, kVocab, rows, {});
  for (const int32_t id : clean) EXPECT_TRUE(id >= 0 && id < kVocab);
  logits[0 * kVocab + 17] = NAN, logits[1 * kVocab + 2999] = kInfinity, logits[2 * kVocab] = -kInfinity;
  const auto broken = Draw(logits, kVocab, rows, {});
  for (size_t row = 0; row < rows.size(); ++row) EXPECT_EQ(broken[row], row < 3 ? -1 : clean[row]) << row;
}

}  // namespace
}  // namespace nibble
