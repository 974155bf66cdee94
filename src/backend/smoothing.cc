// SPDX-License-Identifier: Apache-2.0
#include "backend/smoothing.h"

#include "backend/kv_view.h"
#include "base/half.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

Smooth SmoothOf(const KvView& kv) {
  return kv.recipe != nullptr && IsInteger(kv.recipe->arithmetic.qk) ? kv.recipe->arithmetic.smooth
                                                                     : Smooth::kNone;
}

float* In(std::byte* record, SideLayout::Section section) {
  return reinterpret_cast<float*>(record + section.offset);
}

float KeyElement(const KvView& kv, const std::byte* raw, int token, int channel) {
  const int64_t index = int64_t{token} * kv.page.head_dim + channel;
  const DType type = kv::Get(kv.k_codec).raw;
  if (TailOf(kv) == kv::Tail::kInt8) return kv::Int8Tail::Value(kv.page, raw, token, channel);
  if (type == DType::kF32) {
    float f;
    memcpy(&f, raw + 4 * index, 4);
    return f;
  }
  uint16_t u;
  memcpy(&u, raw + 2 * index, 2);
  return type == DType::kF16 ? HalfToFloat(u) : Bf16ToFloat(u);
}

}  // namespace

bool NeedsKeyMean(const KvView& kv) {
  return SmoothOf(kv) != Smooth::kNone && (kv.plan == nullptr || kv.plan->k_mean.empty());
}

bool NeedsQuerySums(const KvView& kv) {
  return SmoothOf(kv) == Smooth::kQK && (kv.plan == nullptr || kv.plan->q_mean.empty());
}

void WriteKeyMean(const KvView& kv, int32_t seq, int head, const std::byte* raw) {
  float* mean = In(OpenRecord(kv, seq, head), kv.side.k_mean);
  const int dim = kv.page.head_dim;
  for (int d = 0; d < dim; ++d) {
    float sum = 0;
    for (int t = 0; t < kv.page.tokens; ++t) sum += KeyElement(kv, raw, t, d);
    mean[d] = sum / float(kv.page.tokens);
  }
}

void AddQueries(const AttendArgs& a, const KvSegment& s, int head) {
  const KvView& kv = a.kv;
  const int count = a.heads / kv.kv_heads * kv.page.head_dim;  // of one row
  float* sum = In(OpenRecord(kv, s.seq, head), kv.side.q_sum);
  if (s.position % kv.page.tokens == 0)
    for (int i = 0; i < count; ++i) sum[i] = 0;
  for (int row = s.row; row < s.row + s.rows; ++row) {
    const float* q = a.q.as<const float>() + row * a.q.stride[0] + int64_t{head} * count;
    for (int i = 0; i < count; ++i) sum[i] += q[i];
  }
  if (s.seal_page >= 0)
    memcpy(In(PageRecord(kv, s.seal_page, head), kv.side.q_sum), sum, size_t(count) * sizeof(float));
}

Means MeansOf(const KvView& kv, const KvSegment& s, int head, int first, int group, float* work) {
  const Smooth smooth = SmoothOf(kv);
  if (smooth == Smooth::kNone || s.pages == 0) return {};  // the means concern sealed pages
  const int dim = kv.page.head_dim;
  Means means;
  means.k = NeedsKeyMean(kv) ? In(OpenRecord(kv, s.seq, head), kv.side.k_mean)
                             : kv.plan->k_mean.data() + int64_t{head} * dim;
  if (smooth != Smooth::kQK) return means;
  means.q = work;
  if (NeedsQuerySums(kv)) {
    const int32_t before = kv.page_table[size_t(s.table + s.pages - 1)];
    const float* sum = In(PageRecord(kv, before, head), kv.side.q_sum) + int64_t{first} * dim;
    for (int i = 0; i < group * dim; ++i) work[i] = sum[i] / float(kv.page.tokens);
  } else {
    const int64_t heads_each = int64_t(kv.plan->q_mean.size()) / (int64_t{kv.kv_heads} * dim);
    means.q = kv.plan->q_mean.data() + (head * heads_each + first) * dim;
  }
  return means;
}

}  // namespace nibble
