// SPDX-License-Identifier: Apache-2.0
// Floor 6. The paged KV cache. What it promises and why: docs/engine.md.
#include "cache/kv_cache.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cache/kv_sizes.h"
#include "cache/kv_swap.h"
#include "cache/page_pool.h"
#include "cache/qaq_storage.h"
#include "quant/kv/registry.h"
#include "recipe/two_bit_heads.h"

namespace nibble {
namespace {

using kv::kPageTokens;

// Segments of a step that are not the last of their sequence end at a page boundary and live in scratch. The
// first such segment of a sequence takes at least one token and leaves one for the last, each further one
// takes a page.
int64_t MaxScratchSlots(int64_t max_seqs, int64_t max_step_tokens) {
  return std::min(max_seqs, max_step_tokens / 2) + max_step_tokens / kPageTokens;
}

class PagedKvCache final : public KvCache {
 public:
  PagedKvCache(Backend& backend, const KvCacheOptions& options);
  ~PagedKvCache() override;
  Status AllocPools();
  Status AllocQaq();

  Result<SeqId> Open() override;
  void Close(SeqId) override;
  int64_t Length(SeqId seq) const override { return At(seq).length; }
  void SetPrefill(SeqId seq, int64_t tokens) override { At(seq).prefill = tokens; }
  int64_t FreeTokens() const override { return pool_.available() * kPageTokens; }
  KvPages Pages() const override { return {pages_, pages_ - pool_.available(), pool_.idle()}; }
  int64_t OwnPages(SeqId) const override;
  PrefixMatch FindPrefix(std::span<const int32_t> tokens, std::string_view salt) const override;
  int64_t TakePrefix(SeqId, std::span<const int32_t> tokens, std::string_view salt) override;
  void Keep(SeqId, std::span<const int32_t> tokens) override;
  void RollBack(SeqId, int64_t length) override;
  int64_t SwapBytes(SeqId) const override;
  void SwapOut(SeqId, std::span<std::byte> to) const override;
  void SwapIn(SeqId, int64_t length, std::span<const std::byte> from) override;
  Status BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) override;
  KvView View(int layer) const override;
  std::span<const int32_t> Positions() const override { return positions_; }

 private:
  // Its SeqId is its index and its tail slot.
  struct Sequence {
    bool open = false;
    int64_t length = 0;
    int64_t prefill = 0;  // positions below attend to everything
    int32_t newest_page = -1;
    int64_t step = 0;  // the last step it was part of
    // Of the pages that are kept for others: how many, the newest, the key behind it.
    int64_t kept = 0;
    int32_t kept_page = -1;
    PrefixKey key{};
    std::string salt{};
  };
  // K or V: pools [layers, pages, row], tails [layers, max_seqs, kv_heads, raw page], scratch [scratch slots,
  // kv_heads, raw page] and, where `two_bit` heads of a row have 2 bits, places [layers, max_seqs, kv_heads].
  struct Side {
    int two_bit = 0;
    int64_t row_bytes = 0, raw_bytes = 0;
    Buffer pool, tail, scratch, places;
  };

  const Sequence& At(SeqId seq) const {
    NIBBLE_CHECK(seq >= 0 && size_t(seq) < seqs_.size() && seqs_[size_t(seq)].open,
                 "a sequence that is not open");
    return seqs_[size_t(seq)];
  }
  Sequence& At(SeqId seq) { return const_cast<Sequence&>(std::as_const(*this).At(seq)); }
  Status CheckStep(std::span<const SeqId> seqs, std::span<const int32_t> counts);
  void AddSegments(SeqId id, int32_t count);
  int32_t AddPage(Sequence& seq);
  std::vector<int32_t> PagesOf(const Sequence& seq) const;  // oldest first
  bool KeepsPrefixes() const { return !options_.prefix_scope.empty(); }

