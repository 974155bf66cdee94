// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda_prefill.h"

#include <algorithm>
#include <cstring>

namespace nibble {
namespace {

constexpr int kTile = 128;  // queries of a tile of ExactAttention

bool SameBytes(std::span<const KvSegment> a, std::span<const KvSegment> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace

bool PrefillSequences::Takes(const AttentionRecipe& r, int head_dim, int64_t window) {
  const Arithmetic& a = r.arithmetic;
  return a.qk == QkArith::kBF16 && a.pv == PvArith::kBF16 && a.softmax == SoftmaxKind::kExact &&
         r.k == kv::CodecId::kBF16 && r.v == kv::CodecId::kBF16 && r.tail == kv::Tail::kFloat &&
         (head_dim == 64 || head_dim == 128) && window == 0;
}

// The prompt rows of a sequence, of which there are some, as a sequence of the last group or of a new one.
void PrefillSequences::Add(std::span<const KvSegment> segments, std::span<const int32_t> page_table) {
  int rows = 0;
  const KvSegment* last = nullptr;
  for (const KvSegment& s : segments)
    if (s.dense_rows > 0) rows += s.dense_rows, last = &s;
  const int first_row = segments[0].row, keys = last->position + last->dense_rows;
  const bool scratch = last->raw_slot < 0;
  if (groups_.empty() || groups_.back().scratch != scratch ||
      groups_.back().first_row + groups_.back().rows != first_row) {
    groups_.push_back({.first_row = first_row, .first_sequence = int(open_.size()), .scratch = scratch});
    q_offsets_.push_back(0), k_offsets_.push_back(0);
  }
  Group& group = groups_.back();
  group.rows += rows, group.q_tiles += (rows + kTile - 1) / kTile, ++group.sequences;
  q_offsets_.push_back(group.rows);
  k_offsets_.push_back(k_offsets_.back() + keys);
  tile_ends_.push_back(group.q_tiles);
  open_.push_back(scratch ? ~last->raw_slot : last->raw_slot);
  last_open_ = std::max(last_open_, open_.back());
  const int pages = (keys - 1) / kv::kPageTokens;  // before the one that is read raw
  const auto at = page_table.begin() + last->table;
  table_.insert(table_.end(), at, at + pages);
  table_.resize(open_.size() * size_t(max_pages_));
  for (int i = 0; i < pages; ++i) last_page_ = std::max(last_page_, at[i]);
}

void PrefillSequences::MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table) {
  planned_.assign(segments.begin(), segments.end());
  planned_table_.assign(page_table.begin(), page_table.end());
  groups_.clear(), q_offsets_.clear(), k_offsets_.clear(), tile_ends_.clear(), open_.clear(), table_.clear();
  last_page_ = last_open_ = 0, max_pages_ = 1;
  for (const KvSegment& s : segments) max_pages_ = std::max(max_pages_, s.pages);
  for (size_t begin = 0, end = 0; begin < segments.size(); begin = end) {
    while (end < segments.size() && segments[end].seq == segments[begin].seq) ++end;
    if (segments[begin].dense_rows > 0) Add(segments.subspan(begin, end - begin), page_table);
  }
}

void PrefillSequences::RunGroup(const Args& a, const Group& group) {
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  const auto pages = [&](const cuda::PagedSide& side) {
    const int64_t open_stride = side.raw_bytes * a.kv.kv_heads;
    return cuda::KvPages{.pool = side.pool,
                         .open = group.scratch ? side.scratch : side.tail,
                         .page_stride = side.page_stride,
                         .head_stride = side.head_stride,
                         .open_stride = open_stride,
                         .open_head_stride = side.raw_bytes,
                         .pool_bytes = (last_page_ + 1) * side.page_stride,
                         .open_bytes = (last_open_ + 1) * open_stride};
  };
  const int at = group.first_sequence, index = int(&group - groups_.data());
  CheckCuda(cuda::ExactAttention({.sequences = group.sequences,
                                  .heads = a.heads,
                                  .kv_heads = a.kv.kv_heads,
                                  .head_dim = a.kv.page.head_dim,
                                  .q_tiles = group.q_tiles,
                                  .q_offsets = sent_.q_offsets + at + index,
                                  .k_offsets = sent_.k_offsets + at + index,
                                  .q_tile_ends = sent_.tile_ends + at,
                                  .causal = true,
                                  .q = a.q + group.first_row * width,
                                  .k = nullptr,
                                  .v = nullptr,
                                  .q_stride = width,
                                  .k_stride = 0,
                                  .v_stride = 0,
                                  .q_rows = group.rows,
                                  .k_rows = 0,
                                  .k_pages = pages(a.kv.k),
                                  .v_pages = pages(a.kv.v),
                                  .page_table = sent_.table + int64_t{at} * max_pages_,
                                  .open_index = sent_.open + at,
                                  .max_pages = max_pages_,
                                  .out = a.out + group.first_row * width,
                                  .out_stride = width,
                                  .lse = nullptr,
                                  .scale = a.scale},
                                 stream_));
}

void PrefillSequences::Run(const Args& a, std::span<const KvSegment> segments,
                           std::span<const int32_t> page_table, SendRing& ring) {
  if (!SameBytes(segments, planned_) ||
      !std::equal(page_table.begin(), page_table.end(), planned_table_.begin(), planned_table_.end())) {
    MakePlan(segments, page_table);
    sent_ = {q_offsets_mirror_.Send(q_offsets_, ring), k_offsets_mirror_.Send(k_offsets_, ring),
             tile_ends_mirror_.Send(tile_ends_, ring), open_mirror_.Send(open_, ring),
             table_mirror_.Send(table_, ring)};
  }
  for (const Group& group : groups_) RunGroup(a, group);
}

}  // namespace nibble
