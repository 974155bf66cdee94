// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: the KV cache ops. Of one layer, first every segment is appended and sealed, then
// every query attends; so a later segment of a step finds the pages that an earlier one filled.
#include <cstring>
#include <string>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/head_choice.h"
#include "backend/kv_view.h"
#include "backend/smoothing.h"
#include "base/check.h"
#include "quant/kv/qaq.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

void CheckSegments(const KvView& kv, int64_t rows, int kv_heads, int head_dim) {
  NIBBLE_CHECK(kv.kv_heads == kv_heads && kv.page.head_dim == head_dim, "KV view of another shape");
  for (const KvSegment& s : kv.segments) {
    NIBBLE_CHECK(s.rows > 0 && s.row >= 0 && s.row + s.rows <= rows, "segment outside the step's rows");
    NIBBLE_CHECK(s.position % kv.page.tokens + s.rows <= kv.page.tokens, "segment over two pages");
    NIBBLE_CHECK(size_t(s.table) + size_t(s.pages) <= kv.page_table.size(), "segment outside the page table");
  }
}

// Of the pages [first, last). QAQ's differ in their widths, and planes above a width are not read.
int64_t BytesRead(const kv::CodecInfo& codec, kv::PageShape shape, const std::byte* const* pages,
                  int64_t first, int64_t last) {
  if (!codec.requantizes) return std::max<int64_t>(0, last - first) * codec.page_bytes(shape);
  int64_t bytes = 0;
  for (int64_t p = first; p < last; ++p) {
    const kv::QaqHeader h = kv::LoadQaqHeader(pages[p]);
    bytes += kv::QaqRecordBytes(shape) + int64_t{h.width} * kv::QaqPlaneBytes(shape) +
             int64_t{kv::QaqCells(h.outliers)} * kv::kQaqCellBytes;
  }
  return bytes;
}

// What the rows [begin, end) of a segment read when each is a decode step by itself; the pages are those of
// one KV head.
void CountDense(const AttendArgs& a, const KvSegment& s, int head, const std::byte* const* k_pages,
                const std::byte* const* v_pages, int begin, int end, AttentionCounters& counters) {
  const KvView& kv = a.kv;
  const kv::CodecInfo& k = SealedPagesOf(kv, false, s.seq, head).codec;
  const kv::CodecInfo& v = SealedPagesOf(kv, true, s.seq, head).codec;
  const int tokens = kv.page.tokens, dim = kv.page.head_dim;
  const int raw_row =
      kv::TailRowBytes(TailOf(kv), k.raw, kv.page) + kv::TailRowBytes(TailOf(kv), v.raw, kv.page);
  for (int row = begin; row < end; ++row) {
    const int64_t position = s.position + row, own = position / tokens * tokens;
    const int64_t first = FirstSeen(position, a.window), seen = position - first + 1;
    const int64_t raw = position - std::max(own, first) + 1;
    ++counters.rows;
    counters.tokens_read += seen;
    counters.scalars_read += (2 * seen + 2) * dim;
    counters.bytes_read += BytesRead(k, kv.page, k_pages, first / tokens, own / tokens) +
                           BytesRead(v, kv.page, v_pages, first / tokens, own / tokens) + raw * raw_row;
  }
}

}  // namespace

// A page that was open before this step and is completed in scratch still lacks its earlier rows. They are
// copied before anything is written: a later segment of the step overwrites the tail slot they lie in.
void CpuBackend::CopyOpenRows(const KvView& kv) {
  const auto copies = [](const KvSegment& s) { return s.copy_from >= 0; };
  if (std::none_of(kv.segments.begin(), kv.segments.end(), copies)) return;
  pool_.Run(int64_t(kv.segments.size()) * kv.kv_heads, [&](int64_t item, int) {
    const KvSegment& s = kv.segments[size_t(item / kv.kv_heads)];
    const int head = static_cast<int>(item % kv.kv_heads);
    if (!copies(s)) return;
    for (const bool is_v : {false, true}) {
      const DType raw = kv::Get(is_v ? kv.v_codec : kv.k_codec).raw;
      const size_t bytes = RawBytes(kv, raw);
      const size_t row_bytes = bytes / size_t(kv.page.tokens);
      const bool whole = TailOf(kv) == kv::Tail::kInt8;  // its exponents and scale lie behind the rows
      memcpy(RawPage(kv, is_v, s.raw_slot, head, bytes), RawPage(kv, is_v, s.copy_from, head, bytes),
             whole ? bytes : size_t(s.position % kv.page.tokens) * row_bytes);
    }
  });
}

