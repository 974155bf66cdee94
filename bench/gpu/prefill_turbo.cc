// SPDX-License-Identifier: Apache-2.0
// Prefill attention: TurboAttention over FlashQ pages against its definition in double, and its speed with
// and without the pass that makes codes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "bench/gpu/prefill_case.h"
#include "kernels/cuda/attention_turbo.h"
#include "kernels/cuda/rows.h"
#include "kernels/ref/attention.h"
#include "quant/kv/registry.h"
#include "recipe/attention_recipe.h"

namespace nibble::gpu {
namespace {

constexpr double kInt8Rate = 1.9e15;  // by WGMMA, measured
constexpr int kPage = kv::kPageTokens, kTile = 128;

// K or V: sealed pages, one after the other, and own pages in bf16 and as the codec keeps open ones.
struct Side {
  std::vector<std::byte> pool, raw;
  std::vector<uint16_t> own;
};

// Sequences as the backend plans them: of each the pages before that of its last row, then those that have
// rows.
struct TurboProblem {
  PrefillCase c;
  kv::PageShape page;
  const kv::CodecInfo& codec;
  std::vector<int32_t> q_offsets{0}, k_offsets{0}, tile_ends;
  std::vector<cuda::PageBases> bases;
  std::vector<cuda::UnpackedPage> pages;
  std::vector<float> q;
  Side k, v;

  // distinct: pages of K and V that are made, the others repeat them; and q is left to the device.
  TurboProblem(const PrefillCase& shape, kv::CodecId id, int distinct = 0)
      : c(shape), page{c.head_dim, kPage}, codec(kv::Get(id)) {
    int tiles = 0;
    for (size_t s = 0; s < c.keys.size(); ++s) {
      const int start = c.keys[s] - c.queries[s], older = (c.keys[s] - 1) / kPage, first = int(pages.size());
      q_offsets.push_back(q_offsets.back() + c.queries[s]);
      k_offsets.push_back(k_offsets.back() + c.keys[s]);
      tile_ends.push_back(tiles += (c.keys[s] + kTile - 1) / kTile - start / kTile);
      bases.push_back({first, first + older - start / kPage});
      for (int p = 0; p < older; ++p) pages.push_back({0, first + p, -1});
      for (int p = start / kPage; p <= older; ++p)
        pages.push_back({0, 0, std::min(kPage, c.keys[s] - p * kPage)});
    }
    for (size_t i = 0; i < QueryValues() && distinct == 0; ++i)
      q.push_back(Bf16ToFloat(FloatToBf16(1.5f * Normal(uint32_t(i), 5))));
    Fill(k, 1, distinct), Fill(v, 2, distinct);
  }

  size_t QueryValues() const { return size_t(q_offsets.back()) * size_t(c.heads * c.head_dim); }
  size_t Values() const { return size_t(kPage * c.head_dim); }
  size_t PageBytes() const { return size_t(codec.pool_bytes(page)); }
  size_t At(int index, int head) const { return size_t(index * c.kv_heads + head); }

  // The rows of page p of a sequence: whole as a sealed page sees them, as far as there are any as an own
  // page.
  std::vector<float> Rows(size_t s, int p, int head, uint32_t seed) const {
    std::vector<float> rows(Values());
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto token = uint32_t(k_offsets[s] + p * kPage) + uint32_t(i) / uint32_t(c.head_dim);
      const uint32_t channel = uint32_t(i) % uint32_t(c.head_dim);
      const float spread = c.outliers && channel % 37 == 5 ? 4.0f : 1.0f;
      rows[i] =
          Bf16ToFloat(FloatToBf16(spread * Normal(token * 4096 + uint32_t(head) * 256 + channel, seed)));
    }
    return rows;
  }

