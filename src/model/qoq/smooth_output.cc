// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/smooth_output.h"

#include <algorithm>
#include <cmath>

#include "model/qoq/gptq.h"
#include "model/qoq/search.h"

namespace nibble::qoq {
namespace {

constexpr int kSampleRows = 512;

std::vector<float> Lambda(std::span<const float> x_max, std::span<const float> w_max, double alpha,
                          double beta) {
  std::vector<float> lambda(x_max.size(), 1.0f);
  for (size_t i = 0; i < lambda.size(); ++i) {
    if (!(x_max[i] > 0 && w_max[i] > 0)) continue;
    lambda[i] = static_cast<float>(std::pow(double(x_max[i]), alpha) / std::pow(double(w_max[i]), beta));
  }
  return lambda;
}

void MultiplyColumns(std::span<const float> lambda, Matrix* w) {
  for (int r = 0; r < w->rows; ++r)
    for (int c = 0; c < w->cols; ++c) w->Row(r)[c] *= lambda[static_cast<size_t>(c)];
}

void DivideRows(std::span<const float> lambda, FloatLinear* linear) {
  for (int r = 0; r < linear->w.rows; ++r) {
    const float by = lambda[static_cast<size_t>(r)];
    for (int c = 0; c < linear->w.cols; ++c) linear->w.Row(r)[c] /= by;
    if (!linear->bias.empty()) linear->bias[static_cast<size_t>(r)] /= by;
  }
}

// |y - y'|^2 where y' has x / lambda in 8 bits and w * lambda rounded to nearest.
double RoundedError(const Matrix& x, const Matrix& y, const Matrix& w, std::span<const float> lambda,
                    weight::Storage storage, Math& math) {
  Matrix xs = x, ws = w;
  DivideColumns(lambda, &xs);
  math.RoundToInt8(&xs);
  MultiplyColumns(lambda, &ws);
  RoundToNearest(storage, math, &ws);
  return SquaredDistance(y, math.Product(xs, ws));
}

}  // namespace

void DivideColumns(std::span<const float> lambda, Matrix* x) {
  for (int t = 0; t < x->rows; ++t)
    for (int c = 0; c < x->cols; ++c) x->Row(t)[c] /= lambda[static_cast<size_t>(c)];
}

std::vector<float> PerQueryHead(std::span<const float> lambda, HeadShape s) {
  const int group = s.heads / s.kv_heads;
  std::vector<float> out;
  for (int h = 0; h < s.heads; ++h) {
    const auto head = lambda.subspan(static_cast<size_t>(h / group) * static_cast<size_t>(s.head_dim),
                                     static_cast<size_t>(s.head_dim));
    out.insert(out.end(), head.begin(), head.end());
  }
  return out;
}

OutputSmoothing FindMlpSmoothing(const Matrix& gated, const FloatLinear& down, weight::Storage storage,
                                 Math& math) {
  const Matrix x = SampleColumns(gated, 0, gated.cols, kSampleRows);
  const Matrix y = math.Product(x, down.w);
  const std::vector<float> x_max = ColumnMax(gated, 0, gated.cols), w_max = ColumnMax(down.w, 0, down.w.cols);
  const auto error = [&](double a, double b) {
    return RoundedError(x, y, down.w, Lambda(x_max, w_max, a, b), storage, math);
  };
  const Choice none{0, 0, error(0, 0)}, best = SearchExponents(none, error);
  const double energy = std::max(SquaredNorm(y), 1e-30);
  return {Lambda(x_max, w_max, best.alpha, best.beta), best.alpha, best.beta, none.error / energy,
          best.error / energy};
}

void SmoothMlp(std::span<const float> lambda, Layer* layer) {
  DivideRows(lambda, &layer->linear[kUp]);
  MultiplyColumns(lambda, &layer->linear[kDown].w);
}

OutputSmoothing FindValueSmoothing(const Matrix& v, const Matrix& attended, const FloatLinear& o, HeadShape s,
                                   weight::Storage storage, Math& math) {
  const int group = s.heads / s.kv_heads, d = s.head_dim;
  const Matrix x = SampleColumns(attended, 0, attended.cols, kSampleRows);
  const Matrix y = math.Product(x, o.w);
  // Channel statistics of a KV head: those of all columns of o that read it.
  const std::vector<float> v_max = ColumnMax(v, 0, v.cols), column_max = ColumnMax(o.w, 0, o.w.cols);
  std::vector<float> w_max(v_max.size());
  std::vector<Matrix> moments, heads;
  for (int h = 0; h < s.kv_heads; ++h) {
    Matrix readers(o.w.rows * group, d);
    for (int g = 0; g < group; ++g)
      for (int r = 0; r < o.w.rows; ++r)
        std::copy_n(o.w.Row(r) + (h * group + g) * d, d, readers.Row(g * o.w.rows + r));
    const std::vector<float> max = ColumnMax(readers, 0, d);
    std::copy(max.begin(), max.end(), w_max.begin() + int64_t{h} * d);
    moments.push_back(math.Gram(readers));
    heads.push_back(SampleColumns(v, h * d, d, kSampleRows));
  }
  // Attention averages over tokens: the energy that a value keeps on its way to o, at most all of it.
  const double kept = std::min(1.0, SquaredNorm(attended) / std::max(1e-30, SquaredNorm(v) * double(group)));
  const auto error = [&](double a, double b) {
    const std::vector<float> lambda = Lambda(v_max, w_max, a, b);
    double sum = RoundedError(x, y, o.w, PerQueryHead(lambda, s), storage, math);
    for (int h = 0; h < s.kv_heads; ++h) {
      const std::vector<float> part(lambda.begin() + int64_t{h} * d, lambda.begin() + int64_t{h + 1} * d);
      sum += kept *
             WeightedInt4Error(heads[static_cast<size_t>(h)], part, moments[static_cast<size_t>(h)], math);
    }
    return sum;
  };
  const Choice none{0, 0, error(0, 0)}, best = SearchExponents(none, error);
  const double energy = std::max(SquaredNorm(y), 1e-30);
  return {Lambda(v_max, w_max, best.alpha, best.beta), best.alpha, best.beta, none.error / energy,
          best.error / energy};
}

void SmoothValues(std::span<const float> lambda, HeadShape s, Layer* layer) {
  DivideRows(lambda, &layer->linear[kV]);
  MultiplyColumns(PerQueryHead(lambda, s), &layer->linear[kO].w);
}

}  // namespace nibble::qoq
