// SPDX-License-Identifier: Apache-2.0
// Floor 2. The settings of QAQ (arXiv 2403.04643), for K and for V apart. What they mean in formulas:
// quant/kv/qaq_rules.h; when widths change: docs/decisions/0012-qaq-changes-widths-at-pages.md.
#pragma once
#include <cstdint>

namespace nibble::kv {

// kPaper: the error of the midpoint quantizer meets the bound. kCode: the authors' program, which allows
// twice the step (about a bit less).
enum class QaqRule : uint8_t { kPaper, kCode };
// Which values of a token are stored exactly: a share at each end of the range, or as many of the extremes
// as make codes and outliers together smallest (F-Q3).
enum class QaqPick : uint8_t { kQuantile, kCost };
// What a page widens from: planes that are still in memory, or a full-precision copy (the paper's flow).
enum class QaqSource : uint8_t { kPlanes, kHost };
// The norm of the queries in the bound of K: of q / sqrt(head_dim), which the scores are made of, or of q as
// the paper prints it, log2(sqrt(head_dim)) bits more.
enum class QaqNorm : uint8_t { kScaled, kRaw };

struct QaqParams {
  float sigma = 1;       // K: standard deviation allowed to an attention weight; V: to an output
  int min = 0, max = 8;  // bits
  float outliers = 0;    // kQuantile: share of a token's values
  QaqPick pick = QaqPick::kQuantile;
  int window = 5;         // V: decode steps whose greatest weight stands for the future
  float decay = 0;        // V: > 0: importance = max(weight, decay * importance) by page (F-Q4)
  float quantile = 0.9f;  // K: of the squared query norms seen so far
  QaqNorm norm = QaqNorm::kScaled;
  int hysteresis = 1;  // updates in a row that must want another width (F-Q2)
  float room = 0;      // planes that a sequence may keep in memory, on average a page
  QaqSource source = QaqSource::kPlanes;
  QaqRule rule = QaqRule::kPaper;
  bool operator==(const QaqParams&) const = default;
};

// What k=qaq and v=qaq mean without settings: about 3 bits a value, all counted, at 3500 tokens of
// novelist-29m, with every pass key found. The window is longer than the paper's 5 because widths are decided
// once a page and a dropped plane does not come back.
inline constexpr QaqParams kQaqKeys{.sigma = 0.0006f, .max = 6};
inline constexpr QaqParams kQaqValues{.sigma = 0.25f, .max = 5, .window = 32, .decay = 0.9f};

}  // namespace nibble::kv
