// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda_decode.h"

#include <algorithm>
#include <cstring>

#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kPagesStep = 32;  // by which a step's page tables grow

bool SameBytes(std::span<const KvSegment> a, std::span<const KvSegment> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

cuda::DecodeSide SideOf(const cuda::PagedKv& kv, const cuda::PagedSide& side, bool scratch) {
  return {.codec = side.codec,
          .pool = side.pool,
          .page_stride = side.page_stride,
          .head_stride = side.head_stride,
          .open = scratch ? side.scratch : side.tail,
          .open_stride = side.raw_bytes * kv.kv_heads,
          .open_head_stride = side.raw_bytes};
}

}  // namespace

DecodeEntries::~DecodeEntries() { cudaFree(workspace_), cudaFree(chosen_); }

bool DecodeEntries::Takes(const AttentionRecipe& recipe, int heads, int kv_heads, int head_dim) {
  const Arithmetic& a = recipe.arithmetic;
  const bool bf16 = a.qk == QkArith::kBF16 && a.pv == PvArith::kBF16 && a.softmax == SoftmaxKind::kExact;
  const bool codec = recipe.k == kv::CodecId::kF16 || recipe.k == kv::CodecId::kBF16 ||
                     recipe.k == kv::CodecId::kInt8Token || recipe.k == kv::CodecId::kInt4Token ||
                     recipe.k == kv::CodecId::kFlashQ4 || recipe.k == kv::CodecId::kFlashQ2 ||
                     recipe.k == kv::CodecId::kFlashQ2Search || recipe.k == kv::CodecId::kQaq;
  const bool selects = recipe.select.kind != SelectKind::kAll;
  return bf16 && codec && recipe.k == recipe.v && recipe.tail == kv::Tail::kFloat && head_dim % 16 == 0 &&
         head_dim <= 256 && heads / kv_heads <= 16 &&
         (!selects ||
          (recipe.select.kind == SelectKind::kSparq && TakesSparq(recipe.select.sparq, head_dim)));
}

// An adaptive r or k and the rarer means are computed in f32.
bool DecodeEntries::TakesSparq(const SparqParams& p, int head_dim) {
  return p.r <= head_dim && p.k <= 8192 && p.local <= p.k && p.rho == 0 && p.eps == 0 &&
         p.mean != Reallocation::kUnselected && p.mean != Reallocation::kBlocks;
}

void DecodeEntries::MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table,
                             Rows which) {
  planned_.assign(segments.begin(), segments.end());
  planned_table_.assign(page_table.begin(), page_table.end());
  planned_rows_ = which;
  Plan& p = plan_;
  p.open.clear(), p.lengths.clear(), p.scratch_lengths.clear(), p.row_begin.clear(), p.table.clear();
  p.max_pages = p.rows = 0, p.in_scratch = p.in_tail = false;
  for (const KvSegment& s : segments) p.max_pages = std::max(p.max_pages, s.pages);
  // A recorded launch serves until its table is too narrow.
  p.max_pages = (p.max_pages + kPagesStep - 1) / kPagesStep * kPagesStep;
  int next = segments.front().row;  // of the entry that comes
  for (const KvSegment& s : segments) {
    // Rows that are not of the plan are entries without a length: row_begin has no gaps.
    if (next != s.row) {
      p.open.push_back(0), p.lengths.push_back(0), p.scratch_lengths.push_back(0),
          p.row_begin.push_back(next);
      p.table.resize(p.lengths.size() * size_t(p.max_pages));
    }
    next = s.row + s.rows;
    const int first = which == Rows::kOther ? s.dense_rows : 0,
              last = which == Rows::kDense ? s.dense_rows : s.rows;
    for (int row = 0, rows = 0; row < s.rows; row += rows) {
      const int end = row < first ? first : row < last ? last : s.rows;
      rows = std::min(kRows, end - row);
      const bool scratch = s.raw_slot < 0, mine = row >= first && row < last;
      const int32_t length = mine ? s.position + row + rows : 0;  // 0: passed over
      p.rows = std::max(p.rows, rows);
      p.in_scratch |= mine && scratch, p.in_tail |= mine && !scratch;
      p.open.push_back(scratch ? ~s.raw_slot : s.raw_slot);
      p.lengths.push_back(scratch ? 0 : length);
      p.scratch_lengths.push_back(scratch ? length : 0);
      p.row_begin.push_back(s.row + row);
      const auto pages = page_table.begin() + s.table;
      p.table.insert(p.table.end(), pages, pages + s.pages);
      p.table.resize(p.lengths.size() * size_t(p.max_pages));
    }
  }
  p.row_begin.push_back(segments.back().row + segments.back().rows);
}

