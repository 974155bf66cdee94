// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/attention.h"

#include <cmath>

#include "kernels/ref/attention_tile.h"

namespace nibble::ref {
namespace {

// The online softmax of one query row and head, tile by tile. The order matters where weights are rounded or
// dropped: both are relative to the maximum so far.
struct Row {
  double max = -INFINITY, sum = 0, dropped = 0;
  int64_t dropped_tokens = 0;
  std::vector<double> out;

  void AddTile(const AttentionArgs& a, const Tile& tile, const std::vector<double>& scores, int64_t first,
               int64_t last) {
    std::vector<double> p(size_t(tile.tokens), 0.0);
    double top = max;
    const auto sees = [&](int t) { return tile.start + t >= first && tile.start + t <= last; };
    for (int t = 0; t < tile.tokens; ++t)
      if (sees(t)) top = std::fmax(top, scores[size_t(t)]);
    const double fix = std::exp(max - top);
    max = top;
    sum *= fix, dropped *= fix;
    for (double& x : out) x *= fix;
    const double threshold = double(Threshold(a.arithmetic, last - std::max<int64_t>(first, 0) + 1));
    for (int t = 0; t < tile.tokens; ++t) {
      if (!sees(t)) continue;
      const double x = scores[size_t(t)] - max, weight = WeightOf(a.arithmetic, x);
      if (x < threshold) {
        dropped += weight;
        ++dropped_tokens;
      } else {
        sum += p[size_t(t)] = weight;
      }
    }
    const std::vector<double> values = WeighTile(a, tile, p);
    for (size_t d = 0; d < out.size(); ++d) out[d] += values[d];
  }

  static float Threshold(const Arithmetic& how, int64_t length) {
    if (how.softmax == SoftmaxKind::kExact) return -INFINITY;
    return how.softmax == SoftmaxKind::kSas ? how.sas.threshold : Sas2Threshold(how.sas.eps, length);
  }
};

}  // namespace

void Attention(const AttentionArgs& a, double* out, AttentionCounters* counters, CodePages codes) {
  const int dim = a.page.head_dim;
  const std::vector<Tile> tiles = MakeTiles(a, codes);
  for (int i = 0; i < a.rows * a.group; ++i) {
    const float* q = a.q + i / a.group * a.q_stride + int64_t{i % a.group} * dim;
    const int64_t last = a.position + i / a.group, first = a.window > 0 ? last - a.window + 1 : 0;
    Row row{.out = std::vector<double>(size_t(dim), 0.0)};
    for (const Tile& tile : tiles)
      if (tile.start + tile.tokens > first)
        row.AddTile(a, tile, TileScores(a, tile, q, i % a.group), first, last);
    for (int d = 0; d < dim; ++d) out[int64_t{i} * dim + d] = row.out[size_t(d)] / row.sum;
    if (counters == nullptr) continue;
    ++counters->rows;
    counters->sas_dropped += row.dropped_tokens;
    counters->sas_dropped_mass += int64_t(row.dropped / (row.sum + row.dropped) * 4294967296.0);
  }
}

}  // namespace nibble::ref
