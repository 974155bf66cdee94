// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda_prompts.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "recipe/prompt_pages.h"

namespace nibble {
namespace {

constexpr int kTile = 128;  // queries of a tile of ExactAttention, by position

bool SameBytes(std::span<const KvSegment> a, std::span<const KvSegment> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace

// The prompt rows of a sequence, of which there are some, as a sequence of the last group or of a new one.
void UnpackedPrompts::Add(std::span<const KvSegment> segments, std::span<const int32_t> page_table,
                          const Limits& limits) {
  int rows = 0, own = 0;
  const KvSegment* last = nullptr;
  for (const KvSegment& s : segments)
    if (s.dense_rows > 0) rows += s.dense_rows, ++own, last = &s;
  const int first_row = segments[0].row, start = segments[0].position, keys = start + rows;
  const int older = (keys - 1) / kv::kPageTokens;  // pages before that of the last row
  const int q_tiles = (keys + kTile - 1) / kTile - start / kTile;
  NIBBLE_CHECK(older + own <= limits.pages && q_tiles <= limits.q_tiles,
               "Attention: a longer prompt than ReservePrompts was told");
  if (groups_.empty() || groups_.back().first_row + groups_.back().rows != first_row ||
      groups_.back().pages + older + own > limits.pages ||
      groups_.back().q_tiles + q_tiles > limits.q_tiles) {
    groups_.push_back({.first_row = first_row,
                       .first_sequence = int(bases_.size()),
                       .first_page = int(pages_.size()),
                       .first_sage = int(sages_.size()),
                       .first_sage_q_tile = int(sum_pages_.size() / 2),
                       .first_tile = int(tiles_.size())});
    q_offsets_.push_back(0), k_offsets_.push_back(0);
  }
  Group& group = groups_.back();
  bases_.push_back({.older = group.pages, .own = group.pages + older - start / kv::kPageTokens});
  for (int i = 0; i < older; ++i)
    pages_.push_back({.seq = last->seq, .page = page_table[size_t(last->table + i)], .rows = -1});
  for (const KvSegment& s : segments)
    if (s.dense_rows > 0)
      pages_.push_back({s.seq, s.raw_slot, int32_t(s.position % kv::kPageTokens + s.dense_rows)});
  if (older > 0)
    AddSage(group, bases_.back(), rows, keys, last->seq,
            page_table.subspan(size_t(last->table), size_t(older)));
  group.rows += rows, ++group.sequences, group.pages += older + own;
  group.q_tiles += q_tiles;
  q_offsets_.push_back(group.rows);
  k_offsets_.push_back(k_offsets_.back() + keys);
  tile_ends_.push_back(group.q_tiles);
}

// Tiles of its pages by two, and for each tile of queries whose second half has rows the page of the first.
// `pages`: of the cache, before that of the last row.
void UnpackedPrompts::AddSage(Group& group, const cuda::PageBases& bases, int rows, int keys, int seq,
                              std::span<const int32_t> pages) {
  const int first = (keys - rows) / kTile, last = (keys - 1) / kTile, index = group.sages++;
  cuda::SageSequence s{.query = group.rows,
                       .queries = rows,
                       .keys = keys,
                       .q_tile_end = group.sage_q_tiles + last + 1 - first,
                       .pairs = group.tiles,
                       .alone = group.tiles + last - first,
                       .seq = seq,
                       .delta = group.delta_tiles};
  for (int j = 0; j < last; ++j) tiles_.push_back({bases.older + 2 * j, bases.older + 2 * j + 1, seq, index});
  for (int b = first; b <= last; ++b)
    if (keys > b * kTile + kv::kPageTokens) tiles_.push_back({bases.older + 2 * b, -1, seq, index});
  // The queries of the page before are what smoothing goes by.
  for (int page = 2 * first; page <= 2 * last + 1; ++page)
    sum_pages_.push_back(page > 0 && size_t(page) <= pages.size() ? pages[size_t(page) - 1] : -1);
  group.sage_q_tiles = s.q_tile_end;
  group.tiles = int(tiles_.size()) - group.first_tile;
  group.delta_tiles += (last + 1 - first) * cuda::SageDeltaTiles(keys);
  sages_.push_back(s);
}

void UnpackedPrompts::MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table,
                               const Limits& limits) {
  planned_.assign(segments.begin(), segments.end());
  planned_table_.assign(page_table.begin(), page_table.end());
  planned_limits_ = limits;
  groups_.clear(), q_offsets_.clear(), k_offsets_.clear(), tile_ends_.clear(), bases_.clear(), pages_.clear();
  sages_.clear(), tiles_.clear(), sum_pages_.clear();
  for (size_t begin = 0, end = 0; begin < segments.size(); begin = end) {
    while (end < segments.size() && segments[end].seq == segments[begin].seq) ++end;
    if (segments[begin].dense_rows > 0) Add(segments.subspan(begin, end - begin), page_table, limits);
  }
}

void UnpackedPrompts::RunGroup(const Args& a, const Group& group) {
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  auto* k = reinterpret_cast<uint16_t*>(a.memory.data());
  auto* v = reinterpret_cast<uint16_t*>(a.memory.data() + a.memory.size() / 2);
  CheckCuda(cuda::UnpackPages({.kv = a.kv,
                               .pages = sent_.pages + group.first_page,
                               .count = group.pages,
                               .k = k,
                               .v = v,
                               .open_only = a.turbo != nullptr},
                              stream_));
  if (a.turbo != nullptr) return RunTurbo(a, group, k, v);
  cuda::SageTiles tiles{};
  float* lse = nullptr;
  if (a.sage != nullptr) {
    size_t bytes = 0;
    tiles = cuda::SagePageTilesAt(a.heads, a.kv.kv_heads, a.kv.page.head_dim, group.sage_q_tiles, group.tiles,
                                  a.sage->smooths_queries() ? group.delta_tiles : 0, a.sage->memory.data(),
                                  &bytes);
    lse = reinterpret_cast<float*>(a.sage->memory.data() + bytes);
    NIBBLE_CHECK(bytes + size_t(group.rows) * size_t(a.heads) * sizeof(float) <= a.sage->memory.size(),
                 "Attention: more rows than ReservePrompts was told");
  }
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
                                  .k = k,
                                  .v = v,
                                  .bases = sent_.bases + at,
                                  .q_stride = width,
                                  .k_stride = 0,
                                  .v_stride = 0,
                                  .q_rows = group.rows,
                                  .k_rows = group.pages * a.kv.kv_heads * kv::kPageTokens,
                                  .k_pages = {},
                                  .v_pages = {},
                                  .page_table = nullptr,
                                  .open_index = nullptr,
                                  .max_pages = 0,
                                  .own_only = a.sage != nullptr,
                                  .out = a.out + group.first_row * width,
                                  .out_stride = width,
                                  .lse = lse,
                                  .scale = a.scale},
                                 stream_));
  if (a.sage != nullptr && group.sages > 0) RunSage(a, group, k, v, lse, tiles);
}

