// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/sage.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace nibble::ref {
namespace {

constexpr double kLog2E = std::numbers::log2e;

// Scores of one head before the softmax: what smoothing leaves, quantized, plus the delta-S row of the block.
class Scores {
 public:
  Scores(View q, View k, const SageSpec& spec) : spec_(spec), center_(size_t(k.dim), 0.0) {
    if (spec.smooth_k) center_ = spec.k_center != nullptr ? *spec.k_center : RowMean(k);
    k_ = MinusRow(k, center_);
    q_ = Copy(q);
    if (spec.smooth_q) SmoothQueries(q);
    if (!spec.quantize_qk) return;
    q8_ = QuantizeGroups(q_, spec.q);
    k8_ = QuantizeGroups(k_, spec.k);
  }

  double At(int row, int token) const {
    double s = spec_.quantize_qk ? double(IntDot(q8_.codes[row], k8_.codes[token], q_.dim)) *
                                       (q8_.Scale(row) * k8_.Scale(token))
                                 : Dot(q_[row], k_[token], q_.dim);
    if (spec_.smooth_q) s += delta_s_[row / spec_.q.groups.block_rows][token];
    return s;
  }
  // q . center, which smoothing K took from every score of the row.
  double Removed(const double* q) const { return Dot(q, center_.data(), q_.dim); }

 private:
  void SmoothQueries(View q) {
    const int block = spec_.q.groups.block_rows, blocks = (q.rows + block - 1) / block;
    delta_s_ = Matrix(blocks, k_.rows);
    for (int b = 0; b < blocks; ++b) {
      const int begin = b * block, end = std::min(q.rows, begin + block);
      const std::vector<double> mean = RowMean(q.Slice(begin, end));
      for (int r = begin; r < end; ++r)
        for (int d = 0; d < q.dim; ++d) q_[r][d] -= mean[d];
      for (int n = 0; n < k_.rows; ++n) delta_s_[b][n] = Dot(mean.data(), k_[n], q.dim);
    }
  }

  const SageSpec& spec_;
  std::vector<double> center_;
  Matrix q_, k_, delta_s_;
  QuantizedRows q8_, k8_;
};

double RoundP(PvFormat format, double p) {
  switch (format) {
    case PvFormat::kExact:
      return p;
    case PvFormat::kF16:
      return RoundToF16(p);
    case PvFormat::kE4M3:
      return RoundToFp8(Fp8::kE4M3, p);
    case PvFormat::kE5M2:
      return RoundToFp8(Fp8::kE5M2, p);
    case PvFormat::kInt8:
      return Round(p * 127, Rounding::kEven) / 127;
  }
  return p;
}

// The loop over tiles of one query row: base-2 softmax with a running maximum.
struct Row {
  double max = -INFINITY, sum = 0;
  std::vector<double> out;  // [dim] sum of P V so far, in the units of SageValues::value

  void AddTile(const std::vector<double>& t, int first, const SageValues& v, const SageSpec& spec) {
    const double tile_max = *std::max_element(t.begin(), t.end()) - spec.p_offset;
    const double new_max = std::max(max, tile_max), alpha = std::exp2(max - new_max);
    max = new_max;
    sum *= alpha;
    std::vector<double> p(t.size());
    for (size_t i = 0; i < t.size(); ++i) {
      const double exact = std::exp2(t[i] - max);
      sum += exact;  // of the values before rounding, as the kernels do
      p[i] = RoundP(spec.pv, exact);
    }
    for (size_t d = 0; d < out.size(); ++d) AddChannel(p, first, d, alpha, v, spec);
  }

  void AddChannel(const std::vector<double>& p, int first, size_t d, double alpha, const SageValues& v,
                  const SageSpec& spec) {
    const PvAccumulator& a = spec.accumulator;
    const double before = alpha * out[d];
    double r = a.two_level ? 0 : a.Round(before);
    for (size_t begin = 0; begin < p.size(); begin += size_t(a.step)) {
      double s = 0;
      const size_t end = std::min(p.size(), begin + size_t(a.step));
      for (size_t i = begin; i < end; ++i) s += p[i] * v.value[first + int(i)][d];
      r = a.Round(r + s);
    }
    out[d] = !a.two_level ? r : (a.kind == PvAccumulator::Kind::kExact ? before + r : RoundToF32(before + r));
  }
};

void AttendRow(const Scores& scores, int row, int visible, const SageValues& v, const SageSpec& spec,
               Row& state) {
  for (int first = 0; first < visible; first += spec.tile_tokens) {
    std::vector<double> t;
    for (int n = first; n < std::min(visible, first + spec.tile_tokens); ++n)
      t.push_back(scores.At(row, n) * spec.scale * kLog2E);
    state.AddTile(t, first, v, spec);
  }
}

View HeadOf(View x, int begin, int end, int head, int dim) {
  return {x.data + begin * x.stride + int64_t{head} * dim, end - begin, dim, x.stride};
}

}  // namespace

double PvAccumulator::Round(double x) const {
  return kind == Kind::kExact ? x : (kind == Kind::kFp22 ? TruncateToFp22(x) : RoundToF16(x));
}