void* DecodeEntries::Workspace(int64_t bytes) {
  if (bytes <= workspace_bytes_) return workspace_;
  CheckCuda(cudaFree(workspace_), "work memory of attention");  // waits for kernels that use it
  workspace_bytes_ = 2 * bytes;
  CheckCuda(cudaMalloc(&workspace_, size_t(workspace_bytes_)), "work memory of attention");
  CheckCuda(cudaMemsetAsync(workspace_, 0, size_t(workspace_bytes_), stream_), "work memory of attention");
  return workspace_;
}

void DecodeEntries::Prepare(std::span<const KvSegment> segments, std::span<const int32_t> page_table,
                            Rows which, SendRing& ring) {
  const bool dense =
      std::any_of(segments.begin(), segments.end(), [](const KvSegment& s) { return s.dense_rows > 0; });
  if (which == Rows::kOther && !dense) which = Rows::kAll;
  if (which == planned_rows_ && SameBytes(segments, planned_) &&
      std::equal(page_table.begin(), page_table.end(), planned_table_.begin(), planned_table_.end()))
    return;
  MakePlan(segments, page_table, which);
  sent_ = {open_.Send(plan_.open, ring), lengths_.Send(plan_.lengths, ring),
           scratch_lengths_.Send(plan_.scratch_lengths, ring), row_begin_.Send(plan_.row_begin, ring),
           table_.Send(plan_.table, ring)};
}

std::vector<int64_t> DecodeEntries::Form() const {
  std::vector<int64_t> form = {int64_t(plan_.lengths.size()),
                               plan_.max_pages,
                               plan_.rows,
                               plan_.in_scratch,
                               workspace_bytes_,
                               chosen_bytes_};
  for (const int32_t* p : {sent_.open, sent_.lengths, sent_.scratch_lengths, sent_.row_begin, sent_.table})
    form.push_back(reinterpret_cast<int64_t>(p));
  return form;
}

cuda::DecodeArgs DecodeEntries::ArgsOf(const Args& a) const {
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  return {.q = a.q,
          .out = a.out,
          .lse = nullptr,
          .page_table = sent_.table,
          .open_index = sent_.open,
          .row_begin = sent_.row_begin,
          .q_stride = width,
          .out_stride = width,
          .batch = int(plan_.lengths.size()),
          .max_pages = plan_.max_pages,
          .rows = plan_.rows,
          .heads = a.heads,
          .kv_heads = a.kv.kv_heads,
          .head_dim = a.kv.page.head_dim,
          .window = a.window,
          .scale = a.scale,
          .early_start = true};
}

void DecodeEntries::Place(const Args& a, bool scratch, cuda::DecodeArgs* args) const {
  args->k = SideOf(a.kv, a.kv.k, scratch), args->v = SideOf(a.kv, a.kv.v, scratch);
  args->lengths = scratch ? sent_.scratch_lengths : sent_.lengths;
}

void DecodeEntries::Run(const Args& a) {
  cuda::DecodeArgs args = ArgsOf(a);
  args.workspace = Workspace(cuda::DecodeWorkspaceBytes(args));
  for (const bool scratch : {false, true}) {
    if (scratch ? !plan_.in_scratch : !plan_.in_tail) continue;
    Place(a, scratch, &args);
    CheckCuda(cuda::AttentionDecode(args, stream_));
  }
}

void DecodeEntries::RunSparq(const Args& a, cuda::CountChosenArgs count) {
  cuda::SparqDecodeArgs& call = count.call;
  call.cache = ArgsOf(a);
  call.cache.workspace = Workspace(cuda::SparqWorkspaceBytes(call));
  call.chosen_words = 2 * (plan_.max_pages + 1);
  const int64_t bytes = int64_t{plan_.row_begin.back()} * a.kv.kv_heads * call.chosen_words * 4;
  if (bytes > chosen_bytes_) {
    CheckCuda(cudaFree(chosen_), "work memory of attention");
    chosen_bytes_ = 2 * bytes;
    CheckCuda(cudaMalloc(reinterpret_cast<void**>(&chosen_), size_t(chosen_bytes_)),
              "work memory of attention");
  }
  call.chosen = chosen_;
  for (const bool scratch : {false, true}) {
    if (scratch ? !plan_.in_scratch : !plan_.in_tail) continue;
    Place(a, scratch, &call.cache);
    CheckCuda(cuda::SparqDecode(call, stream_));
    CheckCuda(cuda::CountChosen(count, stream_));
  }
}

}  // namespace nibble
