// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "quant/kv/int8_codes.h"
#include "quant/kv/registry.h"

namespace nibble::ref {
namespace {

float RawElement(DType type, const std::byte* raw, int64_t index) {
  if (type == DType::kF32) {
    float f;
    std::memcpy(&f, raw + 4 * index, 4);
    return f;
  }
  uint16_t u;
  std::memcpy(&u, raw + 2 * index, 2);
  return type == DType::kF16 ? HalfToFloat(u) : Bf16ToFloat(u);
}

float OpenElement(const AttentionArgs& a, DType type, const std::byte* raw, int64_t index) {
  if (a.tail == kv::Tail::kFloat) return RawElement(type, raw, index);
  return kv::Int8Tail::Value(a.page, raw, int(index / a.page.head_dim), int(index % a.page.head_dim));
}

std::vector<float> DecodePage(const kv::CodecInfo& codec, kv::PageShape s, const std::byte* page) {
  std::vector<float> rows(size_t(s.tokens) * size_t(s.head_dim));
  for (int t = 0; t < s.tokens; ++t) codec.decode_row(s, page, t, &rows[size_t(t * s.head_dim)]);
  return rows;
}

float AbsMax(const float* x, int count) {
  float max = 0;
  for (int i = 0; i < count; ++i) max = std::max(max, std::fabs(x[i]));
  return max;
}

// RowCodes to +-levels of a group whose greatest magnitude is amax.
void AppendCodes(const float* x, int count, float amax, float levels, RowCodes& to) {
  to.scale.push_back(amax / levels);
  for (int i = 0; i < count; ++i)
    to.code.push_back(amax > 0 ? int(std::nearbyint(x[i] * (levels / amax))) : 0);
}

// The scale of a page whose codes are INT8 (FlashQ), or NaN.
float PageCodeScale(kv::CodecId codec, kv::PageShape shape, const std::byte* page) {
  float scale = NAN;
  Visit(kv::Codecs{}, codec, [&]<class C>() {
    if constexpr (kv::HasInt8Codes<C>) scale = kv::Int8Scale<C>(shape, page);
  });
  return scale;
}

RowCodes CodesOfPage(const std::vector<float>& rows, int tokens, float scale) {
  RowCodes c;
  c.scale.assign(size_t(tokens), scale);
  for (const float x : rows) c.code.push_back(scale > 0 ? int(std::lround(double(x) / double(scale))) : 0);
  return c;
}

// Nearest even, saturating.
double RoundToE4m3(double x) {
  const double a = std::fabs(x);
  if (a == 0) return 0;
  const double step = std::ldexp(1.0, std::max(std::ilogb(a), -6) - 3);
  return std::copysign(std::min(448.0, std::nearbyint(a / step) * step), x);
}

// Toward zero to 13 bits of mantissa.
double TruncateToFp22(double x) {
  if (x == 0) return 0;
  const double step = std::ldexp(1.0, std::ilogb(x) - 13);
  return std::trunc(x / step) * step;
}

float LevelsOf(QkArith qk) { return qk == QkArith::kInt4Thread ? 7.0f : 127.0f; }

RowCodes QuantizeKeys(const AttentionArgs& a, std::vector<float> k, const std::byte* page) {
  const int dim = a.page.head_dim, tokens = a.page.tokens;
  const QkArith qk = a.arithmetic.qk;
  const float page_scale = PageCodeScale(a.k_codec, a.page, page);
  if (a.k_mean == nullptr && qk != QkArith::kInt4Thread && !std::isnan(page_scale))
    return CodesOfPage(k, tokens, page_scale);
  const auto group = [&](int t) { return qk == QkArith::kInt8Block ? 0 : t % 8 / 2; };
  float amax[4] = {};
  for (int t = 0; t < tokens; ++t) {
    float* row = &k[size_t(t * dim)];
    for (int d = 0; a.k_mean != nullptr && d < dim; ++d) row[d] -= a.k_mean[d];
    amax[group(t)] = std::max(amax[group(t)], AbsMax(row, dim));
  }
  RowCodes c;
  for (int t = 0; t < tokens; ++t) AppendCodes(&k[size_t(t * dim)], dim, amax[group(t)], LevelsOf(qk), c);
  return c;
}

// One query row minus the mean.
RowCodes QuantizeQuery(const AttentionArgs& a, const float* q, const float* mean) {
  const int dim = a.page.head_dim;
  std::vector<float> row(q, q + dim);
  for (int d = 0; mean != nullptr && d < dim; ++d) row[size_t(d)] -= mean[d];
  RowCodes c;
  AppendCodes(row.data(), dim, AbsMax(row.data(), dim), LevelsOf(a.arithmetic.qk), c);
  return c;
}

void RoundValues(const AttentionArgs& a, const std::byte* page, Tile& tile) {
  const int dim = a.page.head_dim, tokens = a.page.tokens;
  const PvArith pv = a.arithmetic.pv;
  tile.v_code.resize(tile.v.size());
  tile.v_factor.assign(size_t(dim), 1.0);
  if (pv == PvArith::kInt8) {
    const float scale = PageCodeScale(a.v_codec, a.page, page);
    RowCodes c;
    if (std::isnan(scale)) {
      AppendCodes(tile.v.data(), tokens * dim, AbsMax(tile.v.data(), tokens * dim), 127, c);
    } else {
      c = CodesOfPage(tile.v, tokens, scale);
    }
    tile.v_code.assign(c.code.begin(), c.code.end());
    tile.v_factor.assign(size_t(dim), double(c.scale[0]));
    return;
  }
  const float greatest = pv == PvArith::kFp8 ? 448.0f : 2.25f;
  for (int d = 0; d < dim; ++d) {
    float amax = 0;
    for (int t = 0; t < tokens; ++t) amax = std::max(amax, std::fabs(tile.v[size_t(t * dim + d)]));
    if (pv != PvArith::kF16) tile.v_factor[size_t(d)] = double(amax) / (double(greatest) * 448);
    for (int t = 0; t < tokens; ++t) {
      const float x = tile.v[size_t(t * dim + d)];
      tile.v_code[size_t(t * dim + d)] = pv == PvArith::kF16
                                             ? double(HalfToFloat(FloatToHalf(x)))
                                             : (amax > 0 ? RoundToE4m3(double(x * (greatest / amax))) : 0);
    }
  }
}

double RoundToF16(double x) { return double(HalfToFloat(FloatToHalf(float(x)))); }

double RoundWeight(PvArith pv, double p) {
  return pv == PvArith::kF16 ? RoundToF16(p) : RoundToE4m3(p * 448);
}

}  // namespace

std::vector<Tile> MakeTiles(const AttentionArgs& a, CodePages codes) {
  std::vector<Tile> tiles;
  const int dim = a.page.head_dim;
  const kv::CodecInfo &k_codec = kv::Get(a.k_codec), &v_codec = kv::Get(a.v_codec);
  for (int i = 0; i < (a.page_list != nullptr ? a.list_len : a.pages); ++i) {
    const int page = a.page_list != nullptr ? a.page_list[i] : i;
    Tile t{.start = int64_t{page} * a.page.tokens, .tokens = a.page.tokens, .sealed = true};
    t.k = DecodePage(k_codec, a.page, a.k_pages[page]);
    t.v = DecodePage(v_codec, a.page, a.v_pages[page]);
    if (IsInteger(a.arithmetic.qk)) t.k_codes = QuantizeKeys(a, t.k, a.k_pages[page]);
    if (!IsFloat(a.arithmetic.pv)) RoundValues(a, a.v_pages[page], t);
    if (codes == CodePages::kIntegers && !IsInteger(a.arithmetic.qk))
      t.k_page = ReadCodePage(a.k_codec, a.page, a.k_pages[page]);
    if (codes == CodePages::kIntegers && IsFloat(a.arithmetic.pv))
      t.v_page = ReadCodePage(a.v_codec, a.page, a.v_pages[page]);
    tiles.push_back(std::move(t));
  }
  Tile raw{.start = a.position - a.position % a.page.tokens};
  raw.tokens = int(a.position - raw.start) + a.rows;
  for (int64_t i = 0; i < int64_t{raw.tokens} * dim; ++i) {
    raw.k.push_back(OpenElement(a, k_codec.raw, a.k_raw, i));
    raw.v.push_back(OpenElement(a, v_codec.raw, a.v_raw, i));
  }
  tiles.push_back(std::move(raw));
  return tiles;
}

std::vector<double> TileScores(const AttentionArgs& a, const Tile& tile, const float* q, int group_head) {
  const int dim = a.page.head_dim;
  if (tile.k_page.bits != 0) {
    std::vector<double> scores = CodeScores(tile.k_page, q, dim);
    for (double& s : scores) s *= double(a.scale);
    return scores;
  }
  const bool integer = tile.sealed && IsInteger(a.arithmetic.qk);
  const float* mean = integer && a.q_mean != nullptr ? a.q_mean + group_head * dim : nullptr;
  const RowCodes codes = integer ? QuantizeQuery(a, q, mean) : RowCodes{};
  std::vector<double> scores;
  for (int t = 0; t < tile.tokens; ++t) {
    const float* k = &tile.k[size_t(t * dim)];
    double s = 0;
    for (int d = 0; d < dim; ++d) {
      const double center = integer && a.k_mean != nullptr ? double(a.k_mean[d]) : 0;
      if (!integer) {
        s += double(q[d]) * double(k[d]);
        continue;
      }
      s += codes.code[size_t(d)] * double(codes.scale[0]) * tile.k_codes.code[size_t(t * dim + d)] *
           double(tile.k_codes.scale[size_t(t)]);
      s += double(q[d]) * center;
      if (mean != nullptr) s += double(mean[d]) * (double(k[d]) - center);
    }
    scores.push_back(s * double(a.scale));
  }
  return scores;
}

std::vector<double> WeighTile(const AttentionArgs& a, const Tile& tile, const std::vector<double>& p) {
  const int dim = a.page.head_dim;
  const PvArith pv = a.arithmetic.pv;
  if (tile.v_page.bits != 0) return WeighCodes(tile.v_page, p, dim);
  std::vector<double> out(size_t(dim), 0.0);
  if (!tile.sealed || IsFloat(pv)) {
    for (int t = 0; t < tile.tokens; ++t)
      for (int d = 0; d < dim; ++d) out[size_t(d)] += p[size_t(t)] * double(tile.v[size_t(t * dim + d)]);
    return out;
  }
  std::vector<double> weight(p);
  double factor = 1;
  if (pv == PvArith::kInt8) {
    factor = *std::max_element(p.begin(), p.end()) / 119;
    for (double& x : weight) x = factor > 0 ? std::nearbyint(x / factor) : 0;
  } else {
    for (double& x : weight) x = RoundWeight(pv, x);
  }
  const int step = pv == PvArith::kInt8 ? tile.tokens : (pv == PvArith::kF16 ? 16 : 32);
  for (int d = 0; d < dim; ++d) {
    double sum = 0;
    for (int begin = 0; begin < tile.tokens; begin += step) {
      double part = 0;
      for (int t = begin; t < begin + step; ++t) part += weight[size_t(t)] * tile.v_code[size_t(t * dim + d)];
      sum += part;
      if (pv == PvArith::kFp8) sum = TruncateToFp22(sum);
      if (pv == PvArith::kFp8F16 || pv == PvArith::kF16) sum = RoundToF16(sum);
    }
    out[size_t(d)] = sum * factor * tile.v_factor[size_t(d)];
  }
  return out;
}

double WeightOf(const Arithmetic& how, double x) {
  if (how.softmax == SoftmaxKind::kExact) return std::exp(x);
  if (x < -16) return 0;
  const SasPolynomial c = PolynomialOf(how);
  const double y = c.base2 ? -x * 1.4426950408889634 : -x;
  const double n = c.base2 ? std::floor(y) : std::min(std::floor(y), 15.0), t = y - n;
  const double cubic = ((double(c.c3) * t + double(c.c2)) * t + double(c.c1)) * t + double(c.c0);
  return cubic * (c.base2 ? std::exp2(-n) : std::exp(-n));
}

}  // namespace nibble::ref
