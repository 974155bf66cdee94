// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: rows that select the tokens they read, and what is kept beside pages for them.
#include <algorithm>
#include <cstring>

#include "backend/cpu_backend.h"
#include "backend/kv_view.h"
#include "base/check.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

TokenBytes BytesOf(const kv::CodecInfo& codec, kv::Tail tail, kv::PageShape page) {
  const int64_t shared = codec.shared_bytes(page), all = codec.page_bytes(page);
  return {(all - shared + page.tokens - 1) / page.tokens, shared, kv::TailRowBytes(tail, codec.raw, page)};
}

}  // namespace

std::string_view SelectKernelName(const Selection& select) {
  switch (select.kind) {
    case SelectKind::kAll:
      return "";
    case SelectKind::kWindow:
      return "window+gather";
    case SelectKind::kH2o:
      return "h2o+gather";
    case SelectKind::kSparq:
      return select.sparq.copy == KeyCopy::kF16    ? "sparq-f16+gather"
             : select.sparq.copy == KeyCopy::kInt8 ? "sparq-int8+gather"
                                                   : "sparq-int4+gather";
  }
  return "";
}

Status CpuBackend::ReserveSelection(int64_t tokens, int heads, int kv_heads, int head_dim) {
  NIBBLE_CHECK(tokens > 0 && kv_heads > 0 && heads % kv_heads == 0, "ReserveSelection: shape");
  const kv::PageShape page{.head_dim = head_dim, .tokens = kv::kPageTokens};
  const int64_t floats = (SelectScratchFloats(tokens, heads / kv_heads, page) + 15) / 16 * 16;
  if (floats <= max_select_floats_) return {};
  const size_t threads = size_t(pool_.threads());
  NIBBLE_ASSIGN(Buffer work, Alloc(threads * size_t(floats) * sizeof(float)));
  Free(select_work_);
  select_work_ = work;
  max_select_floats_ = floats;
  scratch_.resize(threads);
  for (size_t i = 0; i < threads; ++i)
    scratch_[i].select = reinterpret_cast<float*>(work.data) + int64_t(i) * floats;
  return {};
}

// Pages that this step completed. One item a sequence and KV head: a page's running sum needs that of the
// page before.
void CpuBackend::SealRecords(const KvView& kv) {
  if (!kv.side.v_sum && !kv.side.k_copy) return;
  const auto seals = [](const KvSegment& s) { return s.seal_page >= 0; };
  const DType k_raw = kv::Get(kv.k_codec).raw;
  const auto seal = [&](const KvSegment& s, int head, float* scratch) {
    const auto sum = [&](int64_t page) {
      return reinterpret_cast<float*>(PageRecord(kv, page, head) + kv.side.v_sum.offset);
    };
    const SealedPages v = SealedPagesOf(kv, true, s.seq, head);
    kernels_.value_sum({.page = v.At(s.seal_page),
                        .before = s.pages > 0 ? sum(kv.page_table[size_t(s.table + s.pages - 1)]) : nullptr,
                        .sum = sum(s.seal_page),
                        .scratch = scratch,
                        .codec = v.codec.id,
                        .shape = kv.page});
    kernels_.key_copy({.raw = RawPage(kv, false, s.raw_slot, head, RawBytes(kv, k_raw)),
                       .copy = PageRecord(kv, s.seal_page, head) + kv.side.k_copy.offset,
                       .scratch = scratch,
                       .raw_type = k_raw,
                       .format = kv.recipe->select.sparq.copy,
                       .shape = kv.page,
                       .tail = TailOf(kv)});
  };
  pool_.Run(int64_t(kv.segments.size()) * kv.kv_heads, [&](int64_t item, int worker) {
    VisitSequence(kv, size_t(item / kv.kv_heads), [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i)
        if (seals(kv.segments[i]))
          seal(kv.segments[i], int(item % kv.kv_heads), scratch_[size_t(worker)].floats);
    });
  });
}

