// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda_decode.h"

#include <algorithm>
#include <cstring>

#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kPagesStep = 32;  // by which a step's page tables grow

constexpr int kAlign = 16;  // of pages: FlashQ's end in a scale of four bytes and are not

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

DecodeEntries::~DecodeEntries() { cudaFree(workspace_); }

bool DecodeEntries::Takes(const AttentionRecipe& recipe, int heads, int kv_heads, int head_dim) {
  const Arithmetic& a = recipe.arithmetic;
  const bool bf16 = a.qk == QkArith::kBF16 && a.pv == PvArith::kBF16 && a.softmax == SoftmaxKind::kExact;
  const bool codec = recipe.k == kv::CodecId::kF16 || recipe.k == kv::CodecId::kBF16 ||
                     recipe.k == kv::CodecId::kInt8Token || recipe.k == kv::CodecId::kInt4Token;
  const kv::PageShape page{.head_dim = head_dim, .tokens = kv::kPageTokens};
  return bf16 && codec && recipe.k == recipe.v && recipe.tail == kv::Tail::kFloat &&
         kv::Get(recipe.k).page_bytes(page) % kAlign == 0 && head_dim % 16 == 0 && head_dim <= 256 &&
         heads / kv_heads <= 16;
}

void DecodeEntries::MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table) {
  planned_.assign(segments.begin(), segments.end());
  planned_table_.assign(page_table.begin(), page_table.end());
  Plan& p = plan_;
  p.open.clear(), p.lengths.clear(), p.scratch_lengths.clear(), p.row_begin.clear(), p.table.clear();
  p.max_pages = p.rows = 0, p.in_scratch = false;
  for (const KvSegment& s : segments) p.max_pages = std::max(p.max_pages, s.pages);
  // A recorded launch serves until its table is too narrow.
  p.max_pages = (p.max_pages + kPagesStep - 1) / kPagesStep * kPagesStep;
  for (const KvSegment& s : segments)
    for (int row = 0; row < s.rows; row += kRows) {
      const int rows = std::min(kRows, s.rows - row);
      const bool scratch = s.raw_slot < 0;
      p.rows = std::max(p.rows, rows);
      p.in_scratch |= scratch;
      p.open.push_back(scratch ? ~s.raw_slot : s.raw_slot);
      p.lengths.push_back(scratch ? 0 : s.position + row + rows);  // 0: passed over
      p.scratch_lengths.push_back(scratch ? s.position + row + rows : 0);
      p.row_begin.push_back(s.row + row);
      const auto first = page_table.begin() + s.table;
      p.table.insert(p.table.end(), first, first + s.pages);
      p.table.resize(p.lengths.size() * size_t(p.max_pages));
    }
  p.row_begin.push_back(segments.back().row + segments.back().rows);
}

void* DecodeEntries::Workspace(const cuda::DecodeArgs& args) {
  const int64_t bytes = cuda::DecodeWorkspaceBytes(args);
  if (bytes <= workspace_bytes_) return workspace_;
  CheckCuda(cudaFree(workspace_), "work memory of attention");  // waits for kernels that use it
  workspace_bytes_ = 2 * bytes;
  CheckCuda(cudaMalloc(&workspace_, size_t(workspace_bytes_)), "work memory of attention");
  CheckCuda(cudaMemsetAsync(workspace_, 0, size_t(workspace_bytes_), stream_), "work memory of attention");
  return workspace_;
}

void DecodeEntries::Prepare(std::span<const KvSegment> segments, std::span<const int32_t> page_table,
                            SendRing& ring) {
  if (SameBytes(segments, planned_) &&
      std::equal(page_table.begin(), page_table.end(), planned_table_.begin(), planned_table_.end()))
    return;
  MakePlan(segments, page_table);
  sent_ = {open_.Send(plan_.open, ring), lengths_.Send(plan_.lengths, ring),
           scratch_lengths_.Send(plan_.scratch_lengths, ring), row_begin_.Send(plan_.row_begin, ring),
           table_.Send(plan_.table, ring)};
}

std::vector<int64_t> DecodeEntries::Form() const {
  std::vector<int64_t> form = {int64_t(plan_.lengths.size()), plan_.max_pages, plan_.rows, plan_.in_scratch,
                               workspace_bytes_};
  for (const int32_t* p : {sent_.open, sent_.lengths, sent_.scratch_lengths, sent_.row_begin, sent_.table})
    form.push_back(reinterpret_cast<int64_t>(p));
  return form;
}

void DecodeEntries::Run(const Args& a) {
  const int64_t width = int64_t{a.heads} * a.kv.page.head_dim;
  cuda::DecodeArgs args{.q = a.q,
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
  args.workspace = Workspace(args);
  for (const bool scratch : {false, true}) {
    if (scratch && !plan_.in_scratch) continue;
    args.k = SideOf(a.kv, a.kv.k, scratch), args.v = SideOf(a.kv, a.kv.v, scratch);
    args.lengths = scratch ? sent_.scratch_lengths : sent_.lengths;
    CheckCuda(cuda::AttentionDecode(args, stream_));
  }
}

}  // namespace nibble
