// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/elementwise.h"

#include <cmath>

namespace nibble::ref {
namespace {

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  }
  return 0;
}

}  // namespace

void RmsNorm(const NormArgs& a, double* y) {
  for (int row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.x_stride;
    double squares = 0;
    for (int i = 0; i < a.k; ++i) squares += double(x[i]) * double(x[i]);
    const double root = std::sqrt(squares / a.k + double(a.eps));
    for (int i = 0; i < a.k; ++i) y[int64_t{row} * a.k + i] = double(x[i]) / root * double(a.weight[i]);
  }
}

void RopeTable(const RopeTableArgs& a, double* cos, double* sin) {
  const int half = a.head_dim / 2;
  for (int row = 0; row < a.rows; ++row) {
    for (int i = 0; i < half; ++i) {
      const float angle = float(a.positions[row]) * a.inv_freq[i];  // rounded to f32: part of the definition
      cos[int64_t{row} * half + i] = std::cos(double(angle));
      sin[int64_t{row} * half + i] = std::sin(double(angle));
    }
  }
}

void Rope(const RopeArgs& a, double* y) {
  const int half = a.head_dim / 2;
  for (int row = 0; row < a.rows; ++row) {
    for (int head = 0; head < a.heads; ++head) {
      const float* x = a.x + row * a.x_stride + int64_t{head} * a.head_dim;
      double* to = y + (int64_t{row} * a.heads + head) * a.head_dim;
      for (int i = 0; i < half; ++i) {
        const double c = double(a.cos[int64_t{row} * half + i]), s = double(a.sin[int64_t{row} * half + i]);
        to[i] = double(x[i]) * c - double(x[i + half]) * s;
        to[i + half] = double(x[i + half]) * c + double(x[i]) * s;
      }
    }
  }
}

void Glu(const GluArgs& a, double* y) {
  for (int row = 0; row < a.rows; ++row)
    for (int i = 0; i < a.k; ++i)
      y[int64_t{row} * a.k + i] = Activate(a.activation, double(a.gate[row * a.gate_stride + i])) *
                                  double(a.up[row * a.up_stride + i]);
}

void LogSumExp(const LogSumExpArgs& a, double* lse, int32_t* argmax) {
  for (int row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.x_stride;
    int best = 0;
    for (int i = 1; i < a.k; ++i)
      if (x[i] > x[best]) best = i;
    long double sum = 0;
    for (int i = 0; i < a.k; ++i)
      sum += std::exp(static_cast<long double>(x[i]) - static_cast<long double>(x[best]));
    lse[row] = double(static_cast<long double>(x[best]) + std::log(sum));
    argmax[row] = best;
  }
}

}  // namespace nibble::ref
