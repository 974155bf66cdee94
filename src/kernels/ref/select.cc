// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/half.h"
#include "quant/kv/registry.h"

namespace nibble::ref {
namespace {

using Rows = std::vector<std::vector<double>>;

float RawElement(DType type, const std::byte* p) {
  if (type == DType::kF16) return HalfToFloat(kv::LoadU16(p));
  if (type == DType::kBF16) return Bf16ToFloat(kv::LoadU16(p));
  float f;
  std::memcpy(&f, p, 4);
  return f;
}

std::vector<double> RawRow(const SelectRow& r, bool is_v, int t) {
  const DType type = kv::Get(is_v ? r.v_codec : r.k_codec).raw;
  const std::byte* raw = is_v ? r.v_raw : r.k_raw;
  const int dim = r.page.head_dim;
  std::vector<double> row;
  for (int d = 0; d < dim; ++d)
    row.push_back(double(r.tail == kv::Tail::kInt8
                             ? kv::Int8Tail::Value(r.page, raw, t, d)
                             : RawElement(type, raw + (int64_t{t} * dim + d) * SizeOf(type))));
  return row;
}

std::vector<double> RowAt(const SelectRow& r, bool is_v, int64_t position) {
  const kv::CodecInfo& codec = kv::Get(is_v ? r.v_codec : r.k_codec);
  const int64_t page = position / r.page.tokens;
  const int t = int(position % r.page.tokens), dim = r.page.head_dim;
  if (page == r.position / r.page.tokens) return RawRow(r, is_v, t);
  std::vector<double> row;
  for (int d = 0; d < dim; d += 8) {
    float out8[8];
    codec.decode8(r.page, (is_v ? r.v_pages : r.k_pages)[page], t, d, out8);
    row.insert(row.end(), out8, out8 + 8);
  }
  return row;
}

double Dot(const float* q, const std::vector<double>& k) {
  double sum = 0;
  for (size_t d = 0; d < k.size(); ++d) sum += double(q[d]) * k[d];
  return sum;
}

void Softmax(std::vector<double>& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - max);
  for (double& v : x) v /= sum;
}

// Weights [group][tokens] over the listed positions; fills out.
Rows Attend(const SelectRow& r, SelectedRow* result) {
  Rows weights;
  result->out.assign(size_t(r.group) * size_t(r.page.head_dim), 0);
  for (int g = 0; g < r.group; ++g) {
    std::vector<double> p;
    for (const int64_t t : result->tokens)
      p.push_back(Dot(r.q + int64_t{g} * r.page.head_dim, RowAt(r, false, t)) * double(r.scale));
    Softmax(p);
    weights.push_back(p);
  }
  for (size_t i = 0; i < result->tokens.size(); ++i) {
    const std::vector<double> v = RowAt(r, true, result->tokens[i]);
    for (int g = 0; g < r.group; ++g)
      for (size_t d = 0; d < v.size(); ++d)
        result->out[size_t(g) * v.size() + d] += weights[size_t(g)][i] * v[d];
  }
  return weights;
}

double Distance(double a, double b) {
  return std::isinf(a) || std::isinf(b) ? 1 : std::abs(a - b) / std::max({std::abs(a), std::abs(b), 1e-30});
}

// Indices of the k greatest scores, the greatest first, of equal ones the lower index first.
std::vector<int> Greatest(const std::vector<double>& score, int k, double* margin) {
  std::vector<int> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return score[size_t(a)] > score[size_t(b)]; });
  if (size_t(k) < order.size())
    *margin =
        std::min(*margin, Distance(score[size_t(order[size_t(k) - 1])], score[size_t(order[size_t(k)])]));
  order.resize(size_t(k));
  return order;
}

// SparQ of one row; tokens are indexed from `first`.
class SparqRow {
 public:
  explicit SparqRow(const SparqArgs& a) : a_(a), r_(a.row), seen_(int(r_.position - r_.first) + 1) {}
  SelectedRow Run();

 private:
  int AdaptiveR();
  bool Select(int r);
  void Reallocate(Reallocation how);
  double RankingKey(int64_t position, int d) const;
  void AddMean(const std::vector<int64_t>& over, int g, double mass);

  const SparqArgs& a_;
  const SelectRow& r_;
  const int seen_;
  std::vector<int> channels_;  // by falling magnitude
  std::vector<double> magnitude_;
  Rows weights_;  // [group][seen], approximate
  SelectedRow result_;
};