void CpuBackend::AppendSegment(const KvAppendArgs& a, const KvSegment& s, int head, bool is_v) {
  const KvView& kv = a.kv;
  const Tensor& x = is_v ? a.v : a.k;
  const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
  std::byte* raw = RawPage(kv, is_v, s.raw_slot, head, RawBytes(kv, codec.raw));
  kernels_.kv_write({.x = x.as<const float>() + s.row * x.stride[0] + head * x.stride[1],
                     .raw = raw,
                     .x_stride = x.stride[0],
                     .rows = s.rows,
                     .first_token = s.position % kv.page.tokens,
                     .head_dim = kv.page.head_dim,
                     .raw_type = codec.raw});
}

void CpuBackend::SealSegment(const KvView& kv, const KvSegment& s, int head, bool is_v, float* scratch) {
  if (s.seal_page < 0) return;
  const SealedPages pages = SealedPagesOf(kv, is_v, s.seq, head);
  const kv::CodecInfo& codec = pages.codec;
  const std::byte* raw = RawPage(kv, is_v, s.raw_slot, head, RawBytes(kv, codec.raw));
  if (!is_v && s.pages == 0 && NeedsKeyMean(kv)) WriteKeyMean(kv, s.seq, head, raw);
  if (codec.requantizes) return;  // AttendInWaves seals those
  std::byte* page = pages.At(s.seal_page);
  if (TailOf(kv) == kv::Tail::kInt8) {
    kernels_.tail_seal({.tail = raw, .page = page, .codec = codec.id, .shape = kv.page});
  } else {
    kernels_.kv_seal({.raw = raw, .page = page, .scratch = scratch, .codec = codec.id, .shape = kv.page});
  }
}

void CpuBackend::KvAppend(const KvAppendArgs& a) {
  const int kv_heads = a.kv.kv_heads;
  NIBBLE_CHECK(a.k.rank == 3 && a.v.rank == 3 && a.k.dim == a.v.dim, "KvAppend: k and v shapes");
  NIBBLE_CHECK(a.k.dtype == DType::kF32 && a.k.stride[2] == 1 && a.v.stride[2] == 1, "KvAppend: k and v");
  CheckSegments(a.kv, a.k.dim[0], static_cast<int>(a.k.dim[1]), static_cast<int>(a.k.dim[2]));
  NIBBLE_CHECK(a.kv.page.head_dim <= max_head_dim_, "KvAppend: larger head than Reserve was told");
  CopyOpenRows(a.kv);
  const int64_t segments = int64_t(a.kv.segments.size());
  if (segments == 0) return;
  const int64_t per_item = std::max<int64_t>(1, a.k.dim[0] / segments) * a.k.dim[2];
  ForBlocks(segments * kv_heads * 2, per_item, [&](int begin, int end, int worker) {
    if (TailOf(a.kv) == kv::Tail::kInt8) return AppendInt8(a, begin, end, scratch_[size_t(worker)].counters);
    for (int i = begin; i < end; ++i)
      AppendSegment(a, a.kv.segments[size_t(i / (2 * kv_heads))], i / 2 % kv_heads, i % 2 == 1);
  });
  Seal(a.kv);
}

