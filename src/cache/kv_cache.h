// SPDX-License-Identifier: Apache-2.0
// Floor 6. Pages of KV: who holds which, never what the bytes mean. Invariants:
//   1. a page is written once, when the last of its tokens arrives, and is read-only after;
//   2. only the tail slot of a sequence is mutable;
//   3. a query sees its own page raw and every earlier page through the codec, however the prompt was cut;
//   4. sequences may share sealed pages; a page that nobody reads is kept while its prefix may come again.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
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
  int max_step_tokens = 512;   // rows of one step
  int64_t max_tokens = 0;      // over all sequences together, rounded up to pages
  int64_t max_seq_tokens = 0;  // of one sequence, for the size of the page table; 0: max_tokens
  // What the bytes of a page depend on besides tokens: model, recipe, plan. Not empty: pages are kept for
  // prefixes that come again. REQUIRES a recipe that allows it (recipe/page_rules.h).
  std::string prefix_scope{};
};

struct PrefixMatch {
  int64_t tokens = 0;      // a multiple of 64
  int64_t idle_pages = 0;  // of those that hold them, pages that nobody reads now: they count as free
};
struct KvPages {
  int64_t total, used, idle;  // idle: read by nobody, kept for a prefix; the rest is free
};

// Counted honestly: codec pages with their metadata and side records. bits_per_value = 8 * page bytes / (2 *
// tokens * head_dim), K and V averaged.
struct KvSizes {
  double bits_per_value;
  double least_bits_per_value;  // less than the above where a codec chooses bits as it runs (QAQ)
  double k_bits, v_bits;        // of K and of V alone, without side records
  int64_t bytes_per_token;      // all layers, sealed pages
  int64_t tail_bytes_per_seq;   // all layers, raw open page
  int64_t pool_bytes;           // all layers, sealed pages for max_tokens and open pages for max_seqs
  // Besides, on a GPU of Hopper: pages of one layer decoded for the prompt of a sequence of max_tokens, in
  // steps of `step_tokens` (recipe/prompt_pages.h).
  int64_t prompt_bytes;
  KvUsage k_usage{}, v_usage{};  // Engine::kv_sizes: what a codec that requantizes did so far
};
KvSizes PlanKv(const KvShape&, int heads, const AttentionRecipe&, int max_seqs, int64_t max_tokens,
               int step_tokens = 512);

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
  // Tokens for which sealed pages are free or idle. Open pages hold up to 63 more a sequence, so this many
  // tokens fit however they are divided.
  virtual int64_t FreeTokens() const = 0;

  virtual KvPages Pages() const = 0;
  virtual int64_t OwnPages(SeqId) const = 0;  // that no other sequence reads

  // Prefixes. The longest beginning of `tokens` whose pages are kept, under `salt`.
  virtual PrefixMatch FindPrefix(std::span<const int32_t> tokens, std::string_view salt) const = 0;
  // Makes a sequence without tokens one of these tokens and returns how many they are. Later Keep calls are
  // under this salt.
  virtual int64_t TakePrefix(SeqId, std::span<const int32_t> tokens, std::string_view salt) = 0;
  // After a step has run: keeps the sealed pages of `tokens`, which begin the sequence, for others. A page
  // that equals one that is kept already is given back for it.
  virtual void Keep(SeqId, std::span<const int32_t> tokens) = 0;

  // Takes rows of the last step back: the sequence has `length` tokens again. REQUIRES that no page was
  // completed by these rows and that the recipe allows it (recipe/page_rules.h).
  virtual void RollBack(SeqId, int64_t length) = 0;

  // To host memory and back. What a sequence holds between steps, pages that it shares included, takes
  // SwapBytes. SwapOut copies it and changes nothing; its memory is read until it returns.
  virtual int64_t SwapBytes(SeqId) const = 0;
  virtual void SwapOut(SeqId, std::span<std::byte> to) const = 0;
  // Makes a sequence that was just opened, or got a prefix of the same tokens by TakePrefix, the one of
  // `length` tokens that was copied: every byte that a query sees is the same. REQUIRES free pages for those
  // behind the prefix.
  virtual void SwapIn(SeqId, int64_t length, std::span<const std::byte> from) = 0;

  // Plans one step: seqs[i] receives counts[i] new tokens; rows are sequence after sequence. Takes the pages
  // that will be sealed and advances the lengths. kOutOfMemory (nothing changed) when pages run out.
  // Allocates nothing.
  virtual Status BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) = 0;
  // The views of the current step, valid until the next BeginStep.
  virtual KvView View(int layer) const = 0;
  virtual std::span<const int32_t> Positions() const = 0;  // [rows]
};

}  // namespace nibble
