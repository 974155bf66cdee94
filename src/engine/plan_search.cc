// SPDX-License-Identifier: Apache-2.0
#include "engine/plan_search.h"

#include <algorithm>
#include <cmath>

#include "quant/kv/head_mix.h"
#include "quant/kv/registry.h"
#include "recipe/two_bit_heads.h"

namespace nibble {
namespace {

// A candidate must lower the squared error by this share: what is gained on one text and lost on another is
// not worth a deviation from the plain recipe.
constexpr double kGain = 0.03;

bool IsFloatCodec(kv::CodecId id) { return id <= kv::CodecId::kBF16; }
// SparQ takes a query's greatest channels for those that matter: with keys of like size in all channels they
// are.
bool KMatters(const AttentionRecipe& r) {
  return !IsFloatCodec(r.k) || IsInteger(r.arithmetic.qk) || r.select.kind == SelectKind::kSparq;
}
bool VMatters(const AttentionRecipe& r) { return !IsFloatCodec(r.v) || !IsFloat(r.arithmetic.pv); }

}  // namespace

Status PlanSearch::Check(const AttentionRecipe& r) {
  if (KMatters(r) || VMatters(r)) return {};
  return Error(
      Code::kInvalidArgument,
      "recipe '{}' leaves nothing to choose; calibrate is for quantized caches, integer arithmetic and "
      "select=sparq",
      ToString(r));
}

Result<OutputError> PlanSearch::Total(const LayerPlan& plan) {
  NIBBLE_ASSIGN(const std::vector<OutputError> heads, trial_.Run(Apply(recipe_, plan), plan));
  OutputError sum;
  for (const OutputError& e : heads) sum.Add(e);
  return sum;
}

PlanSearch::Channels PlanSearch::Statistics(Side side, bool shift) const {
  const std::vector<float>& x = side == Side::kK ? rows_.k : rows_.v;
  const size_t width = size_t(rows_.kv_heads) * size_t(rows_.head_dim), tokens = x.size() / width;
  std::vector<double> sum(width), square(width);
  Channels c{.mean = std::vector<float>(width), .max = std::vector<float>(width), .rms = {}};
  for (size_t i = 0; i < x.size(); ++i) sum[i % width] += double(x[i]);
  if (shift)
    for (size_t i = 0; i < width; ++i) c.mean[i] = float(sum[i] / double(tokens));
  for (size_t i = 0; i < x.size(); ++i) {
    const float y = x[i] - c.mean[i % width];
    c.max[i % width] = std::max(c.max[i % width], std::fabs(y));
    square[i % width] += double(y) * double(y);
  }
  for (const double s : square) c.rms.push_back(float(std::sqrt(s / double(tokens))));
  return c;
}

// Scales have geometric mean 1: only their ratios matter, and 16-bit raw pages keep their range.
void PlanSearch::Set(Side side, const Candidate& candidate, int head, LayerPlan* plan) const {
  const auto dim = size_t(rows_.head_dim), first = size_t(head) * dim, width = dim * size_t(rows_.kv_heads);
  const Channels c = Statistics(side, candidate.shift);
  std::vector<float>& scale = side == Side::kK ? plan->k_scale : plan->v_scale;
  std::vector<float>& shift = side == Side::kK ? plan->k_shift : plan->v_shift;
  scale.resize(width, 1.0f), shift.resize(width, 0.0f);
  const std::vector<float>& statistic = candidate.rms ? c.rms : c.max;
  std::vector<double> s(dim);
  const double floor = 1e-4 * double(*std::max_element(statistic.begin() + int64_t(first),
                                                       statistic.begin() + int64_t(first + dim)));
  for (size_t i = 0; i < dim; ++i) s[i] = std::max(double(statistic[first + i]), floor);
  for (size_t i = 0; side == Side::kK && i < dim / 2; ++i)
    s[i] = s[i + dim / 2] = std::max(s[i], s[i + dim / 2]);
  double log_mean = 0;
  for (double& x : s) log_mean += (x = floor > 0 ? double(candidate.power) * std::log(x) : 0) / double(dim);
  for (size_t i = 0; i < dim; ++i) {
    scale[first + i] = float(std::exp(s[i] - log_mean));
    shift[first + i] = c.mean[first + i];
  }
}

// The heads whose output suffers least from 2 bits. A head's error does not depend on the widths of others,
// so a trial with all heads in 2 bits and one with all in 4 say what each costs. Kept unless the heads that
// the sequences of the text choose by themselves are better.
Status PlanSearch::SearchTwoBit(Side side) {
  const bool is_v = side == Side::kV;
  const int count = TwoBitHeads(recipe_, is_v, rows_.kv_heads);
  if (count == 0 || count == rows_.kv_heads) return {};
  std::vector<OutputError> errors[2];  // all heads in 4 bits, in 2
  for (const int two_bit : {0, 1}) {
    AttentionRecipe alike = Apply(recipe_, plan_);
    (is_v ? alike.v_two_bit : alike.k_two_bit) = float(two_bit);
    NIBBLE_ASSIGN(errors[two_bit], trial_.Run(alike, plan_));
  }
  std::vector<kv::HeadPlace> heads(errors[0].size());
  for (size_t h = 0; h < heads.size(); ++h) heads[h].priority = errors[1][h].error2 - errors[0][h].error2;
  kv::PlaceByPriority(heads, count);
  LayerPlan tried = plan_;
  std::vector<bool>& chosen = is_v ? tried.v_two_bit : tried.k_two_bit;
  std::string words;
  for (size_t h = 0; h < heads.size(); ++h) {
    chosen.push_back(heads[h].two_bit != 0);
    if (chosen.back()) words += fmt::format(" {}", h);
  }
  NIBBLE_ASSIGN(const OutputError own, Total(plan_));
  NIBBLE_ASSIGN(const OutputError planned, Total(tried));
  const bool keep = planned.error2 <= own.error2;
  if (keep) plan_ = std::move(tried);
  words_ += fmt::format("{} heads in 2 bits:{}; ", is_v ? "v" : "k", keep ? words : " by sequence");
  return {};
}

Status PlanSearch::SearchBalance(Side side) {
  std::vector<Candidate> candidates;
  for (const bool shift : {false, true}) {
    if (shift) candidates.push_back({.shift = true});
    for (const bool rms : {false, true})
      for (const float power : {0.5f, 0.75f, 1.0f}) candidates.push_back({shift, rms, power});
  }
  // What a requantizing codec loses in bits a balance must win back: a bit is a factor of four.
  const bool requantizes = kv::Get(side == Side::kK ? recipe_.k : recipe_.v).requantizes;
  const auto bits = [&](size_t h) {
    const HeadCost& c = trial_.costs()[h];
    return side == Side::kK ? c.k_bits : c.v_bits;
  };
  NIBBLE_ASSIGN(const std::vector<OutputError> plain, trial_.Run(Apply(recipe_, plan_), plan_));
  std::vector<double> least, plain_bits;
  for (size_t h = 0; h < plain.size(); ++h) plain_bits.push_back(bits(h));
  for (const OutputError& e : plain) least.push_back(e.error2 * (1 - kGain));
  std::vector<Candidate> chosen(plain.size());
  for (const Candidate& c : candidates) {
    LayerPlan tried = plan_;
    for (int h = 0; h < rows_.kv_heads; ++h) Set(side, c, h, &tried);
    NIBBLE_ASSIGN(const std::vector<OutputError> errors, trial_.Run(Apply(recipe_, tried), tried));
    for (size_t h = 0; h < errors.size(); ++h) {
      const double error = errors[h].error2 * (requantizes ? std::pow(4, bits(h) - plain_bits[h]) : 1);
      if (error < least[h]) least[h] = error, chosen[h] = c;
    }
  }
  words_ += side == Side::kK ? "k" : "; v";
  for (size_t h = 0; h < chosen.size(); ++h) {
    const Candidate& c = chosen[h];
    words_ += c.power > 0 ? fmt::format(" {}^{}", c.rms ? "rms" : "max", c.power) : std::string(" 1");
    words_ += c.shift ? "-mean" : "";
    if (c.shift || c.power > 0) Set(side, c, int(h), &plan_);
  }
  return {};
}

// Vectors of the whole text instead of the sequence's own pages.
Status PlanSearch::SearchMeans() {
  if (recipe_.arithmetic.smooth == Smooth::kNone) return {};
  const auto mean_of = [&](const std::vector<float>& x, int heads, auto transform) {
    const size_t width = size_t(heads) * size_t(rows_.head_dim), tokens = x.size() / width;
    std::vector<double> sum(width);
    for (size_t i = 0; i < x.size(); ++i) sum[i % width] += double(x[i]);
    std::vector<float> mean;
    for (size_t i = 0; i < width; ++i) mean.push_back(transform(float(sum[i] / double(tokens)), i));
    return mean;
  };
  const auto at = [](const std::vector<float>& v, size_t i, float fallback) {
    return v.empty() ? fallback : v[i];
  };
  const size_t group = size_t(rows_.heads / rows_.kv_heads), dim = size_t(rows_.head_dim);
  const auto try_one = [&](LayerPlan tried, const char* word) -> Status {
    NIBBLE_ASSIGN(const OutputError now, Total(plan_));
    NIBBLE_ASSIGN(const OutputError then, Total(tried));
    if (then.error2 < now.error2 * (1 - kGain)) plan_ = std::move(tried), words_ += word;
    return {};
  };
  LayerPlan tried = plan_;
  tried.k_mean = mean_of(rows_.k, rows_.kv_heads, [&](float x, size_t i) {
    return (x - at(plan_.k_shift, i, 0)) / at(plan_.k_scale, i, 1);
  });
  NIBBLE_RETURN_IF_ERROR(try_one(std::move(tried), "; k mean"));
  if (recipe_.arithmetic.smooth != Smooth::kQK) return {};
  tried = plan_;
  tried.q_mean = mean_of(rows_.q, rows_.heads, [&](float x, size_t i) {
    return x * at(plan_.k_scale, i / dim / group * dim + i % dim, 1);
  });
  return try_one(std::move(tried), "; q mean");
}

Status PlanSearch::SearchSage() {
  const Arithmetic& a = recipe_.arithmetic;
  if (a.qk == QkArith::kInt4Thread) {
    NIBBLE_ASSIGN(const OutputError e, Total(plan_));
    const double score = e.Cosine() * (1 - e.RelativeL1());
    plan_.qk = score >= min_score_ ? QkArith::kInt4Thread : QkArith::kInt8Thread;
    words_ += fmt::format("; qk {} (score {:.4f})", score >= min_score_ ? "int4" : "int8", score);
  }
  if (a.pv == PvArith::kF16 && IsInteger(a.qk)) {  // SageAttention 1: the all-INT8 kernel where it is safe
    constexpr double kCosine = 0.998;
    LayerPlan tried = plan_;
    tried.pv = PvArith::kInt8;
    NIBBLE_ASSIGN(const OutputError e, Total(tried));
    if (e.Cosine() > kCosine) plan_ = std::move(tried);
    words_ += fmt::format("; pv {} (cosine {:.5f})", plan_.pv ? "int8" : "f16", e.Cosine());
  }
  return {};
}

Result<std::vector<HeadOptions>> PlanSearch::SparqOptions() {
  const SparqParams& own = recipe_.select.sparq;
  std::vector<HeadOptions> heads;
  for (int h = 0; h < rows_.kv_heads; ++h)
    heads.push_back({HeadOptions::What::kSparq, h, own_costs_[size_t(h)].bytes_read, {}});
  const int most = budget_ > 1 ? 4 : 2;  // times the recipe's own
  for (int quarters = 1; quarters <= 4 * most; quarters *= 2)
    for (int halves = 1; halves <= 2 * most; halves *= 2) {
      const int r = own.r * quarters / 4, k = own.k * halves / 2;
      const int forced = std::max(own.local, 0) + own.sinks;
      if (r < 1 || r > rows_.head_dim || k < std::max(forced, 1) || (own.local < 0 && k / 4 + own.sinks > k))
        continue;
      LayerPlan tried = plan_;
      tried.sparq_r.assign(heads.size(), r), tried.sparq_k.assign(heads.size(), k);
      NIBBLE_ASSIGN(const std::vector<OutputError> errors, trial_.Run(Apply(recipe_, tried), tried));
      double norm2 = 0;
      for (const OutputError& e : errors) norm2 += e.norm2;
      for (size_t h = 0; h < heads.size(); ++h)
        heads[h].options.push_back({trial_.costs()[h].bytes_read, errors[h].error2 / norm2, r, k, {}});
    }
  return heads;
}

Result<std::vector<HeadOptions>> PlanSearch::QaqOptions(Side side) {
  const bool keys = side == Side::kK;
  const kv::QaqParams& own = keys ? recipe_.k_qaq : recipe_.v_qaq;
  std::vector<HeadOptions> heads;
  for (int h = 0; h < rows_.kv_heads; ++h) {
    const HeadCost& c = own_costs_[size_t(h)];
    heads.push_back({keys ? HeadOptions::What::kQaqKeys : HeadOptions::What::kQaqValues,
                     h,
                     keys ? c.k_bits : c.v_bits,
                     {}});
  }
  for (int step = -4; step <= 4; ++step)  // half bits
    for (const int max : {own.max, own.max - 1}) {
      const QaqBounds bounds{own.sigma * std::exp2(float(step) / 2), own.min, max};
      if (bounds.sigma > kMaxQaqSigma || max < std::max(own.min, 1)) continue;
      LayerPlan tried = plan_;
      (keys ? tried.k_qaq : tried.v_qaq).assign(heads.size(), bounds);
      NIBBLE_ASSIGN(const std::vector<OutputError> errors, trial_.Run(Apply(recipe_, tried), tried));
      double norm2 = 0;
      for (const OutputError& e : errors) norm2 += e.norm2;
      for (size_t h = 0; h < heads.size(); ++h) {
        const HeadCost& c = trial_.costs()[h];
        heads[h].options.push_back({keys ? c.k_bits : c.v_bits, errors[h].error2 / norm2, 0, 0, bounds});
      }
    }
  return heads;
}

Result<LayerChoice> PlanSearch::Run() {
  NIBBLE_RETURN_IF_ERROR(trial_.Init());
  LayerChoice choice;
  NIBBLE_ASSIGN(choice.before, Total(plan_));
  own_costs_ = trial_.costs();
  // First of all: a balance that is tried by head must not change the widths of other heads.
  NIBBLE_RETURN_IF_ERROR(SearchTwoBit(Side::kK));
  NIBBLE_RETURN_IF_ERROR(SearchTwoBit(Side::kV));
  if (KMatters(recipe_)) NIBBLE_RETURN_IF_ERROR(SearchBalance(Side::kK));
  if (VMatters(recipe_)) NIBBLE_RETURN_IF_ERROR(SearchBalance(Side::kV));
  NIBBLE_RETURN_IF_ERROR(SearchMeans());
  NIBBLE_RETURN_IF_ERROR(SearchSage());
  const auto add = [&choice](Result<std::vector<HeadOptions>> heads) -> Status {
    if (!heads.ok()) return heads.status();
    choice.by_head.insert(choice.by_head.end(), heads->begin(), heads->end());
    return {};
  };
  if (recipe_.select.kind == SelectKind::kSparq) NIBBLE_RETURN_IF_ERROR(add(SparqOptions()));
  if (recipe_.k == kv::CodecId::kQaq) NIBBLE_RETURN_IF_ERROR(add(QaqOptions(Side::kK)));
  if (recipe_.v == kv::CodecId::kQaq) NIBBLE_RETURN_IF_ERROR(add(QaqOptions(Side::kV)));
  NIBBLE_ASSIGN(choice.after, Total(plan_));
  choice.plan = plan_;
  choice.words = words_;
  return choice;
}

}  // namespace nibble
