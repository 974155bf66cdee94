// SPDX-License-Identifier: Apache-2.0
// Floor 6. The paged KV cache. What it promises and why: docs/engine.md.
#include "cache/kv_cache.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

using kv::kPageTokens;

// Bytes of one KV head: of a sealed page, of a raw page.
int64_t PageBytes(kv::CodecId codec, int head_dim) {
  return kv::Get(codec).page_bytes({.head_dim = head_dim, .tokens = kPageTokens});
}
int64_t RawBytes(kv::CodecId codec, int head_dim) {
  return int64_t{kPageTokens} * head_dim * SizeOf(kv::Get(codec).raw);
}
int64_t PagesFor(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

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

  Result<SeqId> Open() override;
  void Close(SeqId) override;
  int64_t Length(SeqId seq) const override { return At(seq).length; }
  int64_t FreeTokens() const override { return int64_t(free_pages_.size()) * kPageTokens; }
  Status BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) override;
  KvView View(int layer) override;
  std::span<const int32_t> Positions() const override { return positions_; }

 private:
  // Its SeqId is its index and its tail slot. Sealed pages are chained from the newest to the oldest, so that
  // a sequence of any length needs no memory of its own.
  struct Sequence {
    bool open = false;
    int64_t length = 0;
    int32_t newest_page = -1;
    int64_t step = 0;  // the last step it was part of
  };
  // K or V: pools [layers, pages, kv_heads, page], tails [layers, max_seqs, kv_heads, raw page] and scratch
  // [scratch slots, kv_heads, raw page].
  struct Side {
    int64_t page_bytes = 0, raw_bytes = 0;
    Buffer pool, tail, scratch;
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

  Backend& backend_;
  const KvCacheOptions options_;
  const int64_t pages_;
  Side k_, v_;
  std::vector<Sequence> seqs_;
  std::vector<SeqId> free_seqs_;
  std::vector<int32_t> free_pages_;
  std::vector<int32_t> previous_page_;  // [pages] of the same sequence, -1: none
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
      scratch_slots_(MaxScratchSlots(o.max_seqs, o.max_step_tokens)) {
  k_ = {PageBytes(o.recipe.k, o.shape.head_dim), RawBytes(o.recipe.k, o.shape.head_dim), {}, {}, {}};
  v_ = {PageBytes(o.recipe.v, o.shape.head_dim), RawBytes(o.recipe.v, o.shape.head_dim), {}, {}, {}};
  seqs_.resize(size_t(o.max_seqs));
  for (SeqId s = o.max_seqs; s-- > 0;) free_seqs_.push_back(s);
  free_pages_.reserve(size_t(pages_));
  for (int64_t p = pages_; p-- > 0;) free_pages_.push_back(int32_t(p));
  previous_page_.resize(size_t(pages_), -1);
  segments_.reserve(size_t(scratch_slots_ + o.max_seqs));
  page_table_.reserve(size_t(pages_));
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
    NIBBLE_RETURN_IF_ERROR(alloc(side->pool, shape.layers * pages_ * shape.kv_heads * side->page_bytes));
    NIBBLE_RETURN_IF_ERROR(alloc(side->tail, shape.layers * options_.max_seqs * raw));
    NIBBLE_RETURN_IF_ERROR(alloc(side->scratch, scratch_slots_ * raw));
  }
  return {};
}

PagedKvCache::~PagedKvCache() {
  for (const Side* side : {&k_, &v_})
    for (const Buffer& b : {side->pool, side->tail, side->scratch}) backend_.Free(b);
}

Result<SeqId> PagedKvCache::Open() {
  if (free_seqs_.empty())
    return Error(Code::kOutOfMemory, "kv cache: all {} sequences are open", options_.max_seqs);
  const SeqId id = free_seqs_.back();
  free_seqs_.pop_back();
  seqs_[size_t(id)] = {.open = true};
  return id;
}

void PagedKvCache::Close(SeqId id) {
  Sequence& seq = At(id);
  for (int32_t page = seq.newest_page; page >= 0; page = previous_page_[size_t(page)])
    free_pages_.push_back(page);
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
  if (needed > int64_t(free_pages_.size()))
    return Error(Code::kOutOfMemory, "kv cache: the step fills {} pages of {} tokens; {} of {} are free",
                 needed, kPageTokens, free_pages_.size(), pages_);
  return {};
}

int32_t PagedKvCache::AddPage(Sequence& seq) {
  const int32_t page = free_pages_.back();
  free_pages_.pop_back();
  previous_page_[size_t(page)] = seq.newest_page;
  seq.newest_page = page;
  return page;
}

void PagedKvCache::AddSegments(SeqId id, int32_t count) {
  Sequence& seq = At(id);
  const int32_t table = int32_t(page_table_.size());
  const int64_t end = seq.length + count;
  while (seq.length < end) {
    const int32_t position = int32_t(seq.length), in_page = position % kPageTokens;
    const int32_t rows = int32_t(std::min<int64_t>(kPageTokens - in_page, end - position));
    const bool last = position + rows == end;
    KvSegment s{.row = int32_t(positions_.size()), .rows = rows, .position = position};
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
  for (size_t i = pages; i-- > 0; page = previous_page_[size_t(page)]) page_table_[size_t(table) + i] = page;
}

Status PagedKvCache::BeginStep(std::span<const SeqId> seqs, std::span<const int32_t> counts) {
  NIBBLE_RETURN_IF_ERROR(CheckStep(seqs, counts));
  segments_.clear(), page_table_.clear(), positions_.clear();
  scratch_used_ = 0;
  for (size_t i = 0; i < seqs.size(); ++i) AddSegments(seqs[i], counts[i]);
  return {};
}

KvView PagedKvCache::View(int layer) {
  const KvShape& shape = options_.shape;
  NIBBLE_CHECK(layer >= 0 && layer < shape.layers, "View: layer");
  const auto pool = [&](const Side& s) {
    return s.pool.data + layer * pages_ * shape.kv_heads * s.page_bytes;
  };
  const auto tail = [&](const Side& s) {
    return s.tail.data + int64_t{layer} * options_.max_seqs * shape.kv_heads * s.raw_bytes;
  };
  return {.k_pool = pool(k_),
          .v_pool = pool(v_),
          .k_tail = tail(k_),
          .v_tail = tail(v_),
          .k_scratch = k_.scratch.data,
          .v_scratch = v_.scratch.data,
          .segments = segments_,
          .page_table = page_table_,
          .kv_heads = shape.kv_heads,
          .page = {.head_dim = shape.head_dim, .tokens = kPageTokens},
          .k_codec = options_.recipe.k,
          .v_codec = options_.recipe.v};
}

}  // namespace

KvSizes PlanKv(const KvShape& shape, const AttentionRecipe& recipe, int max_seqs, int64_t max_tokens) {
  const int64_t page = PageBytes(recipe.k, shape.head_dim) + PageBytes(recipe.v, shape.head_dim);
  const int64_t raw = RawBytes(recipe.k, shape.head_dim) + RawBytes(recipe.v, shape.head_dim);
  const int64_t heads = int64_t{shape.layers} * shape.kv_heads;
  return {.bits_per_value = 8.0 * double(page) / (2.0 * kPageTokens * shape.head_dim),
          .bytes_per_token = (heads * page + kPageTokens - 1) / kPageTokens,
          .tail_bytes_per_seq = heads * raw,
          .pool_bytes = heads * (page * PagesFor(max_tokens) + raw * max_seqs)};
}

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
  return std::unique_ptr<KvCache>(std::move(cache));
}

}  // namespace nibble