// The pages that this step completed. All rows are written: the widths of heads are chosen from all heads.
void CpuBackend::Seal(const KvView& kv) {
  const auto seals = [](const KvSegment& s) { return s.seal_page >= 0; };
  if (std::none_of(kv.segments.begin(), kv.segments.end(), seals)) return;
  const auto segments = int64_t(kv.segments.size());
  if (ChoosesHeads(kv))
    pool_.Run(segments * 2, [&](int64_t item, int worker) {
      ChooseHeads(kv, kv.segments[size_t(item / 2)], item % 2 == 1, scratch_[size_t(worker)].floats);
    });
  pool_.Run(segments * kv.kv_heads * 2, [&](int64_t item, int worker) {
    const KvSegment& s = kv.segments[size_t(item / (2 * kv.kv_heads))];
    SealSegment(kv, s, int(item / 2 % kv.kv_heads), item % 2 == 1, scratch_[size_t(worker)].floats);
  });
  SealRecords(kv);
}

// Adds the step's queries to the running sums of their sequences, in token order however the step was cut. A
// sequence's segments follow each other.
void CpuBackend::SumQueries(const AttendArgs& a) {
  const KvView& kv = a.kv;
  const int group = a.heads / kv.kv_heads;
  NIBBLE_CHECK(kv.side.q_sum.bytes == group * kv.page.head_dim * 4,
               "Attention: a side record of other heads");
  ForBlocks(int64_t(kv.segments.size()) * kv.kv_heads, int64_t{group} * kv.page.head_dim,
            [&](int begin, int end, int) {
              for (int i = begin; i < end; ++i) {
                const size_t first = size_t(i / kv.kv_heads);
                if (first > 0 && kv.segments[first - 1].seq == kv.segments[first].seq) continue;
                for (size_t j = first; j < kv.segments.size() && kv.segments[j].seq == kv.segments[first].seq;
                     ++j)
                  AddQueries(a, kv.segments[j], i % kv.kv_heads);
              }
            });
}

AttentionArgs CpuBackend::MakeAttentionArgs(const AttendArgs& a, const Queries& q, Scratch& scratch) const {
  const KvView& kv = a.kv;
  const KvSegment& s = q.segment;
  const SealedPages k = SealedPagesOf(kv, false, s.seq, q.head), v = SealedPagesOf(kv, true, s.seq, q.head);
  const std::byte **k_pages = scratch.pages, **v_pages = scratch.pages + kMaxContextPages;
  for (int p = 0; p < s.pages; ++p) {
    const int32_t page = kv.page_table[size_t(s.table + p)];
    k_pages[p] = k.At(page), v_pages[p] = v.At(page);
  }
  const Means means = MeansOf(kv, s, q.head, q.first, q.group, scratch.q_mean);
  const int64_t row = s.row + q.row_begin;
  const int query_head = q.head * (a.heads / kv.kv_heads) + q.first;
  return {.q = a.q.as<const float>() + row * a.q.stride[0] + query_head * a.q.stride[1],
          .out = a.out.as<float>() + row * a.out.stride[0] + query_head * a.out.stride[1],
          .k_pages = k_pages,
          .v_pages = v_pages,
          .page_list = nullptr,
          .k_raw = RawPage(kv, false, s.raw_slot, q.head, RawBytes(kv, k.codec.raw)),
          .v_raw = RawPage(kv, true, s.raw_slot, q.head, RawBytes(kv, v.codec.raw)),
          .scratch = scratch.floats,
          .states = nullptr,
          .q_stride = a.q.stride[0],
          .out_stride = a.out.stride[0],
          .position = s.position + q.row_begin,
          .window = a.window,
          .rows = q.row_end - q.row_begin,
          .group = q.group,
          .pages = s.pages,
          .list_len = s.pages,
          .page = kv.page,
          .k_codec = k.codec.id,
          .v_codec = v.codec.id,
          .tail = TailOf(kv),
          .scale = a.scale,
          .arithmetic = kv.recipe != nullptr ? kv.recipe->arithmetic : Arithmetic{},
          .k_mean = means.k,
          .q_mean = means.q,
          .counters = &scratch.counters};
}