  void Fill(Side& side, uint32_t seed, int distinct) {
    side.pool.assign(pages.size() * size_t(c.kv_heads) * PageBytes(), std::byte{0xFF});
    side.own.assign(pages.size() * size_t(c.kv_heads) * Values(), 0);
    side.raw.assign(distinct > 0 ? 0 : side.own.size() * 2, std::byte{0});
    struct Made {
      std::vector<float> rows;
      std::vector<uint16_t> own;
      std::vector<std::byte> sealed;
    };
    std::vector<Made> all;
    for (size_t s = 0, n = 0; s < c.keys.size(); ++s) {
      const int older = (c.keys[s] - 1) / kPage, start = c.keys[s] - c.queries[s];
      for (int p = 0; p <= older; ++p)
        for (int h = 0; h < c.kv_heads; ++h, ++n) {
          if (distinct == 0 || n < size_t(distinct)) {
            all.push_back({Rows(s, p, h, seed), {}, std::vector<std::byte>(PageBytes())});
            Made& m = all.back();
            codec.encode_page(page, m.rows.data(), m.sealed.data());
            for (const float x : m.rows) m.own.push_back(FloatToBf16(x));
          }
          const Made& m = all[n % all.size()];
          if (p < older)
            std::copy(m.sealed.begin(), m.sealed.end(), &side.pool[At(bases[s].older + p, h) * PageBytes()]);
          if (p < start / kPage) continue;
          const size_t at = At(bases[s].own + p, h) * Values(),
                       filled = size_t(std::min(kPage, c.keys[s] - p * kPage) * c.head_dim);
          std::copy_n(m.own.begin(), filled, &side.own[at]);
          for (size_t i = 0; i < filled && distinct == 0; ++i) {
            const uint16_t raw = codec.raw == DType::kF16 ? FloatToHalf(m.rows[i]) : FloatToBf16(m.rows[i]);
            std::memcpy(&side.raw[(at + i) * 2], &raw, 2);
          }
        }
    }
  }

  // Of a row: the definition's output.
  void Reference(size_t s, int head, const Arithmetic& arithmetic, std::vector<double>& out) const {
    const int kv_head = head / (c.heads / c.kv_heads), older = (c.keys[s] - 1) / kPage, dim = c.head_dim;
    const int start = c.keys[s] - c.queries[s];
    std::vector<const std::byte*> k_pages, v_pages;
    for (int p = 0; p < older; ++p) {
      k_pages.push_back(&k.pool[At(bases[s].older + p, kv_head) * PageBytes()]);
      v_pages.push_back(&v.pool[At(bases[s].older + p, kv_head) * PageBytes()]);
    }
    for (int p = start / kPage; p <= older; ++p) {
      const int first = std::max(start, p * kPage), last = std::min(c.keys[s], (p + 1) * kPage);
      AttentionArgs a{};
      const size_t row = size_t(q_offsets[s] + first - start) * size_t(c.heads) + size_t(head);
      a.q = &q[row * size_t(dim)], a.q_stride = int64_t{c.heads} * dim;
      a.k_pages = k_pages.data(), a.v_pages = v_pages.data();
      a.k_raw = &k.raw[At(bases[s].own + p, kv_head) * Values() * 2];
      a.v_raw = &v.raw[At(bases[s].own + p, kv_head) * Values() * 2];
      a.position = first, a.rows = last - first, a.group = 1, a.pages = p;
      a.page = page, a.k_codec = a.v_codec = codec.id;
      a.scale = 1 / std::sqrt(float(dim)), a.arithmetic = arithmetic;
      std::vector<double> rows(size_t((last - first) * dim));
      ref::Attention(a, rows.data());
      for (int r = 0; r < last - first; ++r)
        std::copy_n(&rows[size_t(r * dim)], dim, &out[(row + size_t(r * c.heads)) * size_t(dim)]);
    }
  }
};

// The same on the device, and both launches.
struct Turbo {
  explicit Turbo(const TurboProblem& p)
      : q_offsets(p.q_offsets),
        k_offsets(p.k_offsets),
        tile_ends(p.tile_ends),
        bases(p.bases),
        pages(p.pages),
        q(p.QueryValues()),
        q16(p.QueryValues()),
        own_k(p.k.own),
        own_v(p.v.own),
        out(p.QueryValues()),
        k_pool(p.k.pool),
        v_pool(p.v.pool),
        codes(Bytes(p)) {
    if (p.q.empty()) {
      const int k = p.c.heads * p.c.head_dim;
      FillNormal(q16.data(), q16.size() * 2, true, 5);
      Require(cuda::WidenBf16(
          {.x = q16.data(), .to = q.data(), .to_stride = k, .rows = p.q_offsets.back(), .k = k}, nullptr));
    } else {
      std::vector<uint16_t> rounded;
      for (const float x : p.q) rounded.push_back(FloatToBf16(x));
      q.Set(p.q), q16.Set(rounded);
    }
    const int64_t head = int64_t(p.PageBytes());
    const auto side = [&](const Buffer<std::byte>& pool) {
      cuda::PagedSide s{};
      s.codec = s.two_bit = p.codec.id, s.raw = p.codec.raw, s.pool = pool.data();
      s.head_stride = head, s.page_stride = head * p.c.kv_heads;
      return s;
    };
    kv.k = side(k_pool), kv.v = side(v_pool), kv.kv_heads = p.c.kv_heads, kv.page = p.page;
    plan = {p.c.heads,        p.c.kv_heads,     p.c.head_dim,     p.tile_ends.back(), int(p.pages.size()),
            q_offsets.data(), k_offsets.data(), tile_ends.data(), bases.data()};
    size_t bytes = 0;
    tiles = TilesOf(p, codes.data(), &bytes);
    width = int64_t{p.c.heads} * p.c.head_dim;
    scale = 1 / std::sqrt(float(p.c.head_dim));
  }