SelectRow CpuBackend::MakeSelectRow(const AttendArgs& a, const KvSegment& s, int head, int row,
                                    Scratch& scratch) const {
  const KvView& kv = a.kv;
  const SealedPages k = SealedPagesOf(kv, false, s.seq, head), v = SealedPagesOf(kv, true, s.seq, head);
  const int group = a.heads / kv.kv_heads;
  const int64_t position = s.position + row, first = FirstSeen(position, a.window);
  NIBBLE_CHECK(SelectScratchFloats(position - first + 1, group, kv.page) <= max_select_floats_,
               "Attention: more than ReserveSelection was told");
  const std::byte** pages = scratch.pages;
  // The page before the first one seen is named as well: its running sum is taken off.
  for (int64_t p = std::max<int64_t>(0, first / kv.page.tokens - 1); p < s.pages; ++p) {
    const int32_t page = kv.page_table[size_t(s.table + p)];
    pages[p] = k.At(page), pages[kMaxContextPages + p] = v.At(page);
    pages[2 * kMaxContextPages + p] = PageRecord(kv, page, head);
  }
  const int64_t at = int64_t{s.row} + row, query_head = int64_t{head} * group;
  return {.q = a.q.as<const float>() + at * a.q.stride[0] + query_head * a.q.stride[1],
          .out = a.out.as<float>() + at * a.out.stride[0] + query_head * a.out.stride[1],
          .k_pages = pages,
          .v_pages = pages + kMaxContextPages,
          .records = pages + 2 * kMaxContextPages,
          .k_raw = RawPage(kv, false, s.raw_slot, head, RawBytes(kv, k.codec.raw)),
          .v_raw = RawPage(kv, true, s.raw_slot, head, RawBytes(kv, v.codec.raw)),
          .scratch = scratch.select,
          .first = first,
          .position = position,
          .group = group,
          .page = kv.page,
          .k_codec = k.codec.id,
          .v_codec = v.codec.id,
          .tail = TailOf(kv),
          .k_bytes = BytesOf(k.codec, TailOf(kv), kv.page),
          .v_bytes = BytesOf(v.codec, TailOf(kv), kv.page),
          .scale = a.scale,
          .counters = &scratch.counters};
}

void CpuBackend::AttendSelected(const AttendArgs& a) {
  const KvView& kv = a.kv;
  const SelectKind kind = SelectOf(kv);
  if (kind == SelectKind::kAll) return;
  if (kind == SelectKind::kH2o) return AttendH2o(a);
  pool_.Run(a.q.dim[0] * kv.kv_heads, [&](int64_t item, int worker) {
    const int64_t at = item / kv.kv_heads;
    const auto after = std::upper_bound(kv.segments.begin(), kv.segments.end(), at,
                                        [](int64_t row, const KvSegment& s) { return row < s.row; });
    const KvSegment& s = *(after - 1);
    const int row = int(at - s.row);
    if (row < s.dense_rows) return;
    const SelectRow r = MakeSelectRow(a, s, int(item % kv.kv_heads), row, scratch_[size_t(worker)]);
    if (kind == SelectKind::kWindow) {
      kernels_.window({.row = r, .window = kv.recipe->select.window});
    } else {
      kernels_.sparq({.row = r,
                      .sparq = SparqOfHead(*kv.recipe, kv.plan, int(item % kv.kv_heads)),
                      .v_sum = kv.side.v_sum.offset,
                      .k_copy = kv.side.k_copy.offset});
    }
  });
}

// H2O remembers, so the rows of a sequence come one after the other. The weights of a page's tokens lie in
// its record, those of the open page in the sequence's own; a page that this step completes takes them over.
void CpuBackend::AttendH2o(const AttendArgs& a) {
  const KvView& kv = a.kv;
  const auto weights = [&kv](std::byte* record) {
    return reinterpret_cast<float*>(record + kv.side.h2o.offset);
  };
  const auto attend = [&](const KvSegment& s, int head, Scratch& scratch) {
    float* open = weights(OpenRecord(kv, s.seq, head));
    float* own = s.seal_page >= 0 ? weights(PageRecord(kv, s.seal_page, head)) : open;
    if (own != open) memcpy(own, open, size_t(s.position % kv.page.tokens) * sizeof(float));
    float** scores = scratch.scores;
    for (int p = 0; p < s.pages; ++p)
      scores[p] = weights(PageRecord(kv, kv.page_table[size_t(s.table + p)], head));
    scores[s.pages] = own;
    for (int row = 0; row < s.rows; ++row)
      kernels_.h2o({.row = MakeSelectRow(a, s, head, row, scratch),
                    .h2o = kv.recipe->select.h2o,
                    .scores = scores,
                    .prefill = row < s.dense_rows});
  };
  pool_.Run(int64_t(kv.segments.size()) * kv.kv_heads, [&](int64_t item, int worker) {
    VisitSequence(kv, size_t(item / kv.kv_heads), [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i)
        attend(kv.segments[i], int(item % kv.kv_heads), scratch_[size_t(worker)]);
    });
  });
}

}  // namespace nibble
