// SPDX-License-Identifier: Apache-2.0
// What the tests of token selection share: the cache of one KV head with its side records, made by the
// kernels of one ISA, and a query row over it.
#pragma once
#include <cstring>
#include <vector>

#include "base/half.h"
#include "float_kernels.h"
#include "quant/kv/registry.h"

namespace nibble::test {

struct SelectShape {
  int head_dim, group;
  int64_t position, first = 0;
  kv::CodecId k = kv::CodecId::kF32, v = kv::CodecId::kF32;
  KeyCopy copy = KeyCopy::kF16;
};

inline float RoundTo(DType type, float x) {
  if (type == DType::kF16) return HalfToFloat(FloatToHalf(x));
  return type == DType::kBF16 ? Bf16ToFloat(FloatToBf16(x)) : x;
}

inline std::vector<std::byte> ToRaw(DType type, const float* x, size_t n) {
  std::vector<std::byte> raw(n * size_t(SizeOf(type)));
  for (size_t i = 0; i < n; ++i) {
    const uint16_t u = type == DType::kF16 ? FloatToHalf(x[i]) : FloatToBf16(x[i]);
    if (type == DType::kF32) {
      std::memcpy(&raw[4 * i], &x[i], 4);
    } else {
      std::memcpy(&raw[2 * i], &u, 2);
    }
  }
  return raw;
}

// Rows of K and V [position + 1, head_dim] as a cache of pages, records and the open page, whose rows to come
// are NaN.
struct SelectProblem {
  SelectProblem(const SelectShape& shape, const cpu::CpuKernels& isa, std::vector<float> q_values,
                std::vector<float> k_rows, std::vector<float> v_rows)
      : s(shape), page{shape.head_dim, kv::kPageTokens}, q(std::move(q_values)), out(q.size()) {
    scratch.assign(size_t(SelectScratchFloats(s.position - s.first + 1, s.group, page)) + 64, NAN);
    Seal(kv::Get(s.k), k_rows, &k_pages, &k_raw), Seal(kv::Get(s.v), v_rows, &v_pages, &v_raw);
    MakeRecords(isa, k_rows);
    for (const auto& p : k_pages) k_pointers.push_back(p.data());
    for (const auto& p : v_pages) v_pointers.push_back(p.data());
    for (const auto& p : records) record_pointers.push_back(p.data());
  }
  static SelectProblem Random(const SelectShape& s, const cpu::CpuKernels& isa, uint32_t seed,
                              float q_deviation = 1.5f) {
    const size_t values = size_t(s.position + 1) * size_t(s.head_dim);
    std::vector<float> q = Normal(size_t(s.group) * size_t(s.head_dim), seed, q_deviation);
    for (size_t i = 0; i < q.size(); i += 5) q[i] *= 3;  // queries are heavy tailed
    return {s, isa, std::move(q), Normal(values, seed + 1), Normal(values, seed + 2)};
  }

  SelectRow Row() {
    const auto bytes = [&](kv::CodecId id) {
      const kv::CodecInfo& c = kv::Get(id);
      const int64_t shared = c.shared_bytes(page);
      return TokenBytes{(c.page_bytes(page) - shared) / page.tokens, shared,
                        int64_t{page.head_dim} * SizeOf(c.raw)};
    };
    counters = {};
    float* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / 4;
    return {.q = q.data(),
            .out = out.data(),
            .k_pages = k_pointers.data(),
            .v_pages = v_pointers.data(),
            .records = record_pointers.data(),
            .k_raw = k_raw.data(),
            .v_raw = v_raw.data(),
            .scratch = aligned,
            .first = s.first,
            .position = s.position,
            .group = s.group,
            .page = page,
            .k_codec = s.k,
            .v_codec = s.v,
            .k_bytes = bytes(s.k),
            .v_bytes = bytes(s.v),
            .scale = 1 / std::sqrt(float(s.head_dim)),
            .counters = &counters};
  }
  SparqArgs Sparq(const SparqParams& p) {
    return {.row = Row(), .sparq = p, .v_sum = 0, .k_copy = page.head_dim * 4};
  }
  Error ErrorAgainst(const std::vector<double>& want) const {
    return Compare(out.data(), int64_t(want.size()), want.data(), 1, int(want.size()));
  }
  // Attention over all that the row sees, by the dense kernel.
  std::vector<float> Dense(const cpu::CpuKernels& isa) {
    std::vector<float> dense(q.size());
    Guarded<float> work(size_t(AttentionScratchFloats(1, s.group, page)));
    AttentionArgs a{};
    a.q = q.data(), a.out = dense.data();
    a.k_pages = k_pointers.data(), a.v_pages = v_pointers.data();
    a.k_raw = k_raw.data(), a.v_raw = v_raw.data(), a.scratch = work.data();
    a.q_stride = a.out_stride = int64_t(q.size());
    a.position = s.position;
    a.window = s.first > 0 ? s.position - s.first + 1 : 0;
    a.rows = 1, a.group = s.group, a.pages = a.list_len = int(k_pages.size());
    a.page = page, a.k_codec = s.k, a.v_codec = s.v;
    a.scale = 1 / std::sqrt(float(s.head_dim));
    isa.attention(a);
    return dense;
  }

  SelectShape s;
  kv::PageShape page;
  std::vector<float> q, out, scratch;
  std::vector<std::vector<std::byte>> k_pages, v_pages, records;
  std::vector<const std::byte*> k_pointers, v_pointers, record_pointers;
  std::vector<std::byte> k_raw, v_raw;
  AttentionCounters counters{};

 private:
  void Seal(const kv::CodecInfo& codec, std::vector<float>& rows, std::vector<std::vector<std::byte>>* pages,
            std::vector<std::byte>* raw) {
    for (float& x : rows) x = RoundTo(codec.raw, x);
    const auto dim = size_t(s.head_dim), values = dim * kv::kPageTokens;
    const auto count = size_t(s.position / kv::kPageTokens);
    for (size_t p = 0; p < count; ++p) {
      pages->emplace_back(size_t(codec.page_bytes(page)));
      codec.encode_page(page, rows.data() + p * values, pages->back().data());
    }
    std::vector<float> open(values, NAN);
    std::copy(rows.begin() + int64_t(count * values), rows.end(), open.begin());
    *raw = ToRaw(codec.raw, open.data(), values);
  }
  void MakeRecords(const cpu::CpuKernels& isa, const std::vector<float>& k_rows) {
    std::vector<float> work(size_t(s.head_dim) * kv::kPageTokens);
    for (size_t p = 0; p < k_pages.size(); ++p) {
      records.emplace_back(size_t(s.head_dim) * (4 + 2 * kv::kPageTokens + 8), std::byte{0xff});
      const std::vector<std::byte> raw =
          ToRaw(kv::Get(s.k).raw, k_rows.data() + p * work.size(), work.size());
      isa.value_sum({.page = v_pages[p].data(),
                     .before = p > 0 ? reinterpret_cast<const float*>(records[p - 1].data()) : nullptr,
                     .sum = reinterpret_cast<float*>(records[p].data()),
                     .scratch = work.data(),
                     .codec = s.v,
                     .shape = page});
      isa.key_copy({.raw = raw.data(),
                    .copy = records[p].data() + s.head_dim * 4,
                    .scratch = work.data(),
                    .raw_type = kv::Get(s.k).raw,
                    .format = s.copy,
                    .shape = page});
    }
  }
};

}  // namespace nibble::test
