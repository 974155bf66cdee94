// SPDX-License-Identifier: Apache-2.0
// Floor 8. Many recipes against the exact one, on one model and text: quality, retrieval, attention error by
// layer, bits, bytes read and time. The exact engine runs once; what it found is kept (ReferenceLogits,
// AttentionReference) and every recipe's engine is loaded, measured and dropped in turn.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/attention_error.h"
#include "engine/evaluate.h"
#include "engine/retrieval.h"

namespace nibble {

struct CompareOptions {
  EngineOptions engine{};      // its recipe is ignored: the exact one, and those to compare
  std::string reference = {};  // folder that the exact recipe runs in f32; "": engine.model
  bool perplexity = true, passkey = true, repetition = true;
  int window = 2048, max_windows = 4;
  int64_t context = 0;          // before a timed decode step; 0: kDefaultContext or what fits
  std::vector<int> contexts{};  // lengths of the retrieval texts; none: RetrievalContexts(context)
  int trials = 1;               // texts a task and context length
  uint64_t seed = 1;
  // Of a text to calibrate on. Not empty: recipes that leave something to choose (engine/calibrate.h) are
  // measured a second time with a plan made from it, each with its own.
  std::string calibration_name = {}, calibration = {};
  size_t keep_bytes = size_t{2} << 30;  // for the reference's logits, and as much for its attention
  int decode_steps = 24;                // timed
  // Once before a recipe with its name ("" for the reference), then with the rows fed so far.
  std::function<void(std::string_view recipe, int64_t done, int64_t total)> on_progress{};
  const std::atomic<bool>* cancel = nullptr;  // ends with the complete recipes so far
};

inline constexpr int64_t kDefaultContext = 3500;

struct RecipeReport {
  std::string recipe;     // as asked for
  std::string canonical;  // "" when it did not parse
  std::string refused;    // why it cannot run with this model; nothing below is set then
  KvSizes kv{};
  std::optional<EvaluateReport> quality{}, planned{};   // as it is; with its plan
  std::vector<RetrievalScore> passkey{}, repetition{};  // by context, ascending
  std::vector<LayerError> accumulated{}, isolated{};    // [layers]
  RowReads reads;                                       // of one decode step
  double step_seconds = 0;                              // one decode step
  bool float_arithmetic = true, reads_all = true;       // kinds of recipe, for grouping
};

struct CompareReport {
  std::vector<RecipeReport> recipes;
  int windows = 0;
  int64_t window_tokens = 0;     // scored
  int64_t attention_tokens = 0;  // rows of the error by layer
  int64_t context = 0;
  std::vector<int> contexts;  // of retrieval
  double seconds = 0;
  bool cancelled = false;
};

// Context lengths of retrieval: `context` and its halves, down to kShortestContext; ascending.
inline constexpr int kShortestContext = 320;
std::vector<int> RetrievalContexts(int64_t context);

// kInvalidArgument when the text is shorter than a window or than the context, or these exceed the model's
// context. A recipe that does not parse or cannot run is a refused report and the others go on.
Result<CompareReport> Compare(std::span<const std::string> recipes, std::string_view text,
                              const CompareOptions&);

}  // namespace nibble