// `states`: of all blocks, or null.
void CpuBackend::AttendQueries(const AttendArgs& a, const Queries& q, float* states, Scratch& scratch) {
  AttentionArgs args = MakeAttentionArgs(a, q, scratch);
  args.states = states;
  if (q.first == 0)
    CountDense(a, q.segment, q.head, args.k_pages, args.v_pages, std::max(q.row_begin, q.segment.dense_rows),
               q.row_end, scratch.counters);
  kernels_.attention(args);
}

// A few decode rows of long contexts leave threads without work unless they share a context.
bool CpuBackend::SharesContext(const AttendArgs& a) const {
  const KvView& kv = a.kv;
  if (kv.recipe != nullptr && !AttendsInBlocks(kv.recipe->arithmetic)) return false;
  int pages = 0;
  for (const KvSegment& s : kv.segments) {
    if (s.rows != 1 || DenseRows(kv, s) != 1) return false;
    pages = std::max(pages, s.pages);
  }
  return int64_t(kv.segments.size()) * kv.kv_heads < pool_.threads() && pages > kAttentionBlockPages &&
         pages <= kMaxSharedBlocks * kAttentionBlockPages;
}

void CpuBackend::AttendInBlocks(const AttendArgs& a) {
  const KvView& kv = a.kv;
  const int group = a.heads / kv.kv_heads;
  const int64_t units = int64_t(kv.segments.size()) * kv.kv_heads;
  const int64_t state = AttentionStateFloats(1, group, kv.page);
  const auto queries = [&](int64_t unit) {
    return Queries{kv.segments[size_t(unit / kv.kv_heads)], int(unit % kv.kv_heads), 0, 1, 0, group};
  };
  const auto blocks_of = [&](int64_t unit) {
    return (kv.segments[size_t(unit / kv.kv_heads)].pages + kAttentionBlockPages - 1) / kAttentionBlockPages;
  };
  int64_t most = 0;
  for (int64_t unit = 0; unit < units; ++unit) most = std::max<int64_t>(most, blocks_of(unit));
  pool_.Run(units * most, [&](int64_t item, int worker) {
    const int64_t unit = item % units, block = item / units;
    if (block >= blocks_of(unit)) return;
    kernels_.attention_block(MakeAttentionArgs(a, queries(unit), scratch_[size_t(worker)]), int(block),
                             states_ + (unit * kMaxSharedBlocks + block) * state);
  });
  pool_.Run(units, [&](int64_t unit, int worker) {
    AttendQueries(a, queries(unit), states_ + unit * kMaxSharedBlocks * state, scratch_[size_t(worker)]);
  });
}

void CpuBackend::Attention(const AttendArgs& a) {
  if (a.kv.qaq_state != nullptr) return AttendInWaves(a);
  AttendAll(a);
}

void CpuBackend::AttendAll(const AttendArgs& a) {
  const KvView& kv = a.kv;
  NIBBLE_CHECK(a.q.rank == 3 && a.q.dim == a.out.dim && a.q.dim[1] == a.heads, "Attention: q and out shapes");
  NIBBLE_CHECK(a.heads % kv.kv_heads == 0, "Attention: heads must be a multiple of kv_heads");
  NIBBLE_CHECK(a.q.stride[2] == 1 && a.q.stride[1] == kv.page.head_dim, "Attention: q");
  NIBBLE_CHECK(a.out.stride[2] == 1 && a.out.stride[1] == kv.page.head_dim, "Attention: out");
  CheckSegments(kv, a.q.dim[0], kv.kv_heads, static_cast<int>(a.q.dim[2]));
  const int group = a.heads / kv.kv_heads;
  NIBBLE_CHECK(group <= max_group_ && kv.page.head_dim <= max_head_dim_ && kv.page.tokens == kv::kPageTokens,
               "Attention: more than Reserve was told");
  for (const KvSegment& s : kv.segments) NIBBLE_CHECK(s.pages <= kMaxContextPages, "context too long");
  if (NeedsQuerySums(kv)) SumQueries(a);
  AttendDense(a);
  AttendSelected(a);
}

