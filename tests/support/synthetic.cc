// SPDX-License-Identifier: Apache-2.0
#include "tests/support/synthetic.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

void ApplyRope(Matrix& x, double theta) {
  const int half = x.dim / 2;
  for (int t = 0; t < x.rows; ++t)
    for (int i = 0; i < half; ++i) {
      const double angle = t * std::pow(theta, -2.0 * i / x.dim), c = std::cos(angle), s = std::sin(angle);
      double &a = x[t][i], &b = x[t][i + half];
      const double a0 = a;
      a = a * c - b * s;
      b = a0 * s + b * c;
    }
}

struct Channels {  // of K: mean and deviation
  std::vector<double> mean, deviation;
};

Channels MakeChannels(const SyntheticSpec& spec, Random& random) {
  Channels c;
  for (int d = 0; d < spec.head_dim; ++d) {
    c.mean.push_back(spec.outlier_channels > 0 ? .3 * random.Normal() : 0);
    c.deviation.push_back(std::exp(spec.channel_spread * random.Normal()));
  }
  // In slow pairs: a channel's mean survives RoPE only where the pair hardly turns.
  std::vector<bool> used(size_t(spec.head_dim), false);
  const int quarter = spec.head_dim / 4;
  for (int left = spec.outlier_channels; left > 0;) {
    const size_t d = size_t(quarter + random.Below(quarter) + (random.Below(2) == 0 ? 0 : spec.head_dim / 2));
    if (used[d]) continue;
    used[d] = true;
    --left;
    const double size = spec.outlier_low * std::pow(spec.outlier_high / spec.outlier_low, random.Uniform());
    c.mean[d] = random.Below(2) == 0 ? size : -size;
    c.deviation[d] *= 1.5;
  }
  return c;
}

Matrix CorrelatedNoise(const SyntheticSpec& spec, Random& random) {
  Matrix n = RandomMatrix(random, spec.tokens, spec.head_dim);
  const double fresh = std::sqrt(1 - spec.correlation * spec.correlation);
  for (int t = 1; t < n.rows; ++t)
    for (int d = 0; d < n.dim; ++d) n[t][d] = spec.correlation * n[t - 1][d] + fresh * n[t][d];
  return n;
}

// Half of the queries look for one earlier token's content (induction), the others for nothing in particular.
Matrix MakeQueries(const Matrix& content, const Channels& c, Random& random) {
  Matrix q(content.rows, content.dim);
  std::vector<double> bias;
  for (int d = 0; d < q.dim; ++d) bias.push_back(.3 * random.Normal());
  for (int t = 0; t < q.rows; ++t) {
    const int target = t > 0 ? random.Below(t) : 0;
    const double looks = random.Below(2) == 0 ? .6 : 0;
    for (int d = 0; d < q.dim; ++d)
      q[t][d] =
          bias[size_t(d)] + .8 * (looks * content[target][d] + random.Normal()) / c.deviation[size_t(d)];
  }
  return q;
}

double StudentT(int degrees, Random& random) {  // of variance 1
  if (degrees == 0) return random.Normal();
  double sum = 0;
  for (int i = 0; i < degrees; ++i) {
    const double x = random.Normal();
    sum += x * x;
  }
  return random.Normal() / std::sqrt(sum / degrees) / std::sqrt(degrees / (degrees - 2.0));
}

Matrix MakeValues(const SyntheticSpec& spec, Random& random) {
  Matrix v(spec.tokens, spec.head_dim);
  std::vector<double> mean, deviation;
  for (int d = 0; d < v.dim; ++d) {
    mean.push_back(spec.v_mean * random.Normal());
    deviation.push_back(std::exp(.3 * random.Normal()));
  }
  for (int i = 0; i < spec.v_biased_channels; ++i)
    mean[size_t(random.Below(v.dim))] = random.Below(2) == 0 ? 8.5 : -8.5;
  for (int t = 0; t < v.rows; ++t) {
    const double spike = random.Uniform() < spec.v_spike_share ? 3 : 1;
    for (int d = 0; d < v.dim; ++d)
      v[t][d] = mean[size_t(d)] + deviation[size_t(d)] * spike * StudentT(spec.v_tail, random);
  }
  return v;
}

void ScaleQueries(Matrix& q, const Matrix& k, double logit_std) {
  double variance = 0;
  int rows = 0;
  for (int t = q.rows / 2; t < q.rows; t += 17, ++rows) {
    double sum = 0, sum2 = 0;
    for (int n = 1; n <= t; ++n) {
      const double x = Dot(q[t], k[n], q.dim) / std::sqrt(double(q.dim));
      sum += x / t;
      sum2 += x * x / t;
    }
    variance += sum2 - sum * sum;
  }
  const double factor = logit_std / std::sqrt(variance / rows);
  for (double& x : q.data) x *= factor;
}