  static cuda::TurboTiles TilesOf(const TurboProblem& p, void* base, size_t* bytes) {
    return cuda::TurboTilesAt(p.c.heads, p.c.kv_heads, p.c.head_dim, p.tile_ends.back(), int(p.pages.size()),
                              base, bytes);
  }
  static size_t Bytes(const TurboProblem& p) {
    size_t bytes = 0;
    TilesOf(p, nullptr, &bytes);
    return bytes;
  }
  void MakeCodes(cudaStream_t stream) const {
    Require(cuda::TurboCodes({plan, kv, pages.data(), q.data(), width, scale, tiles}, stream));
  }
  void Attend(const Arithmetic& arithmetic, cudaStream_t stream) const {
    Require(cuda::TurboAttention(
        {plan, tiles, q16.data(), own_k.data(), own_v.data(), width, int(int64_t(q.size()) / width),
         out.data(), width, scale, PolynomialOf(arithmetic), int(arithmetic.sas.threshold)},
        stream));
  }

  Buffer<int32_t> q_offsets, k_offsets, tile_ends;
  Buffer<cuda::PageBases> bases;
  Buffer<cuda::UnpackedPage> pages;
  Buffer<float> q;
  Buffer<uint16_t> q16, own_k, own_v, out;
  Buffer<std::byte> k_pool, v_pool;
  Buffer<uint8_t> codes;
  cuda::PagedKv kv{};
  cuda::TurboPlan plan{};
  cuda::TurboTiles tiles{};
  int64_t width = 0;
  float scale = 0;
};

Arithmetic ArithmeticOf(const char* recipe) { return ParseRecipe(recipe, DType::kBF16)->arithmetic; }

// Distances relative to lengths: of all rows together, and the greatest of a row.
struct Distance {
  double all = 0, worst = 0;
};
Distance DistanceOf(const std::vector<uint16_t>& got, const std::vector<double>& want, int dim) {
  double gap = 0, size = 0;
  Distance d;
  for (size_t row = 0; row < want.size(); row += size_t(dim)) {
    double g = 0, s = 0;
    for (size_t i = row; i < row + size_t(dim); ++i) {
      const double x = Bf16ToFloat(got[i]) - want[i];
      g += x * x, s += want[i] * want[i];
    }
    const double of_row = std::sqrt(g / std::max(s, 1e-30));
    if (!(of_row <= d.worst)) d.worst = of_row;
    gap += g, size += s;
  }
  d.all = std::sqrt(gap / size);
  return d;
}

void CheckCase(const PrefillCase& c, kv::CodecId codec, const char* recipe, Checks* checks) {
  const std::string name = fmt::format("prefill turbo {} '{}' {}", kv::Get(codec).name, recipe, c.Name());
  if (!checks->Wanted(name)) return;
  const TurboProblem problem(c, codec);
  const Arithmetic arithmetic = ArithmeticOf(recipe);
  const Turbo turbo(problem);
  const auto run = [&] {
    turbo.MakeCodes(nullptr);
    turbo.Attend(arithmetic, nullptr);
    Require(cudaDeviceSynchronize(), name.c_str());
    return turbo.out.Host();
  };
  const std::vector<uint16_t> got = run();
  checks->Equal(name + " repeatable", got == run());
  std::vector<double> want(problem.q.size());
  ForEachHead(c, [&](size_t s, int head) { problem.Reference(s, head, arithmetic, want); });
  const Distance d = DistanceOf(got, want, c.head_dim);
  if (c.queries[0] >= 300) fmt::print("{}: {:.5f}, worst row {:.4f}\n", name, d.all, d.worst);
  checks->AtMost(name, d.all, 0.01);
  // A score at the threshold may fall to its other side: all of a weight, which is e^threshold or less.
  checks->AtMost(name + " worst row", d.worst, 0.02 + std::exp(arithmetic.sas.threshold));
  // What would not be seen otherwise: rows that are another's.
  std::vector<double> shifted(want.begin() + c.head_dim, want.end());
  shifted.insert(shifted.end(), want.begin(), want.begin() + c.head_dim);
  if (got.size() > size_t(c.head_dim))
    checks->AtMost(name + " is far from other rows", 0.3, DistanceOf(got, shifted, c.head_dim).all);
}

// NaN in a query, or in a sealed page of K or V, shows in the rows that read it and nowhere else.
void CheckNan(int dim, Checks* checks) {
  const std::string name = fmt::format("prefill turbo NaN stays in its rows, d{}", dim);
  if (!checks->Wanted(name)) return;
  const PrefillCase c{{200, 150}, {200, 150}, 2, 2, true, false, dim};
  TurboProblem problem(c, kv::CodecId::kFlashQ4);
  const Arithmetic arithmetic = ArithmeticOf("turbo");
  const auto run = [&] {
    const Turbo turbo(problem);
    turbo.MakeCodes(nullptr);
    turbo.Attend(arithmetic, nullptr);
    return turbo.out.Host();
  };
  const std::vector<uint16_t> good = run();
  const TurboProblem kept = problem;
  const size_t width = size_t(2 * dim);
  const auto expect = [&](const char* of, size_t first, size_t last, int head) {
    const std::vector<uint16_t> got = run();
    bool right = true;
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = i / width;
      const bool broken = row >= first && row < last && (head < 0 || int(i % width) / dim == head);
      right &= broken ? std::isnan(Bf16ToFloat(got[i])) : got[i] == good[i];
    }
    checks->Equal(fmt::format("{}, of {}", name, of), right);
  };
  std::fill_n(problem.q.begin() + 70 * int64_t(width), width, NAN);
  expect("Q", 70, 71, -1);
  problem.q = kept.q;
  for (const bool is_v : {false, true}) {
    Side& side = is_v ? problem.v : problem.k;
    std::vector<float> rows = problem.Rows(0, 1, 1, 7);
    rows[5] = NAN;
    problem.codec.encode_page(problem.page, rows.data(), &side.pool[problem.At(1, 1) * problem.PageBytes()]);
    expect(is_v ? "V" : "K", 128, 200, 1);
    side.pool = (is_v ? kept.v : kept.k).pool;
  }
}

