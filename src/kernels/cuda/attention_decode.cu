// SPDX-License-Identifier: Apache-2.0
// Checks of arguments, the plan of a launch, and the choice of its instance.
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/decode_instances.cuh"
#include "kernels/cuda/decode_qaq.cuh"

namespace nibble::cuda {
namespace {

constexpr int64_t kCountsAlign = 256;

decode::Plan MakePlan(const DecodeArgs& a) {
  const int queries = a.rows * (a.heads / a.kv_heads);
  decode::Plan plan{};
  plan.queries = queries > 8 && a.head_dim <= 128 ? 16 : 8;
  plan.groups = (queries + plan.queries - 1) / plan.queries;
  plan.chunks = a.max_pages / a.chunk_pages + 1;
  plan.scale = a.scale * 1.4426950408889634f;
  return plan;
}

int64_t CountsBytes(const DecodeArgs& a, const decode::Plan& plan) {
  const int64_t bytes = int64_t{a.batch} * a.kv_heads * plan.groups * 4;
  return (bytes + kCountsAlign - 1) / kCountsAlign * kCountsAlign;
}

bool Aligned(const DecodeSide& s) {
  return (s.page_stride | s.head_stride | s.open_stride | s.open_head_stride) % 16 == 0 &&
         (reinterpret_cast<uintptr_t>(s.pool) | reinterpret_cast<uintptr_t>(s.open)) % 16 == 0;
}

const char* BrokenRule(const DecodeArgs& a) {
  if (a.batch < 1 || a.batch > 65535) return "attention_decode: batch must be 1 .. 65535";
  if (a.rows < 1 || a.rows > 8) return "attention_decode: rows must be 1 .. 8";
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0 || a.heads / a.kv_heads < 1 || a.heads / a.kv_heads > 16)
    return "attention_decode: heads must be 1 .. 16 times kv_heads";
  if (a.head_dim < 16 || a.head_dim > 256 || a.head_dim % 16 != 0)
    return "attention_decode: head_dim must be a multiple of 16 up to 256";
  if (a.chunk_pages < 1 || a.chunk_pages > 32) return "attention_decode: chunk_pages must be 1 .. 32";
  if (a.max_pages < 0 || a.max_pages / a.chunk_pages >= decode::kMostChunks)
    return "attention_decode: max_pages must be below 400 times chunk_pages";
  if (a.window < 0) return "attention_decode: window must not be negative";
  if (!Aligned(a.k) || !Aligned(a.v)) return "attention_decode: pages must start at multiples of 16 bytes";
  if ((a.q_stride | a.out_stride) % 8 != 0)
    return "attention_decode: row strides must be multiples of 8 elements";
  if (a.k.codec != a.v.codec) return "attention_decode: K and V must have one codec";
  return nullptr;
}

}  // namespace

int64_t DecodeWorkspaceBytes(const DecodeArgs& a) {
  const decode::Plan plan = MakePlan(a);
  return CountsBytes(a, plan) +
         int64_t{a.batch} * a.kv_heads * plan.groups * plan.chunks * plan.queries * (a.head_dim + 2) * 4;
}

Launch AttentionDecode(const DecodeArgs& a, Stream stream) {
  if (const char* rule = BrokenRule(a); rule != nullptr) return Refused(rule);
  decode::Plan plan = MakePlan(a);
  plan.counts = static_cast<int32_t*>(a.workspace);
  plan.partials = reinterpret_cast<float*>(static_cast<std::byte*>(a.workspace) + CountsBytes(a, plan));
  switch (a.k.codec) {
    case kv::CodecId::kF16:
      return decode::LaunchF16(a, plan, stream);
    case kv::CodecId::kBF16:
      return decode::LaunchBF16(a, plan, stream);
    case kv::CodecId::kInt8Token:
      return decode::LaunchInt8Token(a, plan, stream);
    case kv::CodecId::kInt4Token:
      return decode::LaunchInt4Token(a, plan, stream);
    case kv::CodecId::kFlashQ4:
      return decode::LaunchFlashQ4(a, plan, stream);
    case kv::CodecId::kFlashQ2:
    case kv::CodecId::kFlashQ2Search:
      return decode::LaunchFlashQ2(a, plan, stream);
    case kv::CodecId::kQaq:
      return decode::LaunchQaq(a, plan, stream);
    default:
      return Refused(
          "attention_decode: codec must be f16, bf16, int8-token, int4-token, flashq4, flashq2, "
          "flashq2-search or qaq");
  }
}

}  // namespace nibble::cuda