void CpuBackend::AttendDense(const AttendArgs& a) {
  const KvView& kv = a.kv;
  const int group = a.heads / kv.kv_heads;
  const auto is_dense = [&kv](const KvSegment& s) { return DenseRows(kv, s) > 0; };
  if (std::none_of(kv.segments.begin(), kv.segments.end(), is_dense)) return;
  if (SharesContext(a)) return AttendInBlocks(a);
  // One item a segment and KV head, so that a page is decoded once for all queries that share it. Only when
  // that leaves threads without work are the queries divided: by rows, then by query heads.
  const int64_t whole = int64_t(kv.segments.size()) * kv.kv_heads;
  const int64_t wanted = pool_.threads() == 1 ? 1 : (2 * pool_.threads() + whole - 1) / whole;
  const int64_t rows_each = (a.q.dim[0] + int64_t(kv.segments.size()) - 1) / int64_t(kv.segments.size());
  constexpr int64_t kMinRows = 8;
  const int64_t row_parts = std::clamp<int64_t>(rows_each / kMinRows, 1, wanted);
  const int64_t head_parts = whole >= pool_.threads() ? 1 : std::clamp<int64_t>(wanted / row_parts, 1, group);
  const int64_t parts = row_parts * head_parts;
  pool_.Run(whole * parts, [&](int64_t item, int worker) {
    const int64_t unit = whole - 1 - item / parts;  // late segments see more pages: longest first
    const KvSegment& s = kv.segments[size_t(unit / kv.kv_heads)];
    const int64_t row_part = item % parts / head_parts, head_part = item % head_parts;
    const int64_t rows = DenseRows(kv, s);
    const int row_begin = static_cast<int>(rows * row_part / row_parts);
    const int row_end = static_cast<int>(rows * (row_part + 1) / row_parts);
    const int first = static_cast<int>(group * head_part / head_parts);
    const int last = static_cast<int>(group * (head_part + 1) / head_parts);
    if (row_begin == row_end) return;
    AttendQueries(a, {s, static_cast<int>(unit % kv.kv_heads), row_begin, row_end, first, last - first},
                  nullptr, scratch_[size_t(worker)]);
  });
}

std::string CpuBackend::ExplainAttention(const AttentionRecipe& recipe) const {
  const Arithmetic& a = recipe.arithmetic;
  constexpr const char* kSmooth[] = {"not smoothed", "K smoothed", "Q and K smoothed"};
  std::vector<std::string> sealed;
  if (IsInteger(a.qk))
    sealed.push_back(fmt::format("{} QK in integers by {}, {}",
                                 a.qk == QkArith::kInt4Thread ? "INT4" : "INT8", kernels_.s8_dot_name,
                                 kSmooth[size_t(a.smooth)]));
  if (a.pv == PvArith::kInt8)
    sealed.push_back(fmt::format("INT8 PV in integers by {}", kernels_.s8_dot_name));
  if (a.pv == PvArith::kFp8) sealed.push_back("E4M3 PV in f32 with FP22 sums simulated");
  if (a.pv == PvArith::kFp8F16) sealed.push_back("E4M3 PV in f32 with f16 sums simulated");
  if (a.pv == PvArith::kF16) sealed.push_back("f16 PV in f32 with f16 sums simulated");
  std::string text = fmt::format("{}/{}", kernels_.isa, kernels_.attention_name(recipe.k, recipe.v));
  if (a.softmax != SoftmaxKind::kExact) text += "; softmax by SAS";
  if (!sealed.empty()) text += fmt::format("; sealed pages: {}", fmt::join(sealed, ", "));
  const std::string_view rows = SelectKernelName(recipe.select);
  if (!rows.empty()) text += fmt::format("; decode rows {}/{}", kernels_.isa, rows);
  return text;
}

}  // namespace nibble