void TimeTurbo(Times* times, int length, int dim) {
  const PrefillCase c{std::vector<int>(size_t(kPrefillTokens / length), length),
                      std::vector<int>(size_t(kPrefillTokens / length), length),
                      kPrefillHeads,
                      kPrefillHeads,
                      true,
                      false,
                      dim};
  const std::string shape = fmt::format("{}x{} {}/{} heads d{} causal", kPrefillTokens / length, length,
                                        kPrefillHeads, kPrefillHeads, dim);
  if (!times->Wanted("prefill turbo " + shape)) return;
  const TurboProblem problem(c, kv::CodecId::kFlashQ4, 512);
  const Arithmetic arithmetic = ArithmeticOf("turbo");
  const Turbo turbo(problem);
  const double operations = 2.0 * kPrefillTokens * length * kPrefillHeads * dim;
  const auto codes = [&](int, cudaStream_t s) { turbo.MakeCodes(s); };
  const auto attend = [&](int, cudaStream_t s) { turbo.Attend(arithmetic, s); };
  const double bytes = double(turbo.q.size()) * (5 + 2) + 2 * double(problem.k.pool.size());
  times->Add("turbo codes", shape, Seconds(3, codes), bytes / kReadBandwidth, "4.64 TB/s");
  times->AddOps("turbo kernel", shape, Seconds(3, attend), operations, kInt8Rate);
  const auto both = [&](int i, cudaStream_t s) {
    codes(i, s);
    attend(i, s);
  };
  times->AddOps("turbo codes and kernel", shape, Seconds(3, both), operations, kInt8Rate);
}

}  // namespace

