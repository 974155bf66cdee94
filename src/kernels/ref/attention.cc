// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/attention.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "quant/kv/registry.h"

namespace nibble::ref {
namespace {

double RawElement(DType type, const std::byte* raw, int64_t index) {
  if (type == DType::kF32) {
    float f;
    std::memcpy(&f, raw + 4 * index, 4);
    return double(f);
  }
  uint16_t u;
  std::memcpy(&u, raw + 2 * index, 2);
  return double(type == DType::kF16 ? HalfToFloat(u) : Bf16ToFloat(u));
}

void AppendPageRow(const kv::CodecInfo& codec, kv::PageShape s, const std::byte* page, int token,
                   std::vector<double>& rows) {
  for (int d = 0; d < s.head_dim; d += 8) {
    float out8[8];
    codec.decode8(s, page, token, d, out8);
    for (const float f : out8) rows.push_back(double(f));
  }
}

struct Visible {
  std::vector<double> k, v;  // [tokens, head_dim] that a query row sees, in the order of the tiles
};

Visible Gather(const AttentionArgs& a, int row) {
  Visible visible;
  const int64_t position = a.position + row, own = a.position - a.position % a.page.tokens;
  const int64_t first = a.window > 0 ? position - a.window + 1 : 0;
  const kv::CodecInfo &k_codec = kv::Get(a.k_codec), &v_codec = kv::Get(a.v_codec);
  for (int i = 0; i < (a.page_list != nullptr ? a.list_len : a.pages); ++i) {
    const int page = a.page_list != nullptr ? a.page_list[i] : i;
    for (int t = 0; t < a.page.tokens; ++t) {
      if (int64_t{page} * a.page.tokens + t < first) continue;
      AppendPageRow(k_codec, a.page, a.k_pages[page], t, visible.k);
      AppendPageRow(v_codec, a.page, a.v_pages[page], t, visible.v);
    }
  }
  for (int64_t p = own; p <= position; ++p) {
    if (p < first) continue;
    for (int d = 0; d < a.page.head_dim; ++d) {
      visible.k.push_back(RawElement(k_codec.raw, a.k_raw, (p - own) * a.page.head_dim + d));
      visible.v.push_back(RawElement(v_codec.raw, a.v_raw, (p - own) * a.page.head_dim + d));
    }
  }
  return visible;
}

void AttendOne(const Visible& visible, const float* q, double scale, int head_dim, double* out) {
  const size_t tokens = visible.k.size() / size_t(head_dim);
  std::vector<double> score(tokens);
  double max = -INFINITY, sum = 0;
  for (size_t t = 0; t < tokens; ++t) {
    for (int d = 0; d < head_dim; ++d) score[t] += double(q[d]) * visible.k[t * size_t(head_dim) + size_t(d)];
    score[t] *= scale;
    max = std::fmax(max, score[t]);
  }
  for (double& s : score) sum += s = std::exp(s - max);
  for (int d = 0; d < head_dim; ++d) {
    out[d] = 0;
    for (size_t t = 0; t < tokens; ++t)
      out[d] += score[t] / sum * visible.v[t * size_t(head_dim) + size_t(d)];
  }
}

}  // namespace

void Attention(const AttentionArgs& a, double* out) {
  for (int row = 0; row < a.rows; ++row) {
    const Visible visible = Gather(a, row);
    for (int g = 0; g < a.group; ++g) {
      const float* q = a.q + row * a.q_stride + int64_t{g} * a.page.head_dim;
      AttendOne(visible, q, double(a.scale), a.page.head_dim,
                out + (int64_t{row} * a.group + g) * a.page.head_dim);
    }
  }
}

}  // namespace nibble::ref
