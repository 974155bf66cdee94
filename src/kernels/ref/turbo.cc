// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/turbo.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace nibble::ref {
namespace {

FlashBlock QuantizeBlock(View x, int bits, const TurboSpec& spec) {
  FlashBlock block = FlashStage1(x, kFlashRange, FlashScale::kBlock, spec.storage, spec.rounding);
  if (bits < 8) block.codes = ExpandStage2(FlashStage2(block.codes, bits, spec.form, spec.rounding));
  return block;
}

double Correction(double old_max, double new_max, const TurboSpec& spec) {
  if (old_max == -INFINITY) return 0;
  return spec.sas_correction ? SasExp(spec.softmax, old_max - new_max) : std::exp(old_max - new_max);
}

void AddBlock(const std::vector<double>& scores, const FlashBlock& v, const TurboSpec& spec,
              TurboPartial& state) {
  const double new_max = std::max(state.max, *std::max_element(scores.begin(), scores.end()));
  const double correction = Correction(state.max, new_max, spec);
  std::vector<double> p;
  double p_max = 0, p_sum = 0;
  for (const double s : scores) {
    p.push_back(SasExp(spec.softmax, s - new_max));
    p_max = std::max(p_max, p.back());
    p_sum += p.back();
    state.sas_zeros += p.back() == 0;
  }
  const double p_scale = p_max > 0 ? p_max / spec.p_levels : 1;
  std::vector<int> codes;
  int64_t code_sum = 0;
  for (const double x : p) {
    codes.push_back(RoundToCode(x / p_scale, spec.rounding, 0, spec.p_levels));
    code_sum += codes.back();
    state.p_zeros += codes.back() == 0;
  }
  state.sum = state.sum * correction + (spec.l_from_codes ? p_scale * double(code_sum) : p_sum);
  for (size_t d = 0; d < state.out.size(); ++d) {
    int64_t pv = 0;
    for (size_t n = 0; n < codes.size(); ++n) pv += int64_t{codes[n]} * v.codes[int(n)][d];
    state.out[d] = state.out[d] * correction + p_scale * v.Scale(0) * double(pv);
  }
  state.max = new_max;
  state.p_codes.push_back(codes);
}

}  // namespace

TurboCache TurboQuantize(View k, View v, const TurboSpec& spec) {
  NIBBLE_CHECK(k.rows == v.rows, "k and v do not belong together");
  TurboCache cache;
  cache.tokens = k.rows;
  for (int begin = 0; begin < k.rows; begin += spec.block_tokens) {
    const int end = std::min(k.rows, begin + spec.block_tokens);
    cache.k.push_back(QuantizeBlock(k.Slice(begin, end), spec.k_bits, spec));
    cache.v.push_back(QuantizeBlock(v.Slice(begin, end), spec.v_bits, spec));
  }
  return cache;
}

TurboPartial TurboAttendRow(const int* q8, double q_scale, const TurboCache& cache, int visible,
                            const TurboSpec& spec) {
  const size_t v_dim = cache.v.empty() ? 0 : size_t(cache.v[0].codes.dim);
  TurboPartial state{std::vector<double>(v_dim, 0.0), -INFINITY, 0, {}};
  for (size_t b = 0; b < cache.k.size() && int(b) * spec.block_tokens < visible; ++b) {
    const FlashBlock& k = cache.k[b];
    const int tokens = std::min(k.codes.rows, visible - int(b) * spec.block_tokens);
    std::vector<double> scores;
    for (int n = 0; n < tokens; ++n)
      scores.push_back(double(IntDot(q8, k.codes[n], k.codes.dim)) * q_scale * k.Scale(0) * spec.scale);
    AddBlock(scores, cache.v[b], spec, state);
  }
  return state;
}

TurboPartial MergePartials(const TurboPartial& a, const TurboPartial& b) {
  TurboPartial merged = a;
  merged.max = std::max(a.max, b.max);
  const double wa = a.max == -INFINITY ? 0 : std::exp(a.max - merged.max);
  const double wb = b.max == -INFINITY ? 0 : std::exp(b.max - merged.max);
  merged.sum = wa * a.sum + wb * b.sum;
  for (size_t d = 0; d < merged.out.size(); ++d) merged.out[d] = wa * a.out[d] + wb * b.out[d];
  merged.p_codes.insert(merged.p_codes.end(), b.p_codes.begin(), b.p_codes.end());
  merged.p_zeros += b.p_zeros;
  merged.sas_zeros += b.sas_zeros;
  return merged;
}

std::vector<double> Finish(const TurboPartial& partial) {
  std::vector<double> out = partial.out;
  for (double& x : out) x = partial.sum > 0 ? x / partial.sum : 0;
  return out;
}

AttentionResult TurboAttention(View q, View k, View v, const TurboSpec& spec) {
  AttentionResult result{Matrix(q.rows, v.dim), std::vector<double>(size_t(q.rows), -INFINITY)};
  const TurboCache cache = TurboQuantize(k, v, spec);
  for (int begin = 0; begin < q.rows; begin += spec.block_tokens) {
    const int end = std::min(q.rows, begin + spec.block_tokens);
    const FlashBlock q8 =
        FlashStage1(q.Slice(begin, end), kFlashRange, FlashScale::kBlock, spec.storage, spec.rounding);
    for (int r = begin; r < end; ++r) {
      const int visible = VisibleKeys(spec.mask, r, q.rows, k.rows);
      if (visible == 0) continue;
      const TurboPartial row = TurboAttendRow(q8.codes[r - begin], q8.Scale(0), cache, visible, spec);
      const std::vector<double> out = Finish(row);
      std::copy(out.begin(), out.end(), result.out[r]);
      result.lse[r] = row.max + std::log(row.sum);
    }
  }
  return result;
}

}  // namespace nibble::ref
