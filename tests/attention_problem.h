// SPDX-License-Identifier: Apache-2.0
// What the tests of attention share: a cache of one KV head, the arguments of a call, and all they point to.
#pragma once
#include <functional>

#include "base/half.h"
#include "float_kernels.h"
#include "kernels/ref/attention.h"
#include "meets_integers.h"
#include "quant/kv/registry.h"

namespace nibble::test {

struct Shape {
  int head_dim, group;
  int64_t position;
  int rows;
  int64_t window;
  kv::CodecId k, v;
};

inline float RoundTo(DType type, float x) {
  if (type == DType::kF16) return HalfToFloat(FloatToHalf(x));
  return type == DType::kBF16 ? Bf16ToFloat(FloatToBf16(x)) : x;
}

using Change = std::function<void(std::vector<float>& rows)>;  // of random rows [tokens, head_dim]

// Sealed pages and the raw page of one KV head for K or V, whose tokens from `filled` on are NaN.
struct Cache {
  std::vector<std::vector<std::byte>> pages;
  std::vector<const std::byte*> pointers;
  std::vector<std::byte> raw;
};
inline Cache MakeCache(const kv::CodecInfo& codec, kv::PageShape s, int pages, int filled, uint32_t seed,
                       const Change& change = nullptr) {
  Cache c;
  std::vector<float> rows = Normal(size_t(s.tokens) * size_t(s.head_dim), seed);
  for (int p = 0; p < pages; ++p) {
    FillNormal(rows.data(), rows.size(), seed + uint32_t(p) + 1);
    if (change) change(rows);
    for (float& x : rows) x = RoundTo(codec.raw, x);
    c.pages.emplace_back(size_t(codec.page_bytes(s)));
    codec.encode_page(s, rows.data(), c.pages.back().data());
    c.pointers.push_back(c.pages.back().data());
  }
  FillNormal(rows.data(), rows.size(), seed);
  if (change) change(rows);
  c.raw.assign(rows.size() * size_t(SizeOf(codec.raw)), std::byte{0xff});
  for (size_t i = 0; i < size_t(filled) * size_t(s.head_dim); ++i) {
    const uint16_t u = codec.raw == DType::kF16 ? FloatToHalf(rows[i]) : FloatToBf16(rows[i]);
    if (codec.raw == DType::kF32) {
      std::memcpy(&c.raw[4 * i], &rows[i], 4);
    } else {
      std::memcpy(&c.raw[2 * i], &u, 2);
    }
  }
  return c;
}

// The arguments of one call and all that they point to.
struct Problem {
  explicit Problem(const Shape& s, const Change& change_k = nullptr, const Arithmetic& arithmetic = {})
      : page{s.head_dim, kv::kPageTokens},
        k(MakeCache(kv::Get(s.k), page, int(s.position / 64), int(s.position % 64) + s.rows, 100, change_k)),
        v(MakeCache(kv::Get(s.v), page, int(s.position / 64), int(s.position % 64) + s.rows, 200)),
        q(Normal(size_t(s.rows * s.group * s.head_dim), 300, 2)),
        k_mean(size_t(s.head_dim)),
        q_mean(Normal(size_t(s.group * s.head_dim), 400, 0.5f)),
        scratch(size_t(AttentionScratchFloats(s.rows, s.group, page))),
        out(q.size()) {
    for (size_t d = 0; d < k_mean.size(); ++d) k_mean[d] = d % 11 == 3 ? 6.1f : 0.2f * float(d % 5) - 0.05f;
    args.q = q.data();
    args.out = out.data();
    args.k_pages = k.pointers.data();
    args.v_pages = v.pointers.data();
    args.k_raw = k.raw.data();
    args.v_raw = v.raw.data();
    args.scratch = scratch.data();
    args.q_stride = args.out_stride = int64_t{s.group} * s.head_dim;
    args.position = s.position;
    args.window = s.window;
    args.rows = s.rows;
    args.group = s.group;
    args.pages = int(s.position / 64);
    args.page = page;
    args.k_codec = s.k;
    args.v_codec = s.v;
    args.scale = 1 / std::sqrt(float(s.head_dim));
    args.arithmetic = arithmetic;  // with the means that its smoothing takes
    args.k_mean = arithmetic.smooth != Smooth::kNone ? k_mean.data() : nullptr;
    args.q_mean = arithmetic.smooth == Smooth::kQK ? q_mean.data() : nullptr;
  }
  Problem(const Problem&) = delete;  // args points into it
  Problem& operator=(const Problem&) = delete;

  std::vector<double> Reference(AttentionCounters* counters = nullptr,
                                ref::CodePages codes = ref::CodePages::kIntegers) const {
    std::vector<double> want(out.size());
    ref::Attention(args, want.data(), counters, codes);
    return want;
  }
  Error ErrorAgainst(const std::vector<double>& want) const {
    return Compare(out.data(), args.out_stride, want.data(), args.rows, int(args.out_stride));
  }
  // Rows [begin, begin + count) as a call of their own, into `to`. The raw tokens that are then still to come
  // are NaN.
  void RunSlice(const cpu::CpuKernels& isa, int begin, int count, float* to) const {
    AttentionArgs a = args;
    const auto poison = [&](std::vector<std::byte> raw) {
      const size_t used = raw.size() / 64 * size_t(a.position % 64 + begin + count);
      std::fill(raw.begin() + int64_t(used), raw.end(), std::byte{0xff});
      return raw;
    };
    const std::vector<std::byte> k_raw = poison(k.raw), v_raw = poison(v.raw);
    Guarded<float> work(size_t(AttentionScratchFloats(count, a.group, a.page)));  // of NaN
    a.k_raw = k_raw.data();
    a.v_raw = v_raw.data();
    a.scratch = work.data();
    a.q += begin * a.q_stride;
    a.out = to + begin * a.out_stride;
    a.position += begin;
    a.rows = count;
    isa.attention(a);
  }

  kv::PageShape page;
  Cache k, v;
  std::vector<float> q, k_mean, q_mean;
  Guarded<float> scratch, out;
  AttentionArgs args{};
};

}  // namespace nibble::test
