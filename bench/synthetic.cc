// SPDX-License-Identifier: Apache-2.0
// Prints docs/results/synthetic.md: the definitions of every method on synthetic heads with the structure of
// large models. out/release/bench/synthetic_tables > docs/results/synthetic.md; about two minutes on one
// core.
#include "tests/support/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/ref/gear.h"
#include "kernels/ref/sage.h"
#include "kernels/ref/sparq.h"
#include "kernels/ref/turbo.h"
#include "kernels/ref/turboquant.h"

namespace nibble::ref {
namespace {

constexpr int kSeeds = 3;  // every figure is a mean over them

struct Case {
  SyntheticSpec spec;
  std::vector<SyntheticHead> heads;  // by seed
  std::vector<Matrix> exact;
};
using Method = std::function<Matrix(const SyntheticHead&)>;
struct Scheme {
  const char* name;
  Method run;
};

// ---- methods ----

Method Sage(std::function<void(SageSpec&)> change) {
  return [change = std::move(change)](const SyntheticHead& h) {
    SageSpec spec = Sage2Int8(h.q.dim);
    change(spec);
    return SageAttention(h.q, h.k, h.v, spec).out;
  };
}

// QK in integers; P and V exact.
Method Scores(int levels, Granularity granularity, bool smooth_k, bool smooth_q) {
  return Sage([=](SageSpec& s) {
    s.q.levels = s.k.levels = levels;
    s.q.groups = QueryGroups(granularity);
    s.k.groups = KeyGroups(granularity);
    s.smooth_k = smooth_k;
    s.smooth_q = smooth_q;
    s.pv = PvFormat::kExact;
    s.accumulator = {};
  });
}

// P and V in a format; QK exact.
Method Values(PvFormat format, PvAccumulator accumulator, double v_max = 448, bool smooth_v = false) {
  return Sage([=](SageSpec& s) {
    s.quantize_qk = false;
    s.pv = format;
    s.accumulator = accumulator;
    s.v_max = v_max;
    s.smooth_v = smooth_v;
    if (format == PvFormat::kE5M2) s.p_offset = std::log2(MaxFp8(Fp8::kE5M2));
    if (format == PvFormat::kInt8 || format == PvFormat::kF16) s.p_offset = 0;
  });
}

Method Preset(SageSpec (*preset)(int)) {
  return [preset](const SyntheticHead& h) { return SageAttention(h.q, h.k, h.v, preset(h.q.dim)).out; };
}

using Codec = std::function<Matrix(View)>;
Method Cache(Codec k, Codec v) {
  return [k = std::move(k), v = std::move(v)](const SyntheticHead& h) {
    return DenseAttention(h.q, k ? k(h.k) : h.k, v ? v(h.v) : h.v, h.scale, Mask::kCausal).out;
  };
}
Codec Kivi(int bits, GroupAxis axis, int group) {
  return [=](View x) { return KiviDecoded(x, bits, axis, group); };
}
Codec FlashQ(int bits) {
  return [=](View x) {
    Matrix out(x.rows, x.dim);
    for (int begin = 0; begin < x.rows; begin += 64) {
      const FlashBlock block = FlashStage1(x.Slice(begin, std::min(x.rows, begin + 64)));
      const Codes codes = ExpandStage2(FlashStage2(block.codes, bits, Stage2Form::kCanonical));
      for (int r = 0; r < codes.rows; ++r)
        for (int d = 0; d < x.dim; ++d) out[begin + r][d] = codes[r][d] * block.Scale(0);
    }
    return out;
  };
}
Codec TurboQuant(int bits) {
  return [table = LloydMaxNormal(bits)](View x) {
    Matrix out(x.rows, x.dim);
    for (int r = 0; r < x.rows; ++r) {
      const std::vector<double> row(x[r], x[r] + x.dim);
      const std::vector<double> y =
          TurboQuantDecode(TurboQuantEncode(row, table), table, NormCorrection::kOn);
      std::copy(y.begin(), y.end(), out[r]);
    }
    return out;
  };
}
Codec Gear(int bits, GroupAxis axis) {
  return [=](View x) {
    Matrix start(x.dim, 4);
    for (int i = 0; i < 4 * x.dim; ++i)
      start.data[size_t(i)] = std::sin(i + 1.0);  // any fixed full-rank start
    return GearDecoded(x, {.bits = bits, .axis = axis, .group = 64}, start);
  };
}

Method Turbo(int bits, bool sas) {
  return [=](const SyntheticHead& h) {
    TurboSpec spec;
    spec.k_bits = spec.v_bits = bits;
    spec.softmax.exact = !sas;
    spec.scale = h.scale;
    return TurboAttention(h.q, h.k, h.v, spec).out;
  };
}

SasSpec SasFor(double threshold, double eps, int tokens) {
  if (eps > 0) return {SasPolynomial::kEndpointExact, SasThreshold(eps, tokens)};
  return {SasPolynomial::kPaper, threshold};
}
Method SasRows(double threshold, double eps) {
  return [=](const SyntheticHead& h) {
    Matrix out(h.q.rows, h.v.dim);
    for (int r = 0; r < h.q.rows; ++r) {
      std::vector<double> scores;
      for (int n = 0; n <= r; ++n) scores.push_back(h.scale * Dot(h.q[r], h.k[n], h.q.dim));
      const std::vector<double> p = SasSoftmax(SasFor(threshold, eps, r + 1), scores);
      for (int n = 0; n <= r; ++n)
        for (int d = 0; d < h.v.dim && p[size_t(n)] > 0; ++d) out[r][d] += p[size_t(n)] * h.v[n][d];
    }
    return out;
  };
}

// Queries of a decode: every 16th of the second half.
constexpr int kDecodeStep = 16;
Matrix DecodeRows(const Matrix& all) {
  Matrix rows(0, all.dim);
  for (int r = all.rows / 2; r < all.rows; r += kDecodeStep, ++rows.rows)
    rows.data.insert(rows.data.end(), all[r], all[r] + all.dim);
  return rows;
}
Method Sparq(int r, int k, Reallocation how, bool int4_keys = false) {
  return [=](const SyntheticHead& h) {
    SparqSpec spec;
    spec.r = r;
    spec.k = k;
    spec.local = k / 4;
    spec.reallocation = how;
    Matrix rows(0, h.v.dim);
    for (int t = h.q.rows / 2; t < h.q.rows; t += kDecodeStep, ++rows.rows) {
      const View keys = h.k.Slice(0, t + 1);
      const Matrix ranking = int4_keys ? RankingKeys(keys, KtFormat::kInt4, 32, Storage::kF16) : Copy(keys);
      const Matrix out = SparqDecode(h.q.Slice(t, t + 1), keys, ranking, h.v.Slice(0, t + 1), spec).out;
      rows.data.insert(rows.data.end(), out.data.begin(), out.data.end());
    }
    return rows;
  };
}

// ---- tables ----

void PrintHeader(const char* title, const char* what, const char* first, const std::vector<Case>& cases) {
  std::printf("\n## %s\n\n%s\n\n| %s |", title, what, first);
  for (const Case& c : cases) std::printf(" %s |", c.spec.name.c_str());
  std::printf("\n|---|");
  for (size_t i = 0; i < cases.size(); ++i) std::printf("---|");
  std::printf("\n");
}

void PrintTable(const char* title, const char* what, const std::vector<Case>& cases,
                const std::vector<Scheme>& schemes, bool decode_rows = false) {
  PrintHeader(title, what, "scheme", cases);
  for (const Scheme& scheme : schemes) {
    std::printf("| %s |", scheme.name);
    for (const Case& c : cases) {
      double cosine = 0, l1 = 0;
      for (size_t i = 0; i < c.heads.size(); ++i) {
        const Matrix exact = decode_rows ? DecodeRows(c.exact[i]) : c.exact[i];
        const ErrorMetrics e = Compare(exact, scheme.run(c.heads[i]));
        cosine += e.cosine / kSeeds;
        l1 += e.relative_l1 / kSeeds;
      }
      std::printf(" %.3f (%.4f) |", 100 * cosine, l1);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

void PrintStructure(const std::vector<Case>& cases) {
  PrintHeader("The sets",
              "1024 tokens, head size 128 (S6: 64), seeds 1 to 3; `tests/support/synthetic.h` says how they "
              "are made.",
              "structure", cases);
  std::vector<std::vector<SyntheticStructure>> s;  // by set, by seed
  for (const Case& c : cases) {
    s.emplace_back();
    for (const SyntheticHead& h : c.heads) s.back().push_back(Structure(h));
  }
  const auto row = [&](const char* name, double SyntheticStructure::*field) {
    std::printf("| %s |", name);
    for (const auto& set : s) {
      double mean = 0;
      for (const SyntheticStructure& x : set) mean += x.*field / kSeeds;
      std::printf(" %.2f |", mean);
    }
    std::printf("\n");
  };
  row("exp(mean entropy) of a row, tokens", &SyntheticStructure::effective_tokens);
  row("attention of the first token", &SyntheticStructure::sink_mass);
  row("greatest channel of \\|K\\| / median channel", &SyntheticStructure::k_channel_ratio);
  row("norm of mean K / norm of K - mean", &SyntheticStructure::k_mean_ratio);
  row("greatest \\|V\\| / median", &SyntheticStructure::v_ratio);
}

void PrintScores(const std::vector<Case>& cases) {
  constexpr auto kThread = Granularity::kThread;
  PrintTable("INT8 and INT4 scores (SageAttention), P and V exact",
             "Smoothing is worth more than 10 points of INT4 on S1 and S2, where K has outlier channels and "
             "a sink, and nothing "
             "on noise. Finer groups are better.",
             cases,
             {{"INT8 by thread group", Scores(127, kThread, false, false)},
              {"INT8 by thread group, smooth K", Scores(127, kThread, true, false)},
              {"INT4 by thread group", Scores(7, kThread, false, false)},
              {"INT4 by thread group, smooth Q", Scores(7, kThread, false, true)},
              {"INT4 by thread group, smooth K", Scores(7, kThread, true, false)},
              {"INT4 by thread group, smooth Q, K", Scores(7, kThread, true, true)},
              {"INT4 by token, smooth Q, K", Scores(7, Granularity::kToken, true, true)},
              {"INT4 by warp, smooth Q, K", Scores(7, Granularity::kWarp, true, true)},
              {"INT4 by block, smooth Q, K", Scores(7, Granularity::kBlock, true, true)},
              {"INT4 by tensor, smooth Q, K", Scores(7, Granularity::kTensor, true, true)}});
}

void PrintValues(const std::vector<Case>& cases) {
  using Kind = PvAccumulator::Kind;
  const PvAccumulator two{Kind::kFp22, 32, true}, one{Kind::kFp22, 32, false}, f16{Kind::kF16, 32, true};
  PrintTable("P and V (SageAttention), scores exact",
             "E4M3 before E5M2 before INT8 on sinks. Over 1024 tokens the truncation of one FP22 accumulator "
             "is several times that of "
             "two levels; both lie below E4M3's own rounding. Smooth V helps where V is biased and there is "
             "no sink.",
             cases,
             {{"FP16", Values(PvFormat::kF16, {Kind::kF16, 16, true})},
              {"exact P and V, FP22, two levels", Values(PvFormat::kExact, two)},
              {"exact P and V, FP22, one level", Values(PvFormat::kExact, one)},
              {"E4M3, exact sums", Values(PvFormat::kE4M3, {})},
              {"E4M3, FP22, two levels", Values(PvFormat::kE4M3, two)},
              {"E4M3, FP22, one level", Values(PvFormat::kE4M3, one)},
              {"E4M3, FP22, two levels, smooth V", Values(PvFormat::kE4M3, two, 448, true)},
              {"E4M3, V to 2.25, FP16 accumulator (2++)", Values(PvFormat::kE4M3, f16, 2.25)},
              {"E5M2, exact sums", Values(PvFormat::kE5M2, {}, 57344)},
              {"INT8, P in 1/127", Values(PvFormat::kInt8, {})}});
  PrintTable("The generations of SageAttention whole", "Everything as the kernels do it.", cases,
             {{"SageAttention1 (-B)", Preset(Sage1)},
              {"SageAttention1 -vB", Preset(Sage1Int8Pv)},
              {"SageAttention2-8b", Preset(Sage2Int8)},
              {"SageAttention2++ 8b", Preset(Sage2PlusPlus)},
              {"SageAttention2-4b", Preset(Sage2Int4)}});
}

void PrintCaches(const std::vector<Case>& cases) {
  constexpr auto kChannel = GroupAxis::kChannel, kToken = GroupAxis::kToken;
  PrintTable("KV codecs, attention exact",
             "K by channel far above K by token where K has outlier channels. V the other way where there is "
             "a sink, whose small "
             "V shares its channels' steps with the others.",
             cases,
             {{"K int4 by token", Cache(Kivi(4, kToken, 0), nullptr)},
              {"K int4 by token, groups of 32", Cache(Kivi(4, kToken, 32), nullptr)},
              {"K int4 by channel, 64 tokens", Cache(Kivi(4, kChannel, 64), nullptr)},
              {"K FlashQ4", Cache(FlashQ(4), nullptr)},
              {"K TurboQuant 4", Cache(TurboQuant(4), nullptr)},
              {"K GEAR 4", Cache(Gear(4, kChannel), nullptr)},
              {"K int2 by token, groups of 32", Cache(Kivi(2, kToken, 32), nullptr)},
              {"K int2 by channel, 32 tokens", Cache(Kivi(2, kChannel, 32), nullptr)},
              {"K FlashQ2", Cache(FlashQ(2), nullptr)},
              {"K TurboQuant 2", Cache(TurboQuant(2), nullptr)},
              {"K GEAR 2", Cache(Gear(2, kChannel), nullptr)},
              {"V int4 by token", Cache(nullptr, Kivi(4, kToken, 0))},
              {"V int4 by channel, 64 tokens", Cache(nullptr, Kivi(4, kChannel, 64))},
              {"V FlashQ4", Cache(nullptr, FlashQ(4))},
              {"V TurboQuant 4", Cache(nullptr, TurboQuant(4))},
              {"K by channel, V by token, int4 (KIVI)", Cache(Kivi(4, kChannel, 32), Kivi(4, kToken, 32))},
              {"K, V FlashQ4", Cache(FlashQ(4), FlashQ(4))},
              {"K, V TurboQuant 4", Cache(TurboQuant(4), TurboQuant(4))}});
  PrintTable("TurboAttention's integer attention", "INT8 QK and PV; stage 2 on K and V; SAS at -6.", cases,
             {{"INT8", Turbo(8, false)},
              {"INT8, SAS", Turbo(8, true)},
              {"INT4", Turbo(4, false)},
              {"INT4, SAS", Turbo(4, true)},
              {"INT2, SAS", Turbo(2, true)}});
}

double MeanDropped(const SyntheticHead& h, double threshold, double eps) {
  double mass = 0;
  int rows = 0;
  for (int r = h.q.rows / 2; r < h.q.rows; r += 4, ++rows) {
    std::vector<double> scores;
    for (int n = 0; n <= r; ++n) scores.push_back(h.scale * Dot(h.q[r], h.k[n], h.q.dim));
    mass += DroppedBySas(SasFor(threshold, eps, r + 1), scores).mass;
  }
  return mass / rows;
}

void PrintSas(const std::vector<Case>& cases) {
  const struct {
    const char* name;
    double threshold, eps;
  } variants[] = {{"SAS at -4", -4, 0},
                  {"SAS at -6 (the paper)", -6, 0},
                  {"SAS at -8", -8, 0},
                  {"sas2, eps 1e-2", 0, 1e-2},
                  {"sas2, eps 1e-4", 0, 1e-4}};
  std::vector<Scheme> schemes;
  for (const auto& v : variants) schemes.push_back({v.name, SasRows(v.threshold, v.eps)});
  PrintTable("SAS, everything else exact",
             "sas2: endpoint-exact cubic, threshold from eps and the row's length.", cases, schemes);
  PrintHeader("Mass dropped by SAS", "Mean over the second half of the rows, in percent of the softmax.",
              "threshold", cases);
  for (const auto& v : variants) {
    std::printf("| %s |", v.name);
    for (const Case& c : cases) {
      double mass = 0;
      for (const SyntheticHead& h : c.heads) mass += MeanDropped(h, v.threshold, v.eps) / kSeeds;
      std::printf(" %.4f |", 100 * mass);
    }
    std::printf("\n");
  }
}

void PrintSparq(const std::vector<Case>& cases) {
  constexpr auto kMean = Reallocation::kMean;
  PrintTable("SparQ, decode steps of the second half",
             "k counts a local window of k / 4. Giving the unselected mass to a mean of V helps flat heads; "
             "reading all of V "
             "(weighted mean) bounds what any mean can do.",
             cases,
             {{"r 16, k 128", Sparq(16, 128, kMean)},
              {"r 32, k 128", Sparq(32, 128, kMean)},
              {"r 64, k 128", Sparq(64, 128, kMean)},
              {"r 32, k 64", Sparq(32, 64, kMean)},
              {"r 32, k 128, INT4 copy of K", Sparq(32, 128, kMean, true)},
              {"r 32, k 128, no reallocation", Sparq(32, 128, Reallocation::kOff)},
              {"r 32, k 128, mean of the unselected", Sparq(32, 128, Reallocation::kUnselectedMean)},
              {"r 32, k 128, block means", Sparq(32, 128, Reallocation::kBlockMean)},
              {"r 32, k 128, weighted mean (bound)", Sparq(32, 128, Reallocation::kWeightedMean)}},
             true);
}

int Main() {
  std::printf(
      "# Synthetic heads\n\nEvery method by its definition (`src/kernels/ref`), on one causal head with the "
      "structure of large "
      "models: cosine in percent and,\nin brackets, relative L1 of the attention output against exact "
      "attention. The figures are "
      "of these tensors, not of a model;\nthe orderings are what is claimed, and `tests/synthetic_test.cc` "
      "checks them on three "
      "seeds. Made by\n\n    out/release/bench/synthetic_tables > docs/results/synthetic.md\n");
  std::vector<Case> cases;
  for (const SyntheticSpec& set : SyntheticSets()) {
    Case c{set, {}, {}};
    for (int seed = 1; seed <= kSeeds; ++seed) {
      SyntheticSpec spec = set;
      spec.seed = uint64_t(seed);
      c.heads.push_back(MakeSynthetic(spec));
      const SyntheticHead& h = c.heads.back();
      c.exact.push_back(DenseAttention(h.q, h.k, h.v, h.scale, Mask::kCausal).out);
    }
    cases.push_back(std::move(c));
  }
  PrintStructure(cases);
  PrintScores(cases);
  PrintValues(cases);
  PrintCaches(cases);
  PrintSas(cases);
  PrintSparq(cases);
  return 0;
}

}  // namespace
}  // namespace nibble::ref

int main() { return nibble::ref::Main(); }