int SparqRow::AdaptiveR() {
  magnitude_.assign(size_t(r_.page.head_dim), 0);
  for (int g = 0; g < r_.group; ++g)
    for (int d = 0; d < r_.page.head_dim; ++d)
      magnitude_[size_t(d)] += std::abs(double(r_.q[g * r_.page.head_dim + d]));
  channels_ = Greatest(magnitude_, r_.page.head_dim, &result_.margin);  // all of them, in order
  const double total = std::accumulate(magnitude_.begin(), magnitude_.end(), 0.0);
  double held = 0;
  for (int i = 0; i < a_.sparq.r && a_.sparq.rho > 0; ++i) {
    if (i > 0 && i % 8 == 0) {
      result_.margin = std::min(result_.margin, Distance(held, double(a_.sparq.rho) * total));
      if (held >= double(a_.sparq.rho) * total) return i;
    }
    held += magnitude_[size_t(channels_[size_t(i)])];
  }
  return a_.sparq.r;
}

double SparqRow::RankingKey(int64_t position, int d) const {
  const int64_t page = position / r_.page.tokens;
  const int t = int(position % r_.page.tokens);
  if (page == r_.position / r_.page.tokens) return RawRow(r_, false, t)[size_t(d)];
  return KeyCopyElement(a_.sparq.copy, r_.page, r_.records[page] + a_.k_copy, t, d);
}

// Fills weights_ and result_.tokens; false when less weight than asked for is covered.
bool SparqRow::Select(int r) {
  const SparqParams& p = a_.sparq;
  const int dim = r_.page.head_dim, local = p.local < 0 ? p.k / 4 : p.local;
  if (r < dim)
    result_.margin = std::min(result_.margin, Distance(magnitude_[size_t(channels_[size_t(r) - 1])],
                                                       magnitude_[size_t(channels_[size_t(r)])]));
  Rows keys(static_cast<size_t>(seen_), std::vector<double>(static_cast<size_t>(r)));
  for (int n = 0; n < seen_; ++n)
    for (int i = 0; i < r; ++i) keys[size_t(n)][size_t(i)] = RankingKey(r_.first + n, channels_[size_t(i)]);
  std::vector<double> score(size_t(seen_), 0);
  weights_.clear();
  for (int g = 0; g < r_.group; ++g) {
    const float* q = r_.q + int64_t{g} * dim;
    double all = 0, held = 0;
    for (int d = 0; d < dim; ++d) all += std::abs(double(q[d]));
    std::vector<float> chosen;
    for (int i = 0; i < r; ++i) chosen.push_back(q[channels_[size_t(i)]]);
    for (const float x : chosen) held += std::abs(double(x));
    const double tau = std::sqrt(held > 0 ? dim * held / all : dim);
    std::vector<double> x;
    for (int n = 0; n < seen_; ++n) x.push_back(Dot(chosen.data(), keys[size_t(n)]) / tau);
    for (int n = 0; n < seen_ && p.rank_logits; ++n) score[size_t(n)] += x[size_t(n)];
    Softmax(x);
    for (int n = 0; n < seen_ && !p.rank_logits; ++n) score[size_t(n)] += x[size_t(n)];
    weights_.push_back(x);
  }
  int forced = 0;
  for (int n = 0; n < seen_; ++n)
    if (n >= seen_ - local || r_.first + n < p.sinks) score[size_t(n)] = INFINITY, ++forced;
  std::vector<int> order = Greatest(score, p.k, &result_.margin);
  bool covers = p.eps <= 0;
  if (p.eps > 0) {
    std::vector<double> sum(size_t(r_.group), 0);
    for (int i = 0; i < int(order.size()); ++i) {
      for (int g = 0; g < r_.group; ++g) sum[size_t(g)] += weights_[size_t(g)][size_t(order[size_t(i)])];
      const double least = *std::min_element(sum.begin(), sum.end());
      result_.margin = std::min(result_.margin, Distance(least, 1 - double(p.eps)));
      covers = least >= 1 - double(p.eps);
      if (covers && i + 1 >= forced) order.resize(size_t(i) + 1);
    }
  }
  std::sort(order.begin(), order.end());
  result_.tokens.clear();
  for (const int n : order) result_.tokens.push_back(r_.first + n);
  return covers;
}

void SparqRow::AddMean(const std::vector<int64_t>& over, int g, double mass) {
  for (const int64_t t : over) {
    const std::vector<double> v = RowAt(r_, true, t);
    for (size_t d = 0; d < v.size(); ++d)
      result_.out[size_t(g) * v.size() + d] += mass / double(over.size()) * v[d];
  }
}

