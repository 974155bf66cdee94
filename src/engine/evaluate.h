// SPDX-License-Identifier: Apache-2.0
// Floor 8. What a recipe or a weight format costs in quality: perplexity of a text, and the divergence of the
// next-token distributions from those of a reference engine on the same tokens.
//
// Protocol: the text is tokenized once without special tokens and cut into non-overlapping pieces. A window
// is the begin-of-text token and window - 1 text tokens, all of which are scored; what is left at the end of
// the text is dropped, unless the whole text is shorter than one window. A model without a begin-of-text
// token gets pieces of `window` tokens, the first of which is not scored.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/reference_logits.h"

namespace nibble {

// One row of logits against the token that follows it.
struct RowScore {
  double nll = 0;      // -ln p(target)
  int32_t argmax = 0;  // the smallest id among equals
};
RowScore ScoreRow(std::span<const float> logits, int32_t target);

// The same for two distributions over one vocabulary.
struct RowComparison {
  double nll = 0, reference_nll = 0;
  double kld = 0;         // KL(reference || model) in nats, >= 0
  double delta_p = 0;     // p(target) under the model minus that under the reference
  bool same_top = false;  // equal argmax
};
RowComparison CompareRows(std::span<const float> logits, std::span<const float> reference, int32_t target);

// Quantiles interpolate linearly between order statistics (as numpy's default does).
struct Distribution {
  double mean = 0, median = 0, p99 = 0, p999 = 0, max = 0;
};
Distribution Summarize(std::span<const double> values);  // REQUIRES at least one value

// The token sequences to feed, at most max_windows. `bos` < 0: none is put in front. REQUIRES window >= 2.
using Windows = std::vector<std::vector<int32_t>>;
Windows CutWindows(std::span<const int32_t> ids, int32_t bos, int window, int max_windows);

struct EvaluateOptions {
  int window = 2048;
  int max_windows = 40;
  int threads = 0;                                               // 0: all available
  std::function<void(int64_t done, int64_t total)> on_progress;  // rows of logits seen
  const std::atomic<bool>* cancel = nullptr;                     // ends with the complete windows so far
};

// How the model compares with its reference.
struct ReferenceReport {
  double nll_per_token = 0, perplexity = 0;
  Distribution kld;
  double same_top = 0;     // share of positions, 0..1
  double delta_p_rms = 0;  // root mean square of RowComparison::delta_p
};

struct EvaluateReport {
  int windows = 0;
  int64_t tokens = 0;  // scored
  double nll_per_token = 0, perplexity = 0;
  std::optional<ReferenceReport> reference;
  double seconds = 0;
  bool cancelled = false;
};

// The windows of a text. kInvalidArgument when the text has fewer than two tokens, the window exceeds a
// context, or the two engines tokenize the text differently.
Result<Windows> CutText(const Engine& model, const Engine* reference, std::string_view text,
                        const EvaluateOptions&);

// Scores the windows one after the other; `reference` (may be null) computes what it has not kept. The result
// does not depend on `threads`. kCorrupt when logits are not numbers; kCancelled before the first window.
Result<EvaluateReport> EvaluateWindows(Engine& model, ReferenceLogits* reference, const Windows& windows,
                                       const EvaluateOptions&);

// Both in one, `reference` (may be null) in lock step: memory beyond the engines is one window of the
// reference's logits, window * vocab * 4 bytes.
Result<EvaluateReport> Evaluate(Engine& model, Engine* reference, std::string_view text,
                                const EvaluateOptions&);

}  // namespace nibble