  Backend& backend_;
  const KvCacheOptions options_;
  const int64_t pages_;
  Side k_, v_;
  QaqStorage k_qaq_, v_qaq_;
  Buffer qaq_state_;  // [layers, max_seqs, kv_heads]
  const SideLayout side_;
  Buffer side_pool_, side_tail_;  // [layers, pages, kv_heads, record], [layers, max_seqs, kv_heads, record]
  std::vector<AttentionRecipe> layer_recipes_;  // [layers]
  std::vector<Sequence> seqs_;
  std::vector<SeqId> free_seqs_;
  PagePool pool_;
  std::vector<int32_t> chain_;  // scratch of Keep: pages of a sequence, newest first
  int64_t step_ = 0;

  // The current step. Reserved once; page_table_ cannot outgrow the pages there are.
  std::vector<KvSegment> segments_;
  std::vector<int32_t> page_table_, positions_;
  const int64_t scratch_slots_;
  int32_t scratch_used_ = 0;
};

PagedKvCache::PagedKvCache(Backend& backend, const KvCacheOptions& o)
    : backend_(backend),
      options_(o),
      pages_(PagesFor(o.max_tokens)),
      side_(SideOf(o.shape, o.heads, o.recipe)),
      pool_(pages_, o.prefix_scope),
      scratch_slots_(MaxScratchSlots(o.max_seqs, o.max_step_tokens)) {
  const auto side = [&o](kv::CodecId codec, int two_bit) {
    return Side{two_bit, RowBytes(codec, o.shape, two_bit), RawBytes(o.recipe, codec, o.shape.head_dim)};
  };
  k_ = side(o.recipe.k, TwoBitHeads(o.recipe, false, o.shape.kv_heads));
  v_ = side(o.recipe.v, TwoBitHeads(o.recipe, true, o.shape.kv_heads));
  for (int i = 0; i < o.shape.layers; ++i)
    layer_recipes_.push_back(o.plan != nullptr ? Apply(o.recipe, o.plan->layers[size_t(i)]) : o.recipe);
  seqs_.resize(size_t(o.max_seqs));
  for (SeqId s = o.max_seqs; s-- > 0;) free_seqs_.push_back(s);
  chain_.reserve(size_t(pages_));
  segments_.reserve(size_t(scratch_slots_ + o.max_seqs));
  // Sequences that share pages each have them in the table.
  const int64_t of_seq = o.max_seq_tokens > 0 ? std::min(pages_, PagesFor(o.max_seq_tokens)) : pages_;
  page_table_.reserve(size_t(o.prefix_scope.empty() ? pages_ : of_seq * o.max_seqs));
  positions_.reserve(size_t(o.max_step_tokens));
}

Status PagedKvCache::AllocPools() {
  const KvShape& shape = options_.shape;
  for (Side* side : {&k_, &v_}) {
    const int64_t raw = shape.kv_heads * side->raw_bytes;
    const auto alloc = [&](Buffer& buffer, int64_t bytes) -> Status {
      NIBBLE_ASSIGN(buffer, backend_.Alloc(size_t(bytes)));
      return {};
    };
    NIBBLE_RETURN_IF_ERROR(alloc(side->pool, shape.layers * pages_ * side->row_bytes));
    NIBBLE_RETURN_IF_ERROR(alloc(side->tail, shape.layers * options_.max_seqs * raw));
    NIBBLE_RETURN_IF_ERROR(alloc(side->scratch, scratch_slots_ * raw));
    if (side->two_bit > 0)
      NIBBLE_RETURN_IF_ERROR(alloc(side->places, int64_t{shape.layers} * options_.max_seqs * shape.kv_heads *
                                                     int64_t{sizeof(kv::HeadPlace)}));
  }
  const int64_t heads = int64_t{shape.layers} * shape.kv_heads;
  NIBBLE_ASSIGN(side_pool_, backend_.Alloc(size_t(heads * pages_ * side_.bytes)));
  NIBBLE_ASSIGN(side_tail_, backend_.Alloc(size_t(heads * options_.max_seqs * side_.seq_bytes)));
  const int64_t of_seq = options_.max_seq_tokens > 0 ? std::min(options_.max_seq_tokens, options_.max_tokens)
                                                     : options_.max_tokens;
  for (const AttentionRecipe& recipe : layer_recipes_)  // a plan gives layers recipes of their own
    NIBBLE_RETURN_IF_ERROR(
        backend_.ReservePrompts(recipe, of_seq, options_.max_step_tokens, shape.kv_heads, shape.head_dim));
  return AllocQaq();
}

Status PagedKvCache::AllocQaq() {
  const KvShape& shape = options_.shape;
  const kv::PageShape page{.head_dim = shape.head_dim, .tokens = kPageTokens};
  const bool k = kv::Get(options_.recipe.k).requantizes, v = kv::Get(options_.recipe.v).requantizes;
  const auto params = [&](const kv::QaqParams& own, std::vector<QaqBounds> LayerPlan::*bounds) {
    std::vector<kv::QaqParams> of_heads;
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int h = 0; h < shape.kv_heads; ++h)
        of_heads.push_back(
            options_.plan == nullptr ? own : QaqOfHead(own, options_.plan->layers[size_t(layer)].*bounds, h));
    return of_heads;
  };
  if (k)
    NIBBLE_RETURN_IF_ERROR(k_qaq_.Alloc(backend_, shape.layers, shape.kv_heads, pages_, page,
                                        params(options_.recipe.k_qaq, &LayerPlan::k_qaq)));
  if (v)
    NIBBLE_RETURN_IF_ERROR(v_qaq_.Alloc(backend_, shape.layers, shape.kv_heads, pages_, page,
                                        params(options_.recipe.v_qaq, &LayerPlan::v_qaq)));
  const auto heads = size_t(int64_t{shape.layers} * options_.max_seqs * shape.kv_heads);
  if (k || v) {
    NIBBLE_ASSIGN(qaq_state_, backend_.Alloc(heads * sizeof(QaqState)));
  }
  return {};
}

