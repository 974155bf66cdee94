// SPDX-License-Identifier: Apache-2.0
// Floor 6. Pages of KV: who holds which, never what the bytes mean. Invariants:
//   1. a page is written once, when the last of its tokens arrives, and is read-only after;
//   2. only the tail slot of a sequence is mutable;
//   3. a query sees its own page raw and every earlier page through the codec, however the prompt was cut.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace nibble {

using SeqId = int32_t;

struct KvShape {
  int layers, kv_heads, head_dim;
};

struct KvCacheOptions {
  KvShape shape{};
  int heads = 0;  // query heads; 0: as many as KV heads
  AttentionRecipe recipe;
  const Plan* plan = nullptr;  // or null; must outlive the cache
  int max_seqs = 1;
  int max_step_tokens = 512;  // rows of one step
  int64_t max_tokens = 0;     // over all sequences together, rounded up to pages
};

// Counted honestly: codec pages with their metadata and side records. bits_per_value = 8 * page bytes / (2 *
// tokens * head_dim), K and V averaged.
struct KvSizes {
  double bits_per_value;
  double least_bits_per_value;   // less than the above where a codec chooses bits as it runs (QAQ)
  double k_bits, v_bits;         // of K and of V alone, without side records
  int64_t bytes_per_token;       // all layers, sealed pages
  int64_t tail_bytes_per_seq;    // all layers, raw open page
  int64_t pool_bytes;            // all layers, sealed pages for max_tokens and open pages for max_seqs
  KvUsage k_usage{}, v_usage{};  // Engine::kv_sizes: what a codec that requantizes did so far
};
KvSizes PlanKv(const KvShape&, int heads, const AttentionRecipe&, int max_seqs, int64_t max_tokens);

class KvCache {
 public:
  static Result<std::unique_ptr<KvCache>> Make(Backend&, const KvCacheOptions&);
  virtual ~KvCache() = default;
  virtual Result<SeqId> Open() = 0;  // kOutOfMemory when max_seqs are open
  virtual void Close(SeqId) = 0;
  virtual int64_t Length(SeqId) const = 0;
  // The first `tokens` positions of the sequence attend to all they may see; token selection concerns later
  // ones only. 0 after Open: a scored text is treated as decoded throughout.
  virtual void SetPrefill(SeqId, int64_t tokens) = 0;
  // Tokens for which sealed pages are free. Open pages hold up to 63 more a sequence, so this many tokens fit
  // however they are divided.
  virtual int64_t FreeTokens() const = 0;

  // Plans one step: seqs[i] receives counts[i] new tokens; rows are sequence after sequence. Takes the pages
  // that will be sealed and advances the lengths. kOutOfMemory (nothing changed) when pages run out.
  // Allocates nothing.
  virtual Status BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) = 0;
  // The views of the current step, valid until the next BeginStep.
  virtual KvView View(int layer) = 0;
  virtual std::span<const int32_t> Positions() const = 0;  // [rows]
};

}  // namespace nibble