void UnpackedPrompts::RunTurbo(const Args& a, const Group& group, const uint16_t* k, const uint16_t* v) {
  const UnpackedPrompts::Turbo& turbo = *a.turbo;
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  const int at = group.first_sequence, index = int(&group - groups_.data());
  size_t bytes = 0;
  const cuda::TurboTiles tiles = cuda::TurboTilesAt(a.heads, a.kv.kv_heads, a.kv.page.head_dim, group.q_tiles,
                                                    group.pages, turbo.memory.data(), &bytes);
  NIBBLE_CHECK(bytes <= turbo.memory.size(), "Attention: more rows than ReservePrompts was told");
  const cuda::TurboPlan plan{.heads = a.heads,
                             .kv_heads = a.kv.kv_heads,
                             .head_dim = a.kv.page.head_dim,
                             .q_tiles = group.q_tiles,
                             .pages = group.pages,
                             .q_offsets = sent_.q_offsets + at + index,
                             .k_offsets = sent_.k_offsets + at + index,
                             .q_tile_ends = sent_.tile_ends + at,
                             .bases = sent_.bases + at};
  CheckCuda(cuda::TurboCodes({.plan = plan,
                              .kv = a.kv,
                              .page_list = sent_.pages + group.first_page,
                              .q = turbo.q + group.first_row * turbo.q_stride,
                              .q_stride = turbo.q_stride,
                              .scale = a.scale,
                              .tiles = tiles},
                             stream_));
  CheckCuda(cuda::TurboAttention({.plan = plan,
                                  .tiles = tiles,
                                  .q = a.q + group.first_row * width,
                                  .k = k,
                                  .v = v,
                                  .q_stride = width,
                                  .q_rows = group.rows,
                                  .out = a.out + group.first_row * width,
                                  .out_stride = width,
                                  .scale = a.scale,
                                  .polynomial = turbo.polynomial,
                                  .threshold = turbo.threshold},
                                 stream_));
}