PagedKvCache::~PagedKvCache() {
  k_qaq_.Free(backend_), v_qaq_.Free(backend_), backend_.Free(qaq_state_);
  for (const Side* side : {&k_, &v_})
    for (const Buffer& b : {side->pool, side->tail, side->scratch, side->places}) backend_.Free(b);
  backend_.Free(side_pool_), backend_.Free(side_tail_);
}

Result<SeqId> PagedKvCache::Open() {
  if (free_seqs_.empty())
    return Error(Code::kOutOfMemory, "kv cache: all {} sequences are open", options_.max_seqs);
  const SeqId id = free_seqs_.back();
  free_seqs_.pop_back();
  seqs_[size_t(id)] = {.open = true};
  if (KeepsPrefixes()) seqs_[size_t(id)].key = pool_.index().Root({});
  return id;
}

void PagedKvCache::Close(SeqId id) {
  Sequence& seq = At(id);
  for (int32_t page = seq.newest_page; page >= 0;) {
    const int32_t before = pool_.before(page);
    pool_.Drop(page);
    page = before;
  }
  seq.open = false;
  free_seqs_.push_back(id);
}

Status PagedKvCache::CheckStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) {
  NIBBLE_CHECK(seqs.size() == counts.size(), "BeginStep: one count a sequence");
  int64_t rows = 0, needed = 0;
  ++step_;
  for (size_t i = 0; i < seqs.size(); ++i) {
    Sequence& seq = At(seqs[i]);
    NIBBLE_CHECK(counts[i] >= 0, "BeginStep: a negative count");
    NIBBLE_CHECK(seq.step != step_, "BeginStep: a sequence twice");
    seq.step = step_;
    rows += counts[i];
    needed += (seq.length + counts[i]) / kPageTokens - seq.length / kPageTokens;
    if (seq.length + counts[i] > INT32_MAX)
      return Error(Code::kUnsupported, "kv cache: a sequence of {} tokens; at most {}",
                   seq.length + counts[i], INT32_MAX);
  }
  NIBBLE_CHECK(rows <= options_.max_step_tokens, "BeginStep: more rows than max_step_tokens");
  if (needed > pool_.available())
    return Error(Code::kOutOfMemory, "kv cache: the step fills {} pages of {} tokens; {} of {} are free",
                 needed, kPageTokens, pool_.available(), pages_);
  return {};
}