void CheckPrefillTurbo(Checks* checks) {
  for (const int dim : {64, 128}) {
    CheckNan(dim, checks);
    const std::vector<PrefillCase> cases = {
        {{1}, {1}, 1, 1, true, false, dim},
        {{64}, {64}, 1, 1, true, false, dim},
        {{65}, {65}, 2, 1, true, false, dim},
        {{128}, {128}, 2, 2, true, false, dim},
        {{300}, {300}, 4, 2, true, false, dim},
        {{1, 130, 77}, {1, 130, 500}, 4, 4, true, false, dim},
        {{64, 5, 33}, {1000, 129, 97}, 8, 1, true, false, dim},
        {{333}, {333}, 2, 2, true, true, dim},
        {{1024}, {1024}, 8, 2, true, false, dim},
        {{700}, {1500}, 2, 1, true, true, dim},
    };
    for (const PrefillCase& c : cases) CheckCase(c, kv::CodecId::kFlashQ4, "turbo", checks);
    CheckCase(cases[4], kv::CodecId::kFlashQ2, "turbo", checks);
    for (const char* recipe : {"turbo softmax=sas:threshold=-3", "turbo softmax=sas:cubic=endpoint"})
      CheckCase(cases[5], kv::CodecId::kFlashQ4, recipe, checks);
    for (uint32_t i = 0; i < 100; ++i) {  // every remainder of the tiles turns up
      const int keys = 1 + int(Mix(i, 71) % 600), queries = 1 + int(Mix(i, 72) % uint32_t(keys));
      const int other = 1 + int(Mix(i, 73) % 300), group = 1 << (Mix(i, 74) % 4);
      CheckCase({{queries, other}, {keys, other}, 2 * group, 2, true, false, dim}, kv::CodecId::kFlashQ4,
                "turbo", checks);
    }
  }
}

void TimePrefillTurbo(Times* times) {
  for (const int dim : {128, 64})
    for (const int length : {1024, 2048, 4096, 8192, 16384}) TimeTurbo(times, length, dim);
}

}  // namespace nibble::gpu