void UnpackedPrompts::RunSage(const Args& a, const Group& group, const uint16_t* k, const uint16_t* v,
                              const float* lse, const cuda::SageTiles& tiles) {
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  const cuda::SageSequence* sequences = sent_.sages + group.first_sage;
  CheckCuda(cuda::SageQuantizePages({.heads = a.heads,
                                     .kv_heads = a.kv.kv_heads,
                                     .head_dim = a.kv.page.head_dim,
                                     .q_tiles = group.sage_q_tiles,
                                     .k_tiles = group.tiles,
                                     .sequences = sequences,
                                     .page_tiles = sent_.tiles + group.first_tile,
                                     .q = a.sage->q + group.first_row * a.sage->q_stride,
                                     .k = k,
                                     .v = v,
                                     .q_stride = a.sage->q_stride,
                                     .k_mean = a.sage->k_mean,
                                     .records = a.sage->records,
                                     .record_stride = a.sage->record_stride,
                                     .q_mean = a.sage->q_mean,
                                     .q_sums = a.sage->q_sums,
                                     .q_sum_stride = a.sage->q_sum_stride,
                                     .sum_pages = sent_.sum_pages + 2 * group.first_sage_q_tile,
                                     .delta_tiles = group.delta_tiles,
                                     .levels = a.sage->levels,
                                     .by_page = a.sage->by_page,
                                     .scale = a.scale,
                                     .tiles = tiles},
                                    stream_));
  cuda::SageShape shape{};
  shape.heads = a.heads, shape.kv_heads = a.kv.kv_heads, shape.head_dim = a.kv.page.head_dim;
  shape.q_tiles = group.sage_q_tiles, shape.k_tiles = group.tiles, shape.delta_tiles = group.delta_tiles;
  CheckCuda(cuda::SageAttention({.shape = shape,
                                 .tiles = tiles,
                                 .out = a.out + group.first_row * width,
                                 .out_stride = width,
                                 .scale = a.scale,
                                 .sequences = sequences,
                                 .lse = lse},
                                stream_));
}

UnpackedPrompts::Limits UnpackedPrompts::LimitsOf(const Args& a) {
  const int dim = a.kv.page.head_dim;
  Limits limits{.pages = int64_t(a.memory.size()) / PromptBytes(1, a.kv.kv_heads, dim),
                .q_tiles = std::numeric_limits<int>::max()};
  if (a.sage != nullptr) limits.q_tiles = SageQueryTiles(a.sage->step_tokens);
  if (a.turbo == nullptr) return limits;
  limits.q_tiles = SageQueryTiles(a.turbo->step_tokens);
  const int64_t queries = TurboBytes(0, a.turbo->step_tokens, a.heads, a.kv.kv_heads, dim),
                page = TurboBytes(1, 0, 0, a.kv.kv_heads, dim) - TurboBytes(0, 0, 0, a.kv.kv_heads, dim);
  limits.pages = std::min(limits.pages, (int64_t(a.turbo->memory.size()) - queries) / page);
  return limits;
}

void UnpackedPrompts::Run(const Args& a, std::span<const KvSegment> segments,
                          std::span<const int32_t> page_table, SendRing& ring) {
  const Limits limits = LimitsOf(a);
  if (limits != planned_limits_ || !SameBytes(segments, planned_) ||
      !std::equal(page_table.begin(), page_table.end(), planned_table_.begin(), planned_table_.end())) {
    MakePlan(segments, page_table, limits);
    sent_ = {q_offsets_mirror_.Send(q_offsets_, ring), k_offsets_mirror_.Send(k_offsets_, ring),
             tile_ends_mirror_.Send(tile_ends_, ring), bases_mirror_.Send(bases_, ring),
             pages_mirror_.Send(pages_, ring),         sages_mirror_.Send(sages_, ring),
             tiles_mirror_.Send(tiles_, ring),         sum_pages_mirror_.Send(sum_pages_, ring)};
  }
  for (const Group& group : groups_) RunGroup(a, group);
}

}  // namespace nibble