int32_t PagedKvCache::AddPage(Sequence& seq) {
  seq.newest_page = pool_.Take(seq.newest_page);
  return seq.newest_page;
}

int64_t PagedKvCache::OwnPages(SeqId id) const {
  int64_t own = 0;  // the newest ones: whoever reads a page reads those before it
  for (int32_t page = At(id).newest_page; page >= 0 && pool_.holders(page) == 1; page = pool_.before(page))
    ++own;
  return own;
}

PrefixMatch PagedKvCache::FindPrefix(std::span<const int32_t> tokens, std::string_view salt) const {
  PrefixMatch match;
  if (!KeepsPrefixes()) return match;
  PrefixKey key = pool_.index().Root(salt);
  int32_t before = -1;
  for (; match.tokens + kPageTokens <= int64_t(tokens.size()); match.tokens += kPageTokens) {
    const auto of_page = tokens.subspan(size_t(match.tokens), kPageTokens);
    key = pool_.index().Next(key, of_page);
    before = pool_.index().Find(key, before, salt, of_page);
    if (before < 0) break;
    match.idle_pages += pool_.holders(before) == 0;
  }
  return match;
}

int64_t PagedKvCache::TakePrefix(SeqId id, std::span<const int32_t> tokens, std::string_view salt) {
  Sequence& seq = At(id);
  NIBBLE_CHECK(seq.length == 0 && seq.newest_page < 0, "TakePrefix: a sequence with tokens");
  if (!KeepsPrefixes()) return 0;
  seq.salt = salt;
  seq.key = pool_.index().Root(salt);
  for (; seq.length + kPageTokens <= int64_t(tokens.size()); seq.length += kPageTokens, ++seq.kept) {
    const auto of_page = tokens.subspan(size_t(seq.length), kPageTokens);
    const PrefixKey key = pool_.index().Next(seq.key, of_page);
    const int32_t page = pool_.index().Find(key, seq.kept_page, salt, of_page);
    if (page < 0) break;
    pool_.Hold(page);
    seq.newest_page = seq.kept_page = page, seq.key = key;
  }
  return seq.length;
}

void PagedKvCache::Keep(SeqId id, std::span<const int32_t> tokens) {
  Sequence& seq = At(id);
  const int64_t sealed = seq.length / kPageTokens, last = int64_t(tokens.size()) / kPageTokens;
  if (!KeepsPrefixes() || seq.kept >= std::min(sealed, last)) return;
  chain_.clear();
  for (int32_t page = seq.newest_page; page != seq.kept_page; page = pool_.before(page))
    chain_.push_back(page);
  for (size_t i = chain_.size(); i-- > 0 && seq.kept < last; ++seq.kept) {
    const auto of_page = tokens.subspan(size_t(seq.kept) * kPageTokens, kPageTokens);
    seq.key = pool_.index().Next(seq.key, of_page);
    int32_t page = chain_[i];
    const int32_t same = pool_.index().Find(seq.key, seq.kept_page, seq.salt, of_page);
    if (same < 0) {
      pool_.index().Add(page, seq.key, seq.kept_page, seq.salt, of_page);
    } else {  // somebody else was first
      pool_.Hold(same);
      pool_.Drop(page);
      page = same;
      if (i > 0)
        pool_.SetBefore(chain_[i - 1], page);
      else
        seq.newest_page = page;
    }
    seq.kept_page = page;
  }
}

