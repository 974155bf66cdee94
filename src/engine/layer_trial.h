// SPDX-License-Identifier: Apache-2.0
// Floor 8. What a recipe makes of one layer's attention: the same Q, K and V once in full precision and once
// as the recipe, with a candidate of a plan, would have it, through the cache and the kernels that will run.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"

namespace nibble {

// Of the attention output of one KV head's query heads, all rows together (SageAttention, section 4.1).
struct OutputError {
  double dot = 0, norm2 = 0, other_norm2 = 0;  // exact . tried, |exact|^2, |tried|^2
  double error2 = 0;                           // |exact - tried|^2
  double abs_error = 0, abs = 0;               // sum |exact - tried|, sum |exact|

  double Cosine() const;
  double RelativeL1() const { return abs > 0 ? abs_error / abs : 0; }
  double RelativeL2() const;
  void Add(const OutputError& other);
};
OutputError CompareOutputs(std::span<const float> exact, std::span<const float> tried);

// What a KV head took in a trial.
struct HeadCost {
  double k_bits = 0, v_bits = 0;  // a value, of requantized pages: Backend::Usage
  double bytes_read = 0;          // by all its rows, each a decode step
};

struct LayerRows {               // of one layer, several sequences one after the other
  std::vector<int32_t> lengths;  // tokens of each
  int heads = 0, kv_heads = 0, head_dim = 0;
  int64_t window = 0;          // sliding window, 0: none
  std::vector<float> q, k, v;  // [rows, heads or kv_heads, head_dim], RoPE applied
  std::vector<float> out;      // [rows, heads, head_dim] in full precision
};

class LayerTrial {
 public:
  // Keeps references: `backend` must have reserved for the rows, and both must outlive the trial.
  LayerTrial(Backend& backend, const LayerRows& rows) : backend_(backend), rows_(rows) {}
  ~LayerTrial();
  LayerTrial(const LayerTrial&) = delete;
  LayerTrial& operator=(const LayerTrial&) = delete;
  Status Init();

  // The error of each KV head under `recipe` with `plan` for this layer. Heads run one after the other, each
  // in a cache of its own, so that what each takes is known.
  Result<std::vector<OutputError>> Run(const AttentionRecipe& recipe, const LayerPlan& plan);
  const std::vector<HeadCost>& costs() const { return costs_; }  // [kv_heads] of the last run

 private:
  void ChooseWidths(const AttentionRecipe& recipe, LayerPlan* plan) const;
  Result<OutputError> RunHead(const AttentionRecipe& recipe, const LayerPlan& plan, int head);
  void Upload(const std::vector<float>& rows, int heads, int head, int count, const Buffer& to);

  Backend& backend_;
  const LayerRows& rows_;
  Buffer q_, k_, v_, out_;  // of one KV head
  std::vector<float> staging_;
  std::vector<HeadCost> costs_;
};

}  // namespace nibble
