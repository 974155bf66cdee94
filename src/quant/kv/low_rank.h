// SPDX-License-Identifier: Apache-2.0
// Floor 2. A low-rank approximation of a small matrix by power iteration, as GEAR (arXiv 2403.05527) makes
// it: E [tokens, head_dim] ~ Q P^T. P starts from a fixed matrix; three rounds of Q = E P, P = E^T Q, in the
// last of which the columns of P and of Q are made orthonormal first. The same E always gives the same
// factors.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

// [count] vectors of `n` values, as columns: element i of column r at x[r * n + i].
template <int kRank>
NIBBLE_HD void Orthonormalize(float* x, int n) {
  for (int r = 0; r < kRank; ++r) {
    float* v = x + r * n;
    double before = 0, after = 0;
    for (int i = 0; i < n; ++i) before += double(v[i]) * double(v[i]);
    for (int j = 0; j < r; ++j) {
      double dot = 0;
      for (int i = 0; i < n; ++i) dot += double(v[i]) * double(x[j * n + i]);
      for (int i = 0; i < n; ++i) v[i] -= float(dot) * x[j * n + i];
    }
    for (int i = 0; i < n; ++i) after += double(v[i]) * double(v[i]);
    // A column that the earlier ones explain is noise of the rounding: it becomes zero, not a direction.
    const float inverse = after > 1e-10 * before ? float(1.0 / __builtin_sqrt(after)) : 0.0f;
    for (int i = 0; i < n; ++i) v[i] *= inverse;
  }
}

template <int kRank>
struct LowRank {
  float q[kRank * kPageTokens] = {};  // [kRank][tokens], orthonormal columns
  float p[kRank * kMaxHeadDim] = {};  // [kRank][head_dim]; the caller puts the start here

  // `residual.Row(token, out)` gives a row of E, finite throughout.
  template <class Residual>
  NIBBLE_HD void Fit(PageShape s, const Residual& residual, int rounds = 3) {
    for (int round = 0; round < rounds; ++round) {
      const bool last = round + 1 == rounds;
      if (last) Orthonormalize<kRank>(p, s.head_dim);
      TimesP(s, residual);
      if (last) Orthonormalize<kRank>(q, s.tokens);
      TransposedTimesQ(s, residual);
    }
  }

  template <class Residual>
  NIBBLE_HD void TimesP(PageShape s, const Residual& residual) {
    float row[kMaxHeadDim];
    for (int t = 0; t < s.tokens; ++t) {
      residual.Row(t, row);
      for (int r = 0; r < kRank; ++r) {
        float lane[8] = {};  // eight lanes in a fixed order, for the vectorizer
        for (int d = 0; d < s.head_dim; d += 8)
          for (int j = 0; j < 8; ++j) lane[j] += row[d + j] * p[r * s.head_dim + d + j];
        q[r * s.tokens + t] =
            ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
      }
    }
  }
  template <class Residual>
  NIBBLE_HD void TransposedTimesQ(PageShape s, const Residual& residual) {
    float row[kMaxHeadDim];
    for (int i = 0; i < kRank * s.head_dim; ++i) p[i] = 0;
    for (int t = 0; t < s.tokens; ++t) {
      residual.Row(t, row);
      for (int r = 0; r < kRank; ++r)
        for (int d = 0; d < s.head_dim; ++d) p[r * s.head_dim + d] += row[d] * q[r * s.tokens + t];
    }
  }
};

}  // namespace nibble::kv