void PagedKvCache::RollBack(SeqId id, int64_t length) {
  Sequence& seq = At(id);
  NIBBLE_CHECK(length <= seq.length && length / kPageTokens == seq.length / kPageTokens,
               "RollBack over a page");
  seq.length = length;
}

std::vector<int32_t> PagedKvCache::PagesOf(const Sequence& seq) const {
  std::vector<int32_t> pages;
  for (int32_t page = seq.newest_page; page >= 0; page = pool_.before(page)) pages.push_back(page);
  std::reverse(pages.begin(), pages.end());
  return pages;
}

int64_t PagedKvCache::SwapBytes(SeqId id) const {
  const std::vector<int32_t> pages = PagesOf(At(id));
  int64_t bytes = 0;
  for (int i = 0; i < options_.shape.layers; ++i) bytes += nibble::SwapBytes({backend_, View(i), id, pages});
  return bytes;
}

void PagedKvCache::SwapOut(SeqId id, std::span<std::byte> to) const {
  const std::vector<int32_t> pages = PagesOf(At(id));
  std::byte* at = to.data();
  for (int i = 0; i < options_.shape.layers; ++i) at = nibble::SwapOut({backend_, View(i), id, pages}, at);
  backend_.Sync();
  NIBBLE_CHECK(at == to.data() + to.size(), "SwapOut: not SwapBytes");
}

void PagedKvCache::SwapIn(SeqId id, int64_t length, std::span<const std::byte> from) {
  Sequence& seq = At(id);
  const int64_t there = seq.length / kPageTokens;
  NIBBLE_CHECK(seq.length % kPageTokens == 0 && seq.length <= length, "SwapIn: a sequence of other tokens");
  for (int64_t page = there; page < length / kPageTokens; ++page) AddPage(seq);
  seq.length = length;
  const std::vector<int32_t> pages = PagesOf(seq);
  const std::byte* at = from.data();
  for (int i = 0; i < options_.shape.layers; ++i)
    at = nibble::SwapIn({backend_, View(i), id, pages}, there, at);
  backend_.Sync();
  NIBBLE_CHECK(at == from.data() + from.size(), "SwapIn: not what SwapOut wrote");
}

void PagedKvCache::AddSegments(SeqId id, int32_t count) {
  Sequence& seq = At(id);
  const int32_t table = int32_t(page_table_.size());
  const int64_t end = seq.length + count;
  while (seq.length < end) {
    const int32_t position = int32_t(seq.length), in_page = position % kPageTokens;
    const int32_t rows = int32_t(std::min<int64_t>(kPageTokens - in_page, end - position));
    const bool last = position + rows == end;
    KvSegment s{.seq = id, .row = int32_t(positions_.size()), .rows = rows, .position = position};
    s.dense_rows = int32_t(std::clamp<int64_t>(seq.prefill - position, 0, rows));
    NIBBLE_CHECK(segments_.size() < segments_.capacity() && (last || scratch_used_ < scratch_slots_),
                 "BeginStep: more segments than a step can have");
    // Only the last segment may stay in the tail slot. An earlier one ends its page, and the tail slot is
    // about to receive the rows of a later page while this step's queries still read these.
    s.raw_slot = last ? id : ~scratch_used_++;
    s.copy_from = !last && in_page > 0 ? id : -1;
    s.seal_page = in_page + rows == kPageTokens ? AddPage(seq) : -1;
    s.table = table;
    s.pages = position / kPageTokens;
    segments_.push_back(s);
    for (int32_t i = 0; i < rows; ++i) positions_.push_back(position + i);
    seq.length += rows;
  }
  // The chain runs from the newest page back, the table from the oldest on.
  const size_t pages = size_t(seq.length / kPageTokens);
  page_table_.resize(size_t(table) + pages);
  int32_t page = seq.newest_page;
  for (size_t i = pages; i-- > 0; page = pool_.before(page)) page_table_[size_t(table) + i] = page;
}