// The first key along the mean query, its length found by bisection; its value all but vanishes.
void MakeSink(Matrix& q, Matrix& k, Matrix& v, double mass) {
  const std::vector<double> mean = RowMean(q.Slice(1, q.rows));
  const double scale = 1 / std::sqrt(double(q.dim));
  std::vector<double> along, others;  // of some rows: score of the unit sink, log sum exp of the other scores
  for (int t = q.rows / 4; t < q.rows; t += 31) {
    std::vector<double> scores;
    double max = -INFINITY, sum = 0;
    for (int n = 1; n <= t; ++n) {
      scores.push_back(scale * Dot(q[t], k[n], q.dim));
      max = std::max(max, scores.back());
    }
    for (const double s : scores) sum += std::exp(s - max);
    along.push_back(scale * Dot(q[t], mean.data(), q.dim));
    others.push_back(max + std::log(sum));
  }
  double low = 0, high = 5e3 / Dot(mean.data(), mean.data(), q.dim);
  for (int i = 0; i < 60; ++i) {
    const double beta = (low + high) / 2;
    double got = 0;
    for (size_t r = 0; r < along.size(); ++r)
      got += 1 / (1 + std::exp(others[r] - beta * along[r])) / double(along.size());
    (got < mass ? low : high) = beta;
  }
  for (int d = 0; d < k.dim; ++d) {
    k[0][d] = low * mean[size_t(d)];
    v[0][d] *= .03;
  }
}

}  // namespace

std::vector<SyntheticSpec> SyntheticSets() {
  SyntheticSpec plain{.name = "S0 Gaussian",
                      .outlier_channels = 0,
                      .channel_spread = .05,
                      .sink_mass = 0,
                      .v_tail = 0,
                      .v_mean = 0,
                      .v_spike_share = 0};
  SyntheticSpec base{.name = "S1 outliers"}, severe{.name = "S2 severe"}, flat{.name = "S3 flat"},
      peaky{.name = "S4 peaky"}, sink{.name = "S5 sink"}, small{.name = "S6 dim 64"},
      biased{.name = "S7 biased V"};
  severe.outlier_channels = 8;
  severe.outlier_low = 15;
  severe.outlier_high = 60;
  flat.logit_std = 1.2;
  peaky.logit_std = 4;
  sink.sink_mass = .9;
  small.head_dim = 64;
  biased.v_biased_channels = 8;  // as in video models, which have no sink
  biased.sink_mass = 0;
  return {plain, base, severe, flat, peaky, sink, small, biased};
}

SyntheticSpec SyntheticSet(const std::string& name) {
  for (const SyntheticSpec& spec : SyntheticSets())
    if (spec.name == name) return spec;
  NIBBLE_CHECK(false, "no such synthetic set");
  return {};
}

SyntheticHead MakeSynthetic(const SyntheticSpec& spec) {
  Random random(spec.seed);
  const Channels channels = MakeChannels(spec, random);
  const Matrix content = CorrelatedNoise(spec, random);
  SyntheticHead head{MakeQueries(content, channels, random), content, MakeValues(spec, random),
                     1 / std::sqrt(double(spec.head_dim))};
  for (int t = 0; t < spec.tokens; ++t)
    for (int d = 0; d < spec.head_dim; ++d)
      head.k[t][d] = channels.mean[size_t(d)] + channels.deviation[size_t(d)] * content[t][d];
  ApplyRope(head.q, spec.rope_theta);
  ApplyRope(head.k, spec.rope_theta);
  ScaleQueries(head.q, head.k, spec.logit_std);
  if (spec.sink_mass > 0) MakeSink(head.q, head.k, head.v, spec.sink_mass);
  return head;
}

SyntheticStructure Structure(const SyntheticHead& head) {
  SyntheticStructure s{};
  const int tokens = head.k.rows, half = tokens / 2;
  double entropy = 0;
  for (int t = half; t < tokens; ++t) {
    const std::vector<double> p = DenseWeights(head.q[t], head.k.Slice(0, t + 1), head.scale);
    for (const double x : p) entropy -= x > 0 ? x * std::log(x) : 0;
    s.sink_mass += p[0] / (tokens - half);
  }
  s.effective_tokens = std::exp(entropy / (tokens - half));
  std::vector<double> greatest(size_t(head.k.dim), 0.0), v;
  for (int t = 1; t < tokens; ++t)
    for (int d = 0; d < head.k.dim; ++d) {
      greatest[size_t(d)] = std::max(greatest[size_t(d)], std::abs(head.k[t][d]));
      v.push_back(std::abs(head.v[t][d]));
    }
  std::sort(greatest.begin(), greatest.end());
  std::sort(v.begin(), v.end());
  s.k_channel_ratio = greatest.back() / greatest[greatest.size() / 2];
  s.v_ratio = v.back() / v[v.size() / 2];
  const std::vector<double> mean = RowMean(head.k);
  double rest = 0;
  for (const double x : MinusRow(head.k, mean).data) rest += x * x;
  s.k_mean_ratio = std::sqrt(Dot(mean.data(), mean.data(), head.k.dim) * tokens / rest);
  return s;
}

}  // namespace nibble::ref
