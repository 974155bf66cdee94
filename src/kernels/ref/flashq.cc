// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/flashq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace nibble::ref {
namespace {

int RoundRatio(int a, int b, Rounding rounding) { return int(Round(double(a) / b, rounding)); }

int64_t SquaredError(const Stage2Channel& c, const std::vector<int>& channel) {
  int64_t sum = 0;
  for (const int x : channel) {
    const int64_t e = c.Decode(c.Encode(x)) - x;
    sum += e * e;
  }
  return sum;
}

double Gap(View x, int begin, int end) {  // max - min over channels begin .. end
  double lo = INFINITY, hi = -INFINITY;
  for (int r = 0; r < x.rows; ++r)
    for (int d = begin; d < end; ++d) {
      lo = std::min(lo, x[r][d]);
      hi = std::max(hi, x[r][d]);
    }
  return hi - lo;
}

}  // namespace

FlashBlock FlashStage1(View x, int range, FlashScale granularity, Storage storage, Rounding rounding) {
  FlashBlock block{{}, Codes(x.rows, x.dim)};
  if (granularity == FlashScale::kBlock) block.scale.push_back(Store(AbsMax(x) / range, storage));
  for (int r = 0; r < x.rows; ++r) {
    if (granularity == FlashScale::kRow)
      block.scale.push_back(Store(AbsMax(x.Slice(r, r + 1)) / range, storage));
    const double scale = block.Scale(r);
    for (int d = 0; d < x.dim; ++d)
      block.codes[r][d] = scale > 0 ? RoundToCode(x[r][d] / scale, rounding, -range, range) : 0;
  }
  return block;
}

int Stage2Channel::Encode(int q8) const {
  const int code = grid_zero ? RoundRatio(q8, step, rounding) - base : RoundRatio(q8 - base, step, rounding);
  return std::clamp(code, 0, Levels());
}

int Stage2Channel::Decode(int code) const {
  const int q8 = grid_zero ? (code + base) * step : base + code * step;
  return saturate ? std::clamp(q8, -127, 127) : q8;
}

Stage2Channel FitStage2(const std::vector<int>& channel, int bits, Stage2Form form, Rounding rounding) {
  NIBBLE_CHECK(!channel.empty() && bits >= 2 && bits <= 4,
               "stage 2 is of 2 to 4 bits over at least one token");
  const auto [lo, hi] = std::minmax_element(channel.begin(), channel.end());
  Stage2Channel c{.bits = bits, .base = *lo, .rounding = rounding};
  const int levels = c.Levels(), floor = std::max(1, (*hi - *lo) / levels),
            ceil = std::max(1, (*hi - *lo + levels - 1) / levels);
  if (form == Stage2Form::kMinCeil || form == Stage2Form::kMinSearch) {
    c.step = ceil;
    if (form == Stage2Form::kMinCeil) return c;
    Stage2Channel narrow = c;
    narrow.step = floor;
    return SquaredError(narrow, channel) < SquaredError(c, channel) ? narrow : c;
  }
  c.step = std::max(1, RoundRatio(*hi - *lo, levels, rounding));
  c.saturate = form == Stage2Form::kPaperLiteral;
  c.grid_zero = c.saturate || form == Stage2Form::kGridZero || (form == Stage2Form::kCanonical && bits == 4);
  if (c.grid_zero) c.base = RoundRatio(*lo, c.step, rounding);
  return c;
}

Stage2Block FlashStage2(const Codes& q8, int bits, Stage2Form form, Rounding rounding) {
  Stage2Block block{{}, Codes(q8.rows, q8.dim)};
  for (int d = 0; d < q8.dim; ++d) {
    std::vector<int> channel;
    for (int r = 0; r < q8.rows; ++r) channel.push_back(q8[r][d]);
    block.channels.push_back(FitStage2(channel, bits, form, rounding));
    for (int r = 0; r < q8.rows; ++r) block.codes[r][d] = block.channels.back().Encode(q8[r][d]);
  }
  return block;
}