Status PagedKvCache::BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) {
  NIBBLE_RETURN_IF_ERROR(CheckStep(seqs, counts));
  segments_.clear(), page_table_.clear(), positions_.clear();
  scratch_used_ = 0;
  for (size_t i = 0; i < seqs.size(); ++i) AddSegments(seqs[i], counts[i]);
  return {};
}

KvView PagedKvCache::View(int layer) const {
  const KvShape& shape = options_.shape;
  NIBBLE_CHECK(layer >= 0 && layer < shape.layers, "View: layer");
  const auto pool = [&](const Side& s) { return s.pool.data + layer * pages_ * s.row_bytes; };
  const auto mix = [&](const Side& s) -> HeadMix {
    if (s.places.data == nullptr) return {};
    return {
        reinterpret_cast<kv::HeadPlace*>(s.places.data) + int64_t{layer} * options_.max_seqs * shape.kv_heads,
        s.two_bit};
  };
  const auto tail = [&](const Side& s) {
    return s.tail.data + int64_t{layer} * options_.max_seqs * shape.kv_heads * s.raw_bytes;
  };
  return {
      .k_pool = pool(k_),
      .v_pool = pool(v_),
      .k_tail = tail(k_),
      .v_tail = tail(v_),
      .k_scratch = k_.scratch.data,
      .v_scratch = v_.scratch.data,
      .side_pool = side_pool_.data + layer * pages_ * shape.kv_heads * side_.bytes,
      .side_tail = side_tail_.data + int64_t{layer} * options_.max_seqs * shape.kv_heads * side_.seq_bytes,
      .segments = segments_,
      .page_table = page_table_,
      .kv_heads = shape.kv_heads,
      .page = {.head_dim = shape.head_dim, .tokens = kPageTokens},
      .k_codec = options_.recipe.k,
      .v_codec = options_.recipe.v,
      .recipe = &layer_recipes_[size_t(layer)],
      .plan = options_.plan != nullptr ? &options_.plan->layers[size_t(layer)] : nullptr,
      .side = side_,
      .k_mix = mix(k_),
      .v_mix = mix(v_),
      .k_qaq = k_qaq_.View(layer),
      .v_qaq = v_qaq_.View(layer),
      .qaq_state = qaq_state_.data == nullptr ? nullptr
                                              : reinterpret_cast<QaqState*>(qaq_state_.data) +
                                                    int64_t{layer} * options_.max_seqs * shape.kv_heads};
}

}  // namespace

Result<std::unique_ptr<KvCache>> KvCache::Make(Backend& backend, const KvCacheOptions& o) {
  NIBBLE_CHECK(o.shape.layers > 0 && o.shape.kv_heads > 0 && o.shape.head_dim > 0, "KvCache: shape");
  // Positions and page ids are 32 bits; below this bound no size overflows 64.
  if (o.max_seqs < 1 || o.max_step_tokens < 1 || o.max_tokens < 0 || o.max_tokens > INT32_MAX)
    return Error(Code::kInvalidArgument,
                 "kv cache: {} sequences, {} tokens a step, {} tokens; expected at least 1, at least 1 and 0 "
                 "to {}",
                 o.max_seqs, o.max_step_tokens, o.max_tokens, INT32_MAX);
  auto cache = std::make_unique<PagedKvCache>(backend, o);
  NIBBLE_RETURN_IF_ERROR(cache->AllocPools());
  if (o.recipe.select.kind != SelectKind::kAll)  // one sequence may have every page, and its open one
    NIBBLE_RETURN_IF_ERROR(backend.ReserveSelection((PagesFor(o.max_tokens) + 1) * kPageTokens,
                                                    std::max(o.heads, o.shape.kv_heads), o.shape.kv_heads,
                                                    o.shape.head_dim));
  return std::unique_ptr<KvCache>(std::move(cache));
}

}  // namespace nibble
