// SPDX-License-Identifier: Apache-2.0
// Exact prefill attention in bf16: against the definition in double, from packed rows and from pages, with
// NaN behind the last keys; and its speed.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "bench/gpu/prefill_case.h"

namespace nibble::gpu {
namespace {

constexpr double kBf16Rate = 9e14;  // by WGMMA, measured
constexpr int kPage = 64;
constexpr uint16_t kNan = 0x7FC0;
// A row against its length: weights and outputs are bf16, each off by at most 2^-9, of which weights average
// out.
constexpr double kWorstRow = 5e-3;

// K or V of a problem as pages that lie in any order, NaN wherever nobody wrote.
struct Paged {
  std::vector<uint16_t> pool, open;
  std::vector<int32_t> table;  // [sequences, max_pages]
  int max_pages = 1;

  Paged(const PrefillCase& c, const PrefillBatch& b, const std::vector<uint16_t>& rows) {
    const int sequences = int(c.keys.size()), dim = c.head_dim;
    for (const int keys : c.keys) max_pages = std::max(max_pages, (keys + kPage - 1) / kPage);
    const size_t page_values = size_t(c.kv_heads * kPage * dim);
    pool.assign(size_t(sequences * max_pages) * page_values, kNan);
    open.assign(size_t(sequences) * page_values, kNan);
    for (int s = 0; s < sequences; ++s)
      for (int p = 0; p < max_pages; ++p) table.push_back((s * max_pages + p) * 7 % (sequences * max_pages));
    if (sequences * max_pages % 7 == 0)  // the order above would repeat pages
      for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(table.size() - 1 - i);
    for (int s = 0; s < sequences; ++s)
      for (int t = 0; t < c.keys[size_t(s)]; ++t)
        for (int h = 0; h < c.kv_heads; ++h)
          for (int d = 0; d < dim; ++d) {
            const bool last = t / kPage == (c.keys[size_t(s)] - 1) / kPage;
            const int page = last ? s : table[size_t(s * max_pages + t / kPage)];
            (last ? open : pool)[size_t(page) * page_values + size_t((h * kPage + t % kPage) * dim + d)] =
                rows[size_t((b.k_offsets[size_t(s)] + t) * c.kv_heads + h) * size_t(dim) + size_t(d)];
          }
  }
};

cuda::KvPages PagesOf(const PrefillCase& c, const Buffer<uint16_t>& pool, const Buffer<uint16_t>& open) {
  const int64_t head = int64_t{kPage} * c.head_dim * 2, page = head * c.kv_heads;
  return {
      pool.data(), open.data(), page, head, page, head, int64_t(pool.size()) * 2, int64_t(open.size()) * 2};
}

cuda::ExactAttentionArgs Args(const PrefillCase& c, const PrefillBatch& b, const Buffer<uint16_t>& q,
                              const Buffer<uint16_t>& k, const Buffer<uint16_t>& v,
                              const Buffer<uint16_t>& out) {
  const int64_t q_stride = int64_t{c.heads} * c.head_dim, k_stride = int64_t{c.kv_heads} * c.head_dim;
  return {.sequences = b.shape.sequences,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .q_tiles = b.shape.q_tiles,
          .q_offsets = b.shape.q_offsets,
          .k_offsets = b.shape.k_offsets,
          .q_tile_ends = b.shape.q_tile_ends,
          .causal = c.causal,
          .q = q.data(),
          .k = k.data(),
          .v = v.data(),
          .q_stride = q_stride,
          .k_stride = k_stride,
          .v_stride = k_stride,
          .q_rows = b.q_offsets.back(),
          .k_rows = b.k_offsets.back(),
          .out = out.data(),
          .out_stride = q_stride,
          .scale = 1 / std::sqrt(float(c.head_dim))};
}

// ln of the sum of exp(score) of every row and head.
std::vector<double> LogSums(const PrefillCase& c, const PrefillBatch& b, const std::vector<uint16_t>& q,
                            const std::vector<uint16_t>& k) {
  std::vector<double> lse(size_t(b.q_offsets.back() * c.heads), -INFINITY);
  const auto at = [&](const std::vector<uint16_t>& x, int row, int head, int heads) {
    return &x[size_t(row * heads + head) * size_t(c.head_dim)];
  };
  ForEachHead(c, [&](size_t s, int h) {
    for (int r = 0; r < c.queries[s]; ++r) {
      const int seen = c.causal ? c.keys[s] - c.queries[s] + r + 1 : c.keys[s];
      const uint16_t* x = at(q, b.q_offsets[s] + r, h, c.heads);
      double sum = 0;
      for (int t = 0; t < seen; ++t) {
        const uint16_t* y = at(k, b.k_offsets[s] + t, h / (c.heads / c.kv_heads), c.kv_heads);
        double dot = 0;
        for (int d = 0; d < c.head_dim; ++d) dot += double(Bf16ToFloat(x[d])) * double(Bf16ToFloat(y[d]));
        sum += std::exp(dot / std::sqrt(double(c.head_dim)));
      }
      if (seen > 0) lse[size_t((b.q_offsets[s] + r) * c.heads + h)] = std::log(sum);
    }
  });
  return lse;
}

void CheckCase(const PrefillCase& c, Checks* checks) {
  const std::string name = "prefill exact " + c.Name();
  if (!checks->Wanted(name)) return;
  PrefillBatch batch(c);
  const auto q = PrefillValues(size_t(batch.q_offsets.back()), c.heads, c.head_dim, 1, false),
             k = PrefillValues(size_t(batch.k_offsets.back()), c.kv_heads, c.head_dim, 2, c.outliers),
             v = PrefillValues(size_t(batch.k_offsets.back()), c.kv_heads, c.head_dim, 3, false);
  Buffer<uint16_t> dq(q), dk(k), dv(v), out(q.size());
  Buffer<float> lse(size_t(batch.q_offsets.back() * c.heads));
  cuda::ExactAttentionArgs args = Args(c, batch, dq, dk, dv, out);
  args.lse = lse.data();
  const auto run = [&] {
    Require(cuda::ExactAttention(args, nullptr));
    Require(cudaDeviceSynchronize(), name.c_str());
    return out.Host();
  };
  const std::vector<uint16_t> got = run();
  checks->Equal(name + " repeatable", got == run());
  const PrefillError error = ErrorOf(c, batch, {q, k, v}, got);
  if (c.queries[0] >= 1000)
    fmt::print("{}: cosine {:.6f}, worst row {:.4f}\n", name, error.cosine, error.worst_row);
  checks->AtMost(name + " worst row", error.worst_row, kWorstRow);
  checks->Compare(name + " lse", lse.Host(), LogSums(c, batch, q, k), 1e-5);
  const Paged pk(c, batch, k), pv(c, batch, v);
  const Buffer<uint16_t> k_pool(pk.pool), k_open(pk.open), v_pool(pv.pool), v_open(pv.open);
  const Buffer<int32_t> table(pk.table);
  args.k = args.v = nullptr;
  args.k_pages = PagesOf(c, k_pool, k_open), args.v_pages = PagesOf(c, v_pool, v_open);
  args.page_table = table.data(), args.max_pages = pk.max_pages;
  checks->Equal(name + " from pages", run() == got);
}

// What is wrong in one sequence's keys and values shows in its own rows and nowhere else; a wrong scale
// shows.
void CheckMistakes(Checks* checks) {
  const std::string name = "prefill exact NaN stays in its sequence";
  if (!checks->Wanted(name)) return;
  for (const int dim : {64, 128}) {
    const PrefillCase c{{150, 200}, {150, 200}, 2, 2, true, false, dim};
    PrefillBatch batch(c);
    const auto q = PrefillValues(350, 2, dim, 1, false), k = PrefillValues(350, 2, dim, 2, false),
               v = PrefillValues(350, 2, dim, 3, false);
    const auto run = [&](bool broken, float by) {
      auto bad_k = k, bad_v = v;
      for (size_t i = 0; broken && i < size_t(2 * dim); ++i)
        bad_k[size_t(150 * 2 * dim) + i] = bad_v[size_t(151 * 2 * dim) + i] = kNan;
      Buffer<uint16_t> dq(q), dk(bad_k), dv(bad_v), out(q.size());
      cuda::ExactAttentionArgs args = Args(c, batch, dq, dk, dv, out);
      args.scale *= by;
      Require(cuda::ExactAttention(args, nullptr));
      return out.Host();
    };
    const auto good = run(false, 1), broken = run(true, 1);
    const auto second = long(150 * 2 * dim);
    checks->Equal(name, std::equal(good.begin(), good.begin() + second, broken.begin()));
    checks->Equal(name + " and shows there",
                  std::all_of(broken.begin() + second, broken.end(),
                              [](uint16_t x) { return std::isnan(Bf16ToFloat(x)); }));
    checks->Equal(name + ": a wrong scale shows",
                  ErrorOf(c, batch, {q, k, v}, run(false, 1.05f)).worst_row > kWorstRow);
  }
}

}  // namespace

void CheckPrefillExact(Checks* checks) {
  CheckMistakes(checks);
  for (const int dim : {64, 128}) {
    const std::vector<PrefillCase> cases = {
        {{128}, {128}, 1, 1, false, false, dim},
        {{128}, {256}, 2, 1, false, false, dim},
        {{128}, {128}, 1, 1, true, false, dim},
        {{300}, {300}, 4, 2, true, false, dim},
        {{1, 130, 77}, {1, 130, 500}, 4, 4, true, false, dim},
        {{64, 5}, {1000, 129}, 8, 1, true, false, dim},
        {{333}, {333}, 2, 2, true, true, dim},
        {{1024}, {1024}, 8, 2, false, false, dim},
        {{1500}, {1500}, 2, 1, true, true, dim},
        {{4, 100}, {64, 128}, 2, 2, true, false, dim},
    };
    for (const PrefillCase& c : cases) CheckCase(c, checks);
    for (uint32_t i = 0; i < 100; ++i) {  // every remainder of the tiles turns up
      const int keys = 1 + int(Mix(i, 71) % 700), queries = 1 + int(Mix(i, 72) % uint32_t(keys));
      const int other = 1 + int(Mix(i, 73) % 300), group = 1 << (Mix(i, 74) % 3);
      CheckCase({{queries, other}, {keys, other}, 2 * group, 2, i % 3 != 0, false, dim}, checks);
    }
  }
}

void TimePrefillExact(Times* times) {
  for (const int dim : {128, 64})
    for (const bool causal : {false, true})
      for (const int length : {1024, 2048, 4096, 8192, 16384}) {
        const PrefillTiming t(length, dim, causal);
        if (!times->Wanted("prefill exact " + t.Shape())) continue;
        const PrefillCase c{{}, {}, kPrefillHeads, kPrefillHeads, causal, false, dim};
        const cuda::ExactAttentionArgs args = Args(c, t.batch, t.q, t.k, t.v, t.out);
        const auto attend = [&](int, cudaStream_t s) { Require(cuda::ExactAttention(args, s)); };
        times->AddOps("exact bf16", t.Shape(), Seconds(3, attend), t.Operations(), kBf16Rate);
      }
}

}  // namespace nibble::gpu
