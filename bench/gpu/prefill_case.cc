// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu/prefill_case.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "base/half.h"
#include "kernels/ref/dense.h"
#include "quant/kv/fp8.h"

namespace nibble::gpu {
namespace {

ref::Matrix Head(const std::vector<uint16_t>& x, int row, int rows, int head, int heads, int dim) {
  ref::Matrix m(rows, dim);
  for (int r = 0; r < rows; ++r)
    for (int d = 0; d < dim; ++d)
      m[r][d] =
          double(Bf16ToFloat(x[(size_t(row + r) * size_t(heads) + size_t(head)) * size_t(dim) + size_t(d)]));
  return m;
}

ref::Matrix Wanted(const PrefillCase& c, const ref::Matrix& q, const ref::Matrix& k, const ref::Matrix& v,
                   const ref::SageSpec* spec) {
  const double scale = 1 / std::sqrt(double(c.head_dim));
  const ref::Mask mask = c.causal ? ref::Mask::kCausal : ref::Mask::kFull;
  if (spec == nullptr) return ref::DenseAttention(q, k, v, scale, mask).out;
  const std::vector<double> center = ref::RowMean(ref::View(k).Slice(0, std::min(64, k.rows)));
  ref::SageSpec filled = *spec;
  filled.scale = scale, filled.mask = mask, filled.k_center = &center;
  return ref::SageAttention(q, k, v, filled).out;
}

// Rows of one head in E4M3, each scaled so that its greatest value is the format's.
ref::Matrix InE4m3(ref::Matrix x) {
  for (int r = 0; r < x.rows; ++r) {
    double most = 0;
    for (int d = 0; d < x.dim; ++d) most = std::max(most, std::abs(x[r][d]));
    for (int d = 0; d < x.dim && most > 0; ++d)
      x[r][d] = double(kv::E4m3ToFloat(kv::FloatToE4m3(float(x[r][d] * (448 / most))))) * (most / 448);
  }
  return x;
}

// What heads of one sequence give beside what is wanted of them.
struct Outputs {
  ref::Matrix want, got;
};
PrefillError Compare(const PrefillCase& c, const std::function<Outputs(size_t, int)>& of) {
  struct Sums {
    double dot = 0, exact = 0, ours = 0, worst = 0;
  };
  std::vector<Sums> all(c.queries.size() * size_t(c.heads));
  ForEachHead(c, [&](size_t s, int h) {
    const auto [want, got] = of(s, h);
    Sums& sums = all[s * size_t(c.heads) + size_t(h)];
    for (int r = 0; r < c.queries[s]; ++r) {
      double gap = 0, size = 0;
      for (int d = 0; d < c.head_dim; ++d) {
        const double w = want[r][d], g = got[r][d];
        gap += (g - w) * (g - w);
        size += w * w;
        sums.dot += g * w;
        sums.ours += g * g;
      }
      sums.exact += size;
      const double row = std::sqrt(gap / std::max(size, 1e-30));
      if (!(row <= sums.worst)) sums.worst = row;
    }
  });
  Sums total;
  for (const Sums& x : all) {
    total.dot += x.dot, total.exact += x.exact, total.ours += x.ours;
    if (!(x.worst <= total.worst)) total.worst = x.worst;
  }
  return {total.dot / std::sqrt(total.exact * total.ours), total.worst};
}

// Queries, keys and values of one head.
struct HeadInputs {
  ref::Matrix q, k, v;
};
HeadInputs InputsOf(const PrefillCase& c, const PrefillBatch& batch, const PrefillInputs& x, size_t s,
                    int h) {
  const int kv = h / (c.heads / c.kv_heads), dim = c.head_dim;
  return {Head(x.q, batch.q_offsets[s], c.queries[s], h, c.heads, dim),
          Head(x.k, batch.k_offsets[s], c.keys[s], kv, c.kv_heads, dim),
          Head(x.v, batch.k_offsets[s], c.keys[s], kv, c.kv_heads, dim)};
}

}  // namespace

std::vector<int32_t> PrefillBatch::Flatten(PrefillBatch& b, const PrefillCase& c) {
  int q = 0, k = 0;
  for (size_t s = 0; s < c.queries.size(); ++s) {
    b.q_offsets.push_back(b.q_offsets.back() + c.queries[s]);
    b.k_offsets.push_back(b.k_offsets.back() + c.keys[s]);
    b.q_ends.push_back(q += (c.queries[s] + 127) / 128);
    b.k_ends.push_back(k += (c.keys[s] + 127) / 128);
    b.delta_tiles += (c.queries[s] + 127) / 128 * ((c.keys[s] + 127) / 128);
  }
  std::vector<int32_t> all = b.q_offsets;
  for (const auto* part : {&b.k_offsets, &b.q_ends, &b.k_ends})
    all.insert(all.end(), part->begin(), part->end());
  return all;
}

PrefillBatch::PrefillBatch(const PrefillCase& c) : device(Flatten(*this, c)) {
  const int n = int(c.queries.size());
  const int32_t* at = device.data();
  shape = {n,  c.heads,    c.kv_heads,     c.head_dim,     q_ends.back(), k_ends.back(),
           at, at + n + 1, at + 2 * n + 2, at + 3 * n + 2, c.causal};
}

std::vector<uint16_t> PrefillValues(size_t rows, int heads, int head_dim, uint32_t seed, bool outliers) {
  std::vector<uint16_t> x(rows * size_t(heads * head_dim));
  for (size_t i = 0; i < x.size(); ++i) {
    const int channel = int(i % size_t(head_dim));
    float value = Normal(uint32_t(i), seed);
    if (outliers && channel % 37 == 5) value = value * 3 + 30;  // what smoothing is for
    x[i] = FloatToBf16(value);
  }
  return x;
}

PrefillError ErrorOf(const PrefillCase& c, const PrefillBatch& batch, const PrefillInputs& inputs,
                     const std::vector<uint16_t>& got, const ref::SageSpec* spec) {
  return Compare(c, [&](size_t s, int h) -> Outputs {
    const auto [q, k, v] = InputsOf(c, batch, inputs, s, h);
    return {Wanted(c, q, k, v, spec), Head(got, batch.q_offsets[s], c.queries[s], h, c.heads, c.head_dim)};
  });
}

PrefillError ErrorOfFp8Scores(const PrefillCase& c, const PrefillBatch& batch, const PrefillInputs& inputs) {
  return Compare(c, [&](size_t s, int h) -> Outputs {
    const auto [q, k, v] = InputsOf(c, batch, inputs, s, h);
    return {Wanted(c, q, k, v, nullptr), Wanted(c, InE4m3(q), InE4m3(k), v, nullptr)};
  });
}

void ForEachHead(const PrefillCase& c, const std::function<void(size_t sequence, int head)>& run) {
  std::vector<std::thread> threads;
  for (size_t s = 0; s < c.queries.size(); ++s)
    for (int h = 0; h < c.heads; ++h) threads.emplace_back([&run, s, h] { run(s, h); });
  for (std::thread& t : threads) t.join();
}

PrefillTiming::PrefillTiming(int n, int dim, bool mask)
    : length(n),
      head_dim(dim),
      causal(mask),
      batch({std::vector<int>(size_t(kPrefillTokens / n), n), std::vector<int>(size_t(kPrefillTokens / n), n),
             kPrefillHeads, kPrefillHeads, mask, false, dim}),
      q(size_t{kPrefillTokens} * kPrefillHeads * size_t(dim)),
      k(q.size()),
      v(q.size()),
      out(q.size()) {
  uint32_t seed = 0;
  for (const Buffer<uint16_t>* x : {&q, &k, &v}) FillNormal(x->data(), x->size() * 2, true, seed += 2);
}

std::string PrefillTiming::Shape() const {
  return fmt::format("{}x{} {}/{} heads d{} {}", kPrefillTokens / length, length, kPrefillHeads,
                     kPrefillHeads, head_dim, causal ? "causal" : "full");
}

double PrefillTiming::Operations() const {
  return 4.0 * kPrefillTokens * length * kPrefillHeads * head_dim / (causal ? 2 : 1);
}

}  // namespace nibble::gpu
