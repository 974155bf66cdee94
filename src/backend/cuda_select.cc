// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: rows that select the tokens they read.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "backend/kv_view.h"
#include "base/check.h"

namespace nibble {
namespace {

TokenBytes BytesOf(const kv::CodecInfo& codec, kv::Tail tail, kv::PageShape page) {
  const int64_t shared = codec.shared_bytes(page), all = codec.page_bytes(page);
  return {(all - shared + page.tokens - 1) / page.tokens, shared, kv::TailRowBytes(tail, codec.raw, page)};
}

}  // namespace

Status CudaBackend::ReserveSelection(int64_t tokens, int heads, int kv_heads, int) {
  NIBBLE_CHECK(tokens > 0 && kv_heads > 0 && heads % kv_heads == 0, "ReserveSelection: shape");
  const int64_t most = std::max(tokens, select_tokens_);
  const auto bytes = size_t(cuda::SelectWorkBytes(most, heads / kv_heads));
  if (bytes > select_work_.bytes) {
    NIBBLE_ASSIGN(const Buffer work, Alloc(bytes));
    Free(select_work_);
    select_work_ = work;
  }
  select_tokens_ = most;
  return {};
}

// On the device. Kept: layers are few, and most have the recipe's own.
const SparqParams* CudaBackend::SparqOfHeads(const KvView& kv) {
  if (kv.recipe->select.kind != SelectKind::kSparq) return nullptr;
  std::vector<SparqParams> params;
  for (int head = 0; head < kv.kv_heads; ++head) params.push_back(SparqOfHead(*kv.recipe, kv.plan, head));
  const auto known =
      std::find_if(sparq_.begin(), sparq_.end(), [&params](const auto& p) { return p.first == params; });
  if (known != sparq_.end()) return reinterpret_cast<const SparqParams*>(known->second.data);
  const size_t bytes = params.size() * sizeof(SparqParams);
  const auto buffer = Alloc(bytes);
  NIBBLE_CHECK(buffer.ok(), "no memory for the parameters of heads");
  Upload(params.data(), buffer->data, bytes);
  sparq_.emplace_back(std::move(params), *buffer);
  return reinterpret_cast<const SparqParams*>(buffer->data);
}

void CudaBackend::AttendBySparq(const AttendArgs& a, const DecodeEntries::Args& args) {
  const KvView& kv = a.kv;
  const SideLayout& side = kv.side;
  selected_->Prepare(kv.segments, kv.page_table, DecodeEntries::Rows::kOther, *ring_);
  selected_->RunSparq(args, {.call = {.records = args.kv.side_pool,
                                      .record_stride = int64_t{side.bytes} * kv.kv_heads,
                                      .record_head_stride = side.bytes,
                                      .v_sum = side.v_sum.offset,
                                      .k_copy = side.k_copy.offset,
                                      .sparq = SparqOfHead(*kv.recipe, kv.plan, 0)},
                             .k_bytes = BytesOf(kv::Get(args.kv.k.codec), TailOf(kv), kv.page),
                             .v_bytes = BytesOf(kv::Get(args.kv.v.codec), TailOf(kv), kv.page),
                             .counters = &device_counters_->select});
}

void CudaBackend::AttendSelected(const AttendArgs& a, const cuda::PagedKv& kv) {
  const AttentionRecipe& recipe = *a.kv.recipe;
  for (const KvSegment& s : a.kv.segments)
    NIBBLE_CHECK(s.position + s.rows <= select_tokens_, "Attention: more than ReserveSelection was told");
  const SideLayout& side = a.kv.side;
  CheckCuda(cuda::SelectAttention({.kv = kv,
                                   .q = a.q.as<const float>(),
                                   .out = a.out.as<float>(),
                                   .q_stride = a.q.stride[0],
                                   .out_stride = a.out.stride[0],
                                   .rows = int(a.q.dim[0]),
                                   .heads = a.heads,
                                   .scale = a.scale,
                                   .window = a.window,
                                   .kind = recipe.select.kind,
                                   .keep = recipe.select.window,
                                   .h2o = recipe.select.h2o,
                                   .sparq = SparqOfHeads(a.kv),
                                   .v_sum = side.v_sum.offset,
                                   .k_copy = side.k_copy.offset,
                                   .h2o_weights = side.h2o.offset,
                                   .k_bytes = BytesOf(kv::Get(kv.k.codec), TailOf(a.kv), kv.page),
                                   .v_bytes = BytesOf(kv::Get(kv.v.codec), TailOf(a.kv), kv.page),
                                   .work = select_work_.data,
                                   .tokens = select_tokens_,
                                   .counters = &device_counters_->select},
                                  stream_));
}

}  // namespace nibble
