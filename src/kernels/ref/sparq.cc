// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/sparq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kernels/ref/top_k.h"

namespace nibble::ref {
namespace {

std::vector<double> GroupMagnitude(View q) {
  std::vector<double> sum(size_t(q.dim), 0.0);
  for (int h = 0; h < q.rows; ++h)
    for (int d = 0; d < q.dim; ++d) sum[d] += std::abs(q[h][d]);
  return sum;
}

struct Step {  // what the stages of one step share
  View q, k, ranking_k, v;
  const SparqSpec& spec;
  std::vector<int> visible;  // positions, ascending

  bool Forced(size_t i) const {  // i: index into visible
    return int(i) < spec.sinks || int(visible.size() - i) <= spec.local;
  }
};

// Approximate logits over the visible tokens, divided by the temperature.
std::vector<double> ApproximateLogits(const Step& s, const SparqStep& step, int head) {
  std::vector<double> logits;
  for (const int n : s.visible) {
    double sum = 0;
    for (const int d : step.components) sum += s.q[head][d] * s.ranking_k[n][d];
    logits.push_back(sum / step.tau[size_t(head)]);
  }
  return logits;
}

// Fills weights and returns the group's score of every visible token, forced ones +inf.
std::vector<double> RankTokens(const Step& s, SparqStep& step) {
  std::vector<double> score(s.visible.size(), 0.0);
  step.weights = Matrix(s.q.rows, s.k.rows);
  for (int h = 0; h < s.q.rows; ++h) {
    const std::vector<double> logits = ApproximateLogits(s, step, h), weights = Softmax(logits);
    for (size_t i = 0; i < score.size(); ++i) {
      step.weights[h][s.visible[i]] = weights[i];
      score[i] += s.spec.ranking == GroupRanking::kSumSoftmax ? weights[i] : logits[i];
    }
  }
  for (size_t i = 0; i < score.size(); ++i)
    if (s.Forced(i)) score[i] = INFINITY;
  return score;
}

std::vector<int> Positions(const Step& s, const std::vector<int>& indices) {
  std::vector<int> tokens;
  for (const int i : indices) tokens.push_back(s.visible[size_t(i)]);
  return tokens;
}

void AddChunkBests(const Step& s, const std::vector<double>& score, std::vector<int>& chosen) {
  std::vector<bool> taken(score.size(), false);
  for (const int i : chosen) taken[size_t(i)] = true;
  for (size_t begin = 0; begin < score.size(); begin += size_t(s.spec.chunk)) {
    const size_t end = std::min(score.size(), begin + size_t(s.spec.chunk));
    const size_t best = size_t(
        std::max_element(score.begin() + int64_t(begin), score.begin() + int64_t(end)) - score.begin());
    if (!taken[best] && score[best] > s.spec.chunk_eps) chosen.push_back(int(best));
  }
}

// F-S2. order: visible tokens by falling score.
int AdaptiveK(const Step& s, const SparqStep& step, const std::vector<int>& order) {
  std::vector<double> alpha(size_t(step.weights.rows), 0.0);
  const int least = std::max(s.spec.k_min, s.spec.sinks + s.spec.local);
  for (int k = 1; k <= int(order.size()); ++k) {
    const int token = s.visible[size_t(order[size_t(k - 1)])];
    for (int h = 0; h < step.weights.rows; ++h) alpha[h] += step.weights[h][token];
    const bool reached = *std::min_element(alpha.begin(), alpha.end()) >= s.spec.alpha_target;
    if (k >= s.spec.k_max || (k >= least && reached)) return k;
  }
  return int(order.size());
}

std::vector<int> SelectTokens(const Step& s, const SparqStep& step, const std::vector<double>& score) {
  std::vector<int> chosen = TopK(score, int(score.size()));
  const int k = s.spec.alpha_target > 0 ? AdaptiveK(s, step, chosen) : s.spec.k;
  chosen.resize(size_t(std::min(k, int(score.size()))));
  if (s.spec.chunk > 0) AddChunkBests(s, score, chosen);
  std::sort(chosen.begin(), chosen.end());
  return Positions(s, chosen);
}

// Adds to out what the unselected mass stands for: sum over sets of mass * mean of V. A set is the whole
// cache or one block; a mean goes over the set or over its unselected tokens.
void AddMeans(const Step& s, const double* weights, const std::vector<bool>& selected, int begin, int end,
              bool unselected_only, double* out) {
  std::vector<double> mean(size_t(s.v.dim), 0.0);
  double mass = 0;
  int rows = 0;
  for (const int n : s.visible) {
    if (n < begin || n >= end) continue;
    if (!selected[size_t(n)]) mass += weights[n];
    if (unselected_only && selected[size_t(n)]) continue;
    ++rows;
    for (int d = 0; d < s.v.dim; ++d) mean[size_t(d)] += s.v[n][d];
  }
  for (int d = 0; d < s.v.dim && rows > 0; ++d) out[d] += mass * mean[size_t(d)] / rows;
}

void Reallocate(const Step& s, const double* weights, const std::vector<bool>& selected, double* out) {
  const Reallocation how = s.spec.reallocation;
  const bool unselected = how == Reallocation::kUnselectedMean || how == Reallocation::kBlockUnselectedMean;
  const bool blocks = how == Reallocation::kBlockMean || how == Reallocation::kBlockUnselectedMean;
  if (how == Reallocation::kWeightedMean) {
    for (const int n : s.visible)
      for (int d = 0; d < s.v.dim && !selected[size_t(n)]; ++d) out[d] += weights[n] * s.v[n][d];
    return;
  }
  const int extent = blocks ? s.spec.mean_block : std::max(1, s.k.rows);
  for (int begin = 0; begin < s.k.rows; begin += extent)
    AddMeans(s, weights, selected, begin, begin + extent, unselected, out);
}

void Attend(const Step& s, SparqStep& step) {
  const bool all = step.tokens.size() == s.visible.size();
  std::vector<bool> selected(size_t(s.k.rows), false);
  for (const int n : step.tokens) selected[size_t(n)] = true;
  step.out = Matrix(s.q.rows, s.v.dim);
  for (int h = 0; h < s.q.rows; ++h) {
    std::vector<double> logits;
    double alpha = 0;
    for (const int n : step.tokens) {
      logits.push_back(Dot(s.q[h], s.k[n], s.q.dim) / std::sqrt(double(s.q.dim)));
      alpha += step.weights[h][n];
    }
    step.alpha.push_back(all ? 1 : alpha);
    const std::vector<double> weights = Softmax(logits);
    const double share = all || s.spec.reallocation == Reallocation::kOff ? 1 : alpha;
    for (size_t i = 0; i < weights.size(); ++i)
      for (int d = 0; d < s.v.dim; ++d) step.out[h][d] += share * weights[i] * s.v[step.tokens[i]][d];
    if (!all && s.spec.reallocation != Reallocation::kOff)
      Reallocate(s, step.weights[h], selected, step.out[h]);
  }
}

SparqStep RunStep(const Step& s, int r) {
  SparqStep step;
  step.components = SparqComponents(s.q, r);
  for (int h = 0; h < s.q.rows; ++h) step.tau.push_back(SparqTemperature(s.q[h], s.q.dim, step.components));
  const std::vector<double> score = RankTokens(s, step);
  step.tokens = SelectTokens(s, step, score);
  Attend(s, step);
  return step;
}

bool Low(const SparqStep& step, double alpha_min) {
  return *std::min_element(step.alpha.begin(), step.alpha.end()) < alpha_min;
}

}  // namespace

std::vector<int> SparqComponents(View q, int r) {
  std::vector<int> components = TopK(GroupMagnitude(q), r);
  std::sort(components.begin(), components.end());
  return components;
}

int SparqAdaptiveR(View q, const SparqSpec& spec) {
  const std::vector<double> magnitude = GroupMagnitude(q);
  const double total = std::accumulate(magnitude.begin(), magnitude.end(), 0.0);
  const int r_max = std::min(spec.r_max, q.dim);
  for (int r = std::min(spec.r_min, r_max); r < r_max; r += spec.r_step) {
    double held = 0;
    for (const int d : TopK(magnitude, r)) held += magnitude[size_t(d)];
    if (held >= spec.coverage * total) return r;
  }
  return r_max;
}

double SparqTemperature(const double* q, int dim, const std::vector<int>& components) {
  double all = 0, held = 0;
  for (int d = 0; d < dim; ++d) all += std::abs(q[d]);
  for (const int d : components) held += std::abs(q[d]);
  return std::sqrt(held > 0 ? dim * held / all : double(dim));
}

SparqStep SparqDecode(View q, View k, View ranking_k, View v, const SparqSpec& spec,
                      const std::vector<bool>* visible) {
  Step s{q, k, ranking_k, v, spec, {}};
  for (int n = 0; n < k.rows; ++n)
    if (visible == nullptr || (*visible)[size_t(n)]) s.visible.push_back(n);
  NIBBLE_CHECK(!s.visible.empty(), "a decode step sees at least its own token");
  NIBBLE_CHECK(spec.alpha_target > 0 || spec.sinks + spec.local <= spec.k || spec.k >= int(s.visible.size()),
               "sinks and local tokens are part of k");
  const int r = std::min(spec.coverage > 0 ? SparqAdaptiveR(q, spec) : spec.r, q.dim);
  SparqStep step = RunStep(s, r);
  if (spec.alpha_min <= 0 || !Low(step, spec.alpha_min)) return step;
  if (2 * r < q.dim) {
    step = RunStep(s, 2 * r);
    step.path = SparqStep::Path::kWiderR;
    if (!Low(step, spec.alpha_min)) return step;
  }
  SparqSpec all = spec;
  all.k = int(s.visible.size());
  all.alpha_target = 0;
  const Step dense{q, k, ranking_k, v, all, s.visible};
  step = RunStep(dense, q.dim);
  step.path = SparqStep::Path::kDense;
  return step;
}

Matrix RankingKeys(View k, KtFormat format, int group_tokens, Storage storage, Rounding rounding) {
  Matrix out(k.rows, k.dim);
  const int full = format == KtFormat::kF16 ? 0 : k.rows / group_tokens * group_tokens;
  const int levels = format == KtFormat::kInt8 ? 127 : 7;
  for (int d = 0; d < k.dim; ++d) {
    for (int begin = 0; begin < full; begin += group_tokens) {
      double amax = 0;
      for (int n = begin; n < begin + group_tokens; ++n) amax = std::max(amax, std::abs(k[n][d]));
      const double scale = Store(amax / levels, storage);
      for (int n = begin; n < begin + group_tokens; ++n)
        out[n][d] = scale > 0 ? RoundToCode(k[n][d] / scale, rounding, -levels, levels) * scale : 0;
    }
    for (int n = full; n < k.rows; ++n) out[n][d] = RoundToF16(k[n][d]);
  }
  return out;
}

void RunningMean::Append(const double* row) {
  for (size_t d = 0; d < mean_.size(); ++d)
    mean_[d] = (double(rows_) * mean_[d] + row[d]) / double(rows_ + 1);
  ++rows_;
}

int64_t DenseTransfer(int64_t tokens, int64_t dim) { return 2 * tokens * dim + 2 * dim; }
int64_t SparqTransfer(int64_t tokens, int64_t dim, int64_t r, int64_t k) {
  return tokens * r + 2 * k * dim + 4 * dim;
}
int64_t H2oTransfer(int64_t tokens, int64_t dim, int64_t k) { return 2 * k * dim + 2 * dim + 2 * tokens; }
int64_t WindowTransfer(int64_t dim, int64_t k) { return 2 * k * dim + 2 * dim; }
int64_t TopVTransfer(int64_t tokens, int64_t dim, int64_t k) { return tokens * dim + k * dim + 2 * dim; }
double SparqTransferBytes(int64_t tokens, int64_t dim, int64_t r, int64_t k, double kt_bits) {
  return double(tokens * r) * kt_bits / 8 + 2.0 * double(2 * k * dim + 4 * dim);
}

}  // namespace nibble::ref