void SparqRow::Reallocate(Reallocation how) {
  const auto read = [&](int64_t t) {
    return std::binary_search(result_.tokens.begin(), result_.tokens.end(), t);
  };
  const int dim = r_.page.head_dim, page = r_.page.tokens;
  for (int g = 0; g < r_.group; ++g) {
    double alpha = 0;
    for (const int64_t t : result_.tokens) alpha += weights_[size_t(g)][size_t(t - r_.first)];
    for (int d = 0; d < dim; ++d) result_.out[size_t(g * dim + d)] *= alpha;
    std::vector<int64_t> over;
    double mass = 0;
    for (int64_t t = r_.first; t <= r_.position; ++t) {
      const bool last = t == r_.position || (how == Reallocation::kBlocks && t % page == page - 1);
      if (how != Reallocation::kUnselected || !read(t)) over.push_back(t);
      if (!read(t)) mass += weights_[size_t(g)][size_t(t - r_.first)];
      if (!last) continue;
      AddMean(over, g, mass);
      over.clear(), mass = 0;
    }
  }
}

SelectedRow SparqRow::Run() {
  bool all = seen_ <= a_.sparq.k;
  if (!all) {
    const int r = AdaptiveR();
    all = !Select(r);
    if (all && 2 * r < r_.page.head_dim) all = !Select(2 * r);
    result_.dense_fallback = all;
  }
  if (all) {
    result_.tokens.clear();
    for (int64_t t = r_.first; t <= r_.position; ++t) result_.tokens.push_back(t);
  }
  Attend(r_, &result_);
  Reallocation how = a_.sparq.mean;
  if (how == Reallocation::kAuto) how = r_.group == 1 ? Reallocation::kMean : Reallocation::kOff;
  if (!all && how != Reallocation::kOff) Reallocate(how);
  return result_;
}

}  // namespace

SelectedRow Sparq(const SparqArgs& a) { return SparqRow(a).Run(); }

SelectedRow Window(const WindowArgs& a) {
  SelectedRow result;
  const int64_t seen = a.row.position - a.row.first + 1;
  const int64_t sinks = std::max<int64_t>(0, a.window.sinks - a.row.first);  // those still seen
  for (int64_t t = a.row.first; t <= a.row.position; ++t)
    if (seen <= a.window.k || t < a.window.sinks || t > a.row.position - (a.window.k - sinks))
      result.tokens.push_back(t);
  Attend(a.row, &result);
  return result;
}

SelectedRow H2o(const H2oArgs& a, std::vector<double>& scores) {
  SelectedRow result;
  const int64_t position = a.row.position;
  const int local = std::max(1, a.h2o.local < 0 ? a.h2o.k / 4 : a.h2o.local);
  scores.resize(size_t(position) + 1);
  scores.back() = 0;
  for (int64_t t = a.row.first; t <= position; ++t)
    if (scores[size_t(t)] >= 0) result.tokens.push_back(t);
  if (!a.prefill && int(result.tokens.size()) > a.h2o.k) {
    std::vector<double> score;
    for (const int64_t t : result.tokens)
      score.push_back(t > position - local ? INFINITY : scores[size_t(t)]);
    std::vector<int> kept = Greatest(score, a.h2o.k, &result.margin);
    std::sort(kept.begin(), kept.end());
    std::vector<int64_t> live;
    for (const int i : kept) live.push_back(result.tokens[size_t(i)]);
    for (const int64_t t : result.tokens)
      if (!std::binary_search(live.begin(), live.end(), t)) scores[size_t(t)] = -1;
    result.tokens = live;
  }
  const Rows weights = Attend(a.row, &result);
  for (size_t i = 0; i < result.tokens.size(); ++i)
    for (int g = 0; g < a.row.group; ++g)
      scores[size_t(result.tokens[i])] += weights[size_t(g)][i] / a.row.group;
  return result;
}

double KeyCopyElement(KeyCopy format, kv::PageShape s, const std::byte* copy, int t, int d) {
  const int i = d * s.tokens + t, values = s.tokens * s.head_dim;
  if (format == KeyCopy::kF16) return double(HalfToFloat(kv::LoadU16(copy + 2 * i)));
  const int bytes = format == KeyCopy::kInt8 ? values : values / 2;
  const double scale = double(HalfToFloat(kv::LoadU16(copy + bytes + i / 32 * 2)));
  if (format == KeyCopy::kInt8) return (int(copy[i]) - 128) * scale;
  return ((int(copy[i / 2]) >> (i % 2 * 4) & 15) - 8) * scale;
}

}  // namespace nibble::ref