SageValues QuantizeValues(View v, const SageSpec& spec) {
  SageValues out{Copy(v), std::vector<double>(size_t(v.dim), 1.0), std::vector<double>(size_t(v.dim), 0.0)};
  if (spec.smooth_v) {
    out.mean = RowMean(v);
    out.value = MinusRow(v, out.mean);
  }
  for (int d = 0; d < v.dim; ++d) {
    double amax = 0;
    for (int n = 0; n < v.rows; ++n) amax = std::max(amax, std::abs(out.value[n][d]));
    const bool fp8 = spec.pv == PvFormat::kE4M3 || spec.pv == PvFormat::kE5M2;
    const double max = fp8 ? spec.v_max : 127.0;
    if (fp8 || spec.pv == PvFormat::kInt8) out.scale[d] = amax / max;
    for (int n = 0; n < v.rows; ++n) {
      double& x = out.value[n][d];
      const double scaled = amax > 0 ? x * (max / amax) : 0;
      if (spec.pv == PvFormat::kF16) x = RoundToF16(x);
      if (fp8) x = RoundToFp8(spec.pv == PvFormat::kE4M3 ? Fp8::kE4M3 : Fp8::kE5M2, scaled);
      if (spec.pv == PvFormat::kInt8) x = RoundToCode(scaled, Rounding::kEven, -127, 127);
    }
  }
  return out;
}

SageResult SageAttention(View q, View k, View v, const SageSpec& spec) {
  NIBBLE_CHECK(q.dim == k.dim && k.rows == v.rows, "q, k and v do not belong together");
  SageResult result{Matrix(q.rows, v.dim), std::vector<double>(size_t(q.rows), -INFINITY),
                    std::vector<double>(size_t(q.rows), -INFINITY)};
  if (k.rows == 0) return result;
  const Scores scores(q, k, spec);
  const SageValues values = QuantizeValues(v, spec);
  for (int r = 0; r < q.rows; ++r) {
    const int visible = VisibleKeys(spec.mask, r, q.rows, k.rows);
    if (visible == 0) continue;
    Row row{.out = std::vector<double>(size_t(v.dim), 0.0)};
    AttendRow(scores, r, visible, values, spec, row);
    for (int d = 0; d < v.dim; ++d)
      result.out[r][d] = row.out[size_t(d)] / row.sum * values.scale[d] + values.mean[d];
    result.lse2[r] = row.max + std::log2(row.sum);
    result.lse[r] = result.lse2[r] / kLog2E + spec.scale * scores.Removed(q[r]);
  }
  return result;
}

SageResult SageAttentionPacked(const PackedHeads& b, const SageSpec& spec) {
  NIBBLE_CHECK(b.heads % b.kv_heads == 0, "heads must be a multiple of kv_heads");
  const int dim = b.q.dim / b.heads, v_dim = b.v.dim / b.kv_heads;
  const size_t rows = size_t(b.q.rows) * size_t(b.heads);
  SageResult all{Matrix(b.q.rows, b.heads * v_dim), std::vector<double>(rows), std::vector<double>(rows)};
  for (size_t s = 0; s + 1 < b.q_offsets.size(); ++s)
    for (int h = 0; h < b.heads; ++h) {
      const int kv = h / (b.heads / b.kv_heads), q0 = b.q_offsets[s];
      const View q = HeadOf(b.q, q0, b.q_offsets[s + 1], h, dim);
      const View k = HeadOf(b.k, b.k_offsets[s], b.k_offsets[s + 1], kv, dim);
      const View v = HeadOf(b.v, b.k_offsets[s], b.k_offsets[s + 1], kv, v_dim);
      const SageResult one = SageAttention(q, k, v, spec);
      for (int r = 0; r < q.rows; ++r) {
        std::copy(one.out[r], one.out[r] + v_dim, all.out[q0 + r] + int64_t{h} * v_dim);
        all.lse[size_t(q0 + r) * size_t(b.heads) + size_t(h)] = one.lse[r];
        all.lse2[size_t(q0 + r) * size_t(b.heads) + size_t(h)] = one.lse2[r];
      }
    }
  return all;
}

SageSpec Sage2Int8(int head_dim) {
  SageSpec spec;
  spec.scale = 1 / std::sqrt(double(head_dim));
  return spec;
}

SageSpec Sage2Int4(int head_dim) {
  SageSpec spec = Sage2Int8(head_dim);
  spec.q.levels = spec.k.levels = 7;
  spec.smooth_q = true;
  return spec;
}

SageSpec Sage2PlusPlus(int head_dim) {
  SageSpec spec = Sage2Int8(head_dim);
  spec.v_max = 2.25;
  spec.accumulator = {PvAccumulator::Kind::kF16, 32, true};
  return spec;
}

SageSpec Sage1(int head_dim) {
  SageSpec spec = Sage2Int8(head_dim);
  spec.q.groups.granularity = spec.k.groups.granularity = Granularity::kBlock;
  spec.pv = PvFormat::kF16;
  spec.p_offset = 0;
  spec.accumulator = {PvAccumulator::Kind::kF16, 16, true};
  return spec;
}

SageSpec Sage1Int8Pv(int head_dim) {
  SageSpec spec = Sage1(head_dim);
  spec.pv = PvFormat::kInt8;
  spec.accumulator = {};
  return spec;
}

}  // namespace nibble::ref
