// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/code_page.h"

#include <algorithm>
#include <cmath>

#include "quant/kv/code_pages.h"
#include "quant/kv/registry.h"

namespace nibble::ref {
namespace {

constexpr float kQueryLevels = 32767;
constexpr double kWeightLevels = 32767;

int CodeAt(const std::byte* page, int bits, int64_t index) {
  const int64_t bit = index * bits;
  return int(page[bit / 8]) >> bit % 8 & ((1 << bits) - 1);
}

template <class C>
void ReadParameters(kv::PageShape s, const std::byte* page, CodePage& p) {
  if constexpr (kv::kHasTokenCodes<C>) {
    for (int t = 0; t < s.tokens; ++t) {
      p.step.push_back(HalfToFloat(kv::LoadU16(page + C::ScaleOffset(s) + 2 * t)));
      p.base.push_back(HalfToFloat(kv::LoadU16(page + C::MinOffset(s) + 2 * t)));
    }
  }
  if constexpr (kv::HasChannelCodes<C>) {
    p.by_channel = true;
    p.page_scale = kv::Int8Scale<C>(s, page);
    for (int d = 0; d < s.head_dim; ++d) {
      const int step = int(page[C::StepOffset(s) + d]), base = int(int8_t(page[C::BaseOffset(s) + d]));
      p.step.push_back(float(step));
      p.base.push_back(float(C::Channel::kGrid ? base * step : base));
    }
  }
}

}  // namespace

CodePage ReadCodePage(kv::CodecId codec, kv::PageShape shape, const std::byte* page) {
  CodePage p;
  Visit(kv::Codecs{}, codec, [&]<class C>() {
    p.bits = kv::CodeBits<C>(shape);
    if (p.bits != 0) ReadParameters<C>(shape, page, p);
  });
  for (int i = 0; p.bits != 0 && i < shape.tokens * shape.head_dim; ++i)
    p.code.push_back(CodeAt(page, p.bits, i));
  return p;
}

std::vector<double> CodeScores(const CodePage& k, const float* q, int head_dim) {
  std::vector<float> x(q, q + head_dim);
  if (k.by_channel)
    for (size_t d = 0; d < x.size(); ++d) x[d] *= k.step[d];
  float greatest = 0;
  for (const float value : x) greatest = std::max(greatest, std::fabs(value));
  const float to_code = greatest > 0 ? kQueryLevels / greatest : 0, scale = greatest / kQueryLevels;
  std::vector<double> rounded;
  for (const float value : x) rounded.push_back(double(scale) * std::nearbyint(value * to_code));

  const int middle = 1 << (k.bits - 1);
  const auto offset = [&](size_t i) { return double(k.step[i]) * middle + double(k.base[i]); };
  std::vector<double> scores;
  for (size_t t = 0; t * size_t(head_dim) < k.code.size(); ++t) {
    double codes = 0, rest = 0;
    for (size_t d = 0; d < size_t(head_dim); ++d) {
      codes += rounded[d] * (k.code[t * size_t(head_dim) + d] - middle);
      rest += double(q[d]) * offset(k.by_channel ? d : t);
    }
    scores.push_back(k.by_channel ? double(k.page_scale) * (codes + rest) : double(k.step[t]) * codes + rest);
  }
  return scores;
}

std::vector<double> WeighCodes(const CodePage& v, const std::vector<double>& p, int head_dim) {
  std::vector<double> x(p);
  double greatest = 0;
  for (size_t t = 0; t < x.size(); ++t) {
    if (p[t] != 0 && !v.by_channel) x[t] *= double(v.step[t]);
    greatest = std::max(greatest, x[t]);
  }
  const double scale = greatest > 0 ? std::ldexp(1.0, std::ilogb(float(greatest)) - 14) : 0;
  for (double& weight : x)
    weight = scale > 0 ? scale * std::min(std::nearbyint(weight / scale), kWeightLevels) : 0;

  std::vector<double> out(size_t(head_dim), 0.0);
  for (size_t d = 0; d < out.size(); ++d) {
    double codes = 0, rest = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      if (p[t] == 0) continue;
      codes += x[t] * v.code[t * out.size() + d];
      rest += p[t] * (v.by_channel ? 1 : double(v.base[t]));
    }
    out[d] = v.by_channel ? double(v.page_scale) * (codes * double(v.step[d]) + rest * double(v.base[d]))
                          : codes + rest;
  }
  return out;
}

}  // namespace nibble::ref
