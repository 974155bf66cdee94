// SPDX-License-Identifier: Apache-2.0
#include "quant/kv/head_mix.h"

#include <algorithm>
#include <cmath>

namespace nibble::kv {

int TwoBitHeads(float share, int kv_heads) {
  return static_cast<int>(std::ceil(double(share) * kv_heads - 0.5));
}

int64_t RowBytes(const CodecInfo& codec, PageShape page, int kv_heads, int two_bit) {
  return int64_t{kv_heads - two_bit} * codec.pool_bytes(page) +
         int64_t{two_bit} * Get(codec.two_bit).pool_bytes(page);
}

double HeadPriority(PageShape page, const float* rows) {
  double gaps[kMaxHeadDim], least = INFINITY, greatest = -INFINITY, mean = 0, variance = 0;
  for (int d = 0; d < page.head_dim; ++d) {
    double lo = INFINITY, hi = -INFINITY;
    for (int t = 0; t < page.tokens; ++t) {
      const auto x = double(rows[t * page.head_dim + d]);
      if (!std::isfinite(x)) return INFINITY;
      lo = std::min(lo, x), hi = std::max(hi, x);
    }
    gaps[d] = hi - lo;
    least = std::min(least, lo), greatest = std::max(greatest, hi);
  }
  for (int d = 0; d < page.head_dim; ++d) mean += gaps[d];
  mean /= page.head_dim;
  for (int d = 0; d < page.head_dim; ++d) variance += (gaps[d] - mean) * (gaps[d] - mean) / page.head_dim;
  return (greatest - least) * std::sqrt(variance);
}

void PlaceByPriority(std::span<HeadPlace> heads, int two_bit) {
  for (size_t h = 0; h < heads.size(); ++h) {
    int lower = 0;  // heads that come before it on the way to 2 bits
    for (size_t i = 0; i < heads.size(); ++i)
      lower += heads[i].priority < heads[h].priority || (heads[i].priority == heads[h].priority && i > h);
    heads[h].two_bit = lower < two_bit ? 1 : 0;
  }
  Place(heads);
}

void Place(std::span<HeadPlace> heads) {
  int32_t before = 0;
  for (HeadPlace& head : heads) {
    head.two_bit_before = before;
    before += head.two_bit;
  }
}

}  // namespace nibble::kv
