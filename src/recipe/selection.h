// SPDX-License-Identifier: Apache-2.0
// Floor 3. Which tokens a decode row reads. Prefill rows (KvCache::SetPrefill) read all.
#pragma once
#include <cstdint>

namespace nibble {

enum class SelectKind : uint8_t { kAll, kWindow, kSparq, kH2o };

// What stands for the tokens that were not selected (SparQ step 3 and F-S7). kAuto: the mean where one query
// head has its own KV head, else nothing.
enum class Reallocation : uint8_t { kAuto, kOff, kMean, kUnselected, kBlocks };

// The copy of K that ranks tokens, [head_dim, tokens] in each page. kInt8, kInt4: symmetric, an f16 scale for
// each channel and 32 tokens (F-S3).
enum class KeyCopy : uint8_t { kF16, kInt8, kInt4 };

// SparQ (arXiv 2312.04985). The tokens a row reads: the newest `local`, the first `sinks`, and those with the
// greatest approximate score, `k` in all; the paper's convention, k holds the current token.
struct SparqParams {
  int r = 32;      // channels of the query that rank the tokens
  int k = 128;     // tokens that are read
  int local = -1;  // -1: k / 4
  int sinks = 0;   // F-S6
  float rho = 0;   // > 0: the least r (a multiple of 8, at most r) that covers this share of |q| (F-S1)
  float eps = 0;   // > 0: the least k (at most k) that covers 1 - eps of the approximate weight (F-S2)
  Reallocation mean = Reallocation::kAuto;
  KeyCopy copy = KeyCopy::kF16;
  bool rank_logits = false;  // GQA: tokens by the sum of logits, as the authors' code, not of softmax weights
  bool operator==(const SparqParams&) const = default;
};

struct WindowParams {  // StreamingLLM: the first `sinks` tokens and the newest up to `k` in all
  int k = 512;
  int sinks = 4;
  bool operator==(const WindowParams&) const = default;
};

struct H2oParams {  // H2O: the newest `local` and the greatest by accumulated weight, `k` in all
  int k = 512;
  int local = -1;  // -1: k / 4
  bool operator==(const H2oParams&) const = default;
};

struct Selection {
  SelectKind kind = SelectKind::kAll;
  SparqParams sparq{};
  WindowParams window{};
  H2oParams h2o{};
  bool operator==(const Selection&) const = default;
};

}  // namespace nibble