Codes ExpandStage2(const Stage2Block& block) {
  Codes q8(block.codes.rows, block.codes.dim);
  for (int r = 0; r < q8.rows; ++r)
    for (int d = 0; d < q8.dim; ++d) q8[r][d] = block.channels[size_t(d)].Decode(block.codes[r][d]);
  return q8;
}

int64_t FoldedPv(const int* p, const Stage2Block& block, int channel) {
  const Stage2Channel& c = block.channels[size_t(channel)];
  NIBBLE_CHECK(!c.saturate, "a saturated channel is not affine");
  int64_t p_sum = 0, code_sum = 0;
  for (int r = 0; r < block.codes.rows; ++r) {
    p_sum += p[r];
    code_sum += int64_t{p[r]} * block.codes[r][channel];
  }
  return c.grid_zero ? c.step * (code_sum + c.base * p_sum) : c.base * p_sum + c.step * code_sum;
}

FlashBuffer::FlashBuffer(float scale, int dim, Rounding rounding)
    : scale_(scale), rounding_(rounding), codes_(0, dim) {}

float FlashBuffer::Step(int exponent) const { return std::ldexp(scale_, exponent); }

void FlashBuffer::Append(const float* row) {
  int exponent = exponents_.empty() ? 0 : exponents_.back();
  if (double(clamped_since_) > kRescaleRate * double(codes_.data.size())) {
    ++exponent;
    clamped_since_ = 0;
  }
  for (int d = 0; d < codes_.dim; ++d) {
    if (!std::isfinite(row[d])) {
      codes_.data.push_back(kBroken);
      continue;
    }
    greatest_ = std::max(greatest_, std::abs(row[d]));
    const double code = Round(double(row[d] / Step(exponent)), rounding_);
    if (std::abs(code) > kFlashRange) ++clamped_, ++clamped_since_;
    codes_.data.push_back(int(std::clamp(code, double(-kFlashRange), double(kFlashRange))));
  }
  exponents_.push_back(exponent);
  ++codes_.rows;
}

double FlashBuffer::Decoded(int token, int channel) const {
  const int code = codes_[token][channel];
  return code == kBroken ? NAN : double(float(code) * Step(exponents_[size_t(token)]));
}

Codes FlashBuffer::SealedCodes() const {
  Codes sealed(codes_.rows, codes_.dim);
  for (int n = 0; n < codes_.rows; ++n)
    for (int d = 0; d < codes_.dim; ++d)
      sealed[n][d] =
          int(Round(std::ldexp(double(codes_[n][d]), exponents_[size_t(n)] - exponents_.back()), rounding_));
  return sealed;
}

float UniversalScale(float greatest, float headroom) {
  return std::max(greatest / float(kFlashRange) * headroom, 1e-6f);
}

double HeadPriority(View head) {
  std::vector<double> gaps;
  for (int d = 0; d < head.dim; ++d) gaps.push_back(Gap(head, d, d + 1));
  const double mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / head.dim;
  double variance = 0;
  for (const double g : gaps) variance += (g - mean) * (g - mean) / head.dim;
  return Gap(head, 0, head.dim) * std::sqrt(variance);
}

std::vector<bool> TwoBitHeads(const std::vector<double>& priority, int count) {
  std::vector<int> heads(priority.size());
  std::iota(heads.begin(), heads.end(), 0);
  std::sort(heads.begin(), heads.end(), [&](int a, int b) {
    return priority[size_t(a)] != priority[size_t(b)] ? priority[size_t(a)] < priority[size_t(b)] : a > b;
  });
  std::vector<bool> two_bits(priority.size(), false);
  for (int i = 0; i < count; ++i) two_bits[size_t(heads[size_t(i)])] = true;
  return two_bits;
}

double FlashBitsPerValue(double bits, int meta_bits, int tokens, int dim) {
  return bits + 2.0 * meta_bits / tokens + 16.0 / (double(tokens) * dim);
}

}  // namespace nibble::ref
