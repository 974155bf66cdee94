// SPDX-License-Identifier: Apache-2.0
// The page rule end to end: cache, backend and the real kernels of every ISA. Attention outputs are the same
// bytes however the tokens of a prompt were cut, with whom they were batched, and for any number of threads;
// and they agree with the rule written down in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu_backend.h"
#include "cache/kv_cache.h"
#include "kernels/cpu/kernels.h"
#include "kernels/ref/flashq.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kPage = kv::kPageTokens;
constexpr int kHeads = 6, kKvHeads = 2, kHeadDim = 64, kLayers = 2, kTokens = 300;
constexpr int kMaxStep = 320;

// Q, K and V of one sequence: [layers, tokens, heads or kv_heads, head_dim].
struct Sequence {
  std::vector<float> q, k, v;
  int tokens;
  static Sequence Random(int tokens, uint32_t seed) {
    Sequence s{.q = {}, .k = {}, .v = {}, .tokens = tokens};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int heads) {
      x.resize(size_t(kLayers) * size_t(tokens) * size_t(heads) * kHeadDim);
      for (float& f : x) f = normal(random);
    };
    fill(s.q, kHeads), fill(s.k, kKvHeads), fill(s.v, kKvHeads);
    return s;
  }
  const float* Row(const std::vector<float>& x, int layer, int64_t token, int heads) const {
    return x.data() + (int64_t{layer} * tokens + token) * heads * kHeadDim;
  }
};

// Which sequence gets how many tokens in each step.
struct Feed {
  int seq, count;
};
using Schedule = std::vector<std::vector<Feed>>;

enum class Fault { kNone, kOpenRowsNotCopied, kQuerySumsForgotten };

// What a run of a schedule is made with.
struct RunOptions {
  const cpu::CpuKernels* isa;
  AttentionRecipe recipe;
  int threads = 1;
  int64_t window = 0;
  Fault fault = Fault::kNone;
};

class Runner {
 public:
  Runner(const RunOptions& options, const std::vector<Sequence>& seqs)
      : options_(options), seqs_(seqs), backend_(*options.isa, options.threads) {
    NIBBLE_CHECK(backend_.Reserve(kMaxStep, 256, kHeads, kKvHeads, kHeadDim).ok(), "Reserve");
    auto cache = KvCache::Make(backend_, {.shape = {kLayers, kKvHeads, kHeadDim},
                                          .heads = kHeads,
                                          .recipe = options.recipe,
                                          .max_seqs = int(seqs.size()),
                                          .max_step_tokens = kMaxStep,
                                          .max_tokens = kPoolTokens});
    NIBBLE_CHECK(cache.ok(), "KvCache");
    cache_ = *std::move(cache);
    Poison();
    for (const Sequence& s : seqs) {
      ids_.push_back(*cache_->Open());
      fed_.push_back(0);
      outs_.push_back(std::vector<float>(s.q.size()));
    }
  }

  // Attention outputs of sequence 0: [layers, tokens, heads, head_dim].
  std::vector<float> Run(const Schedule& schedule) {
    for (const auto& step : schedule) Step(step);
    EXPECT_EQ(fed_[0], seqs_[0].tokens) << "the schedule must feed all of sequence 0";
    return outs_[0];
  }

 private:
  static constexpr int kPoolTokens = 1024;

  // Every byte the cache owns becomes part of a NaN, for codes, scales and raw values alike.
  void Poison() {
    const kv::PageShape page{.head_dim = kHeadDim, .tokens = kPage};
    const auto fill = [](std::byte* p, int64_t bytes) {
      if (bytes > 0) memset(p, 0xff, size_t(bytes));  // a recipe without side records has no pool for them
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      const KvView view = cache_->View(layer);
      const auto raw = [&](kv::CodecId id) {
        return int64_t{kKvHeads} * kPage * kHeadDim * SizeOf(kv::Get(id).raw);
      };
      const auto row = [&](kv::CodecId id, const HeadMix& mix) {
        return kv::RowBytes(kv::Get(id), page, kKvHeads, mix.two_bit);
      };
      fill(view.k_pool, kPoolTokens / kPage * row(view.k_codec, view.k_mix));
      fill(view.v_pool, kPoolTokens / kPage * row(view.v_codec, view.v_mix));
      fill(view.k_tail, raw(view.k_codec) * int64_t(seqs_.size()));
      fill(view.v_tail, raw(view.v_codec) * int64_t(seqs_.size()));
      fill(view.side_pool, int64_t{kPoolTokens} / kPage * kKvHeads * view.side.bytes);
      fill(view.side_tail, int64_t(seqs_.size()) * kKvHeads * view.side.seq_bytes);
      fill(view.k_scratch, raw(view.k_codec)), fill(view.v_scratch, raw(view.v_codec));
    }
  }

  void Step(const std::vector<Feed>& step) {
    std::vector<SeqId> ids;
    std::vector<int32_t> counts;
    for (const Feed& f : step) {
      ids.push_back(ids_[size_t(f.seq)]);
      counts.push_back(f.count);
    }
    ASSERT_TRUE(cache_->BeginStep(ids, counts).ok());
    for (int layer = 0; layer < kLayers; ++layer) Layer(step, layer);
    for (const Feed& f : step) fed_[size_t(f.seq)] += f.count;
  }

  void Layer(const std::vector<Feed>& step, int layer) {
    std::vector<float> q, k, v;
    const auto gather = [&](std::vector<float>& to, const std::vector<float> Sequence::*from, int heads) {
      for (const Feed& f : step) {
        const Sequence& s = seqs_[size_t(f.seq)];
        const float* row = s.Row(s.*from, layer, fed_[size_t(f.seq)], heads);
        to.insert(to.end(), row, row + int64_t{f.count} * heads * kHeadDim);
      }
    };
    gather(q, &Sequence::q, kHeads), gather(k, &Sequence::k, kKvHeads), gather(v, &Sequence::v, kKvHeads);
    const int64_t rows = int64_t(q.size()) / (kHeads * kHeadDim);
    std::vector<float> out(q.size(), NAN);
    const auto tensor = [&](std::vector<float>& x, int heads) {
      return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, heads, kHeadDim});
    };
    KvView view = cache_->View(layer);
    std::vector<KvSegment> segments(view.segments.begin(), view.segments.end());
    if (options_.fault == Fault::kOpenRowsNotCopied)
      for (KvSegment& s : segments) s.copy_from = -1;
    view.segments = segments;
    if (options_.fault == Fault::kQuerySumsForgotten)
      for (size_t i = 0; i < seqs_.size() * kKvHeads; ++i)
        memset(view.side_tail + int64_t(i) * view.side.seq_bytes + view.side.q_sum.offset, 0,
               size_t(view.side.q_sum.bytes));
    backend_.KvAppend({.kv = view, .k = tensor(k, kKvHeads), .v = tensor(v, kKvHeads)});
    backend_.Attention({.kv = view,
                        .q = tensor(q, kHeads),
                        .out = tensor(out, kHeads),
                        .heads = kHeads,
                        .scale = 0.125f,
                        .window = options_.window});
    const float* row = out.data();
    for (const Feed& f : step) {
      const Sequence& s = seqs_[size_t(f.seq)];
      const int64_t floats = int64_t{f.count} * kHeads * kHeadDim;
      const int64_t at = (int64_t{layer} * s.tokens + fed_[size_t(f.seq)]) * kHeads * kHeadDim;
      std::copy(row, row + floats, outs_[size_t(f.seq)].begin() + at);
      row += floats;
    }
  }

  const RunOptions options_;
  const std::vector<Sequence>& seqs_;
  CpuBackend backend_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SeqId> ids_;
  std::vector<int> fed_;
  std::vector<std::vector<float>> outs_;
};

std::vector<float> Outputs(const RunOptions& options, const std::vector<Sequence>& seqs,
                           const Schedule& schedule) {
  return Runner(options, seqs).Run(schedule);
}

Schedule InChunks(int chunk) {
  Schedule s;
  for (int t = 0; t < kTokens; t += chunk) s.push_back({{0, std::min(chunk, kTokens - t)}});
  return s;
}

// Sequence 0 in pieces of 1 to 90 tokens, before, between and after pieces of two others.
Schedule AmongOthers() {
  Schedule s;
  std::mt19937 random(11);
  int left[] = {kTokens, 200, 150};
  while (left[0] > 0) {
    s.push_back({});
    for (int seq : {1, 0, 2}) {
      const int count = std::min(left[seq], int(1 + random() % 90));
      left[seq] -= count;
      if (count > 0) s.back().push_back({seq, count});
    }
  }
  return s;
}

std::vector<Sequence> ThreeSequences() {
  return {Sequence::Random(kTokens, 1), Sequence::Random(200, 2), Sequence::Random(150, 3)};
}

std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas())
    if (isa->runs_here()) isas.push_back(isa);
  return isas;
}

bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool AllFinite(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float f) { return std::isfinite(f); });
}

class PageRule : public testing::TestWithParam<kv::CodecInfo> {
 protected:
  AttentionRecipe Recipe() const { return {.k = GetParam().id, .v = GetParam().id}; }
};

TEST_P(PageRule, SameBytesHoweverThePromptIsCut) {
  const auto seqs = ThreeSequences();
  const RunOptions one{.isa = Isas().front(), .recipe = Recipe()};
  const auto whole = Outputs(one, seqs, InChunks(kTokens));
  EXPECT_TRUE(AllFinite(whole));
  for (int chunk : {1, 7, 63, 64, 65, 128})
    EXPECT_TRUE(SameBytes(whole, Outputs(one, seqs, InChunks(chunk)))) << "chunks of " << chunk;
  EXPECT_TRUE(SameBytes(whole, Outputs(one, seqs, AmongOthers())));
  for (int threads : {2, 3}) {
    RunOptions more = one;
    more.threads = threads;
    EXPECT_TRUE(SameBytes(whole, Outputs(more, seqs, InChunks(kTokens)))) << threads << " threads";
    EXPECT_TRUE(SameBytes(whole, Outputs(more, seqs, InChunks(7)))) << threads << " threads";
    EXPECT_TRUE(SameBytes(whole, Outputs(more, seqs, AmongOthers()))) << threads << " threads";
  }
}

TEST_P(PageRule, SameBytesOnEveryIsa) {
  const auto seqs = ThreeSequences();
  for (const cpu::CpuKernels* isa : Isas()) {
    const RunOptions one{.isa = isa, .recipe = Recipe()}, two{.isa = isa, .recipe = Recipe(), .threads = 2};
    const auto whole = Outputs(one, seqs, InChunks(kTokens));
    EXPECT_TRUE(AllFinite(whole));
    EXPECT_TRUE(SameBytes(whole, Outputs(two, seqs, InChunks(7)))) << isa->isa;
    EXPECT_TRUE(SameBytes(whole, Outputs(two, seqs, AmongOthers()))) << isa->isa;
  }
}

TEST_P(PageRule, SameBytesUnderASlidingWindow) {
  const auto seqs = ThreeSequences();
  for (int64_t window : {1, 20, 64, 100}) {
    const RunOptions options{.isa = Isas().front(), .recipe = Recipe(), .threads = 2, .window = window};
    const auto whole = Outputs(options, seqs, InChunks(kTokens));
    EXPECT_TRUE(AllFinite(whole));
    for (int chunk : {7, 65})
      EXPECT_TRUE(SameBytes(whole, Outputs(options, seqs, InChunks(chunk))))
          << window << ", chunks of " << chunk;
  }
}

// A request of up to one page never reads a code of two or four bits: its rows are those of the raw type.
TEST_P(PageRule, AShortRequestReadsNoPage) {
  const auto seqs = ThreeSequences();
  const kv::CodecId raw = GetParam().raw == DType::kF32   ? kv::CodecId::kF32
                          : GetParam().raw == DType::kF16 ? kv::CodecId::kF16
                                                          : kv::CodecId::kBF16;
  const auto first = [&](const AttentionRecipe& recipe, int tokens) {
    std::vector<float> out = Outputs({.isa = Isas().front(), .recipe = recipe}, seqs, InChunks(50));
    out.resize(size_t(tokens) * kHeads * kHeadDim);
    return out;
  };
  EXPECT_TRUE(SameBytes(first(Recipe(), kPage), first({.k = raw, .v = raw}, kPage)));
  if (GetParam().id == raw) return;
  EXPECT_FALSE(SameBytes(first(Recipe(), kPage + 1), first({.k = raw, .v = raw}, kPage + 1)))
      << "the next one does";
}

TEST_P(PageRule, OpenRowsThatAreNotCopiedAreSeen) {
  const auto seqs = ThreeSequences();
  const RunOptions good{.isa = Isas().front(), .recipe = Recipe()};
  RunOptions bad = good;
  bad.fault = Fault::kOpenRowsNotCopied;
  EXPECT_FALSE(SameBytes(Outputs(good, seqs, InChunks(kTokens)), Outputs(bad, seqs, InChunks(100))));
}

// ---- The rule in double precision -----------------------------------------------------------------------

double RoundTo(DType raw, float x) {
  if (raw == DType::kF16) return double(HalfToFloat(FloatToHalf(x)));
  if (raw == DType::kBF16) return double(Bf16ToFloat(FloatToBf16(x)));
  return double(x);
}

// K or V of one layer and KV head as queries see it: [tokens, head_dim], raw and through the codec.
struct Seen {
  std::vector<double> raw, sealed;
};

// The codec of one KV head: where widths are mixed, a recipe gives half of the heads 2 bits, those of least
// priority in the first page.
kv::CodecId CodecOfHead(const Sequence& s, const std::vector<float>& x, kv::CodecId id, int layer, int head) {
  const kv::CodecInfo& codec = kv::Get(id);
  if (codec.two_bit == id || s.tokens < kPage) return id;
  std::vector<double> priority;
  for (int h = 0; h < kKvHeads; ++h) {
    ref::Matrix page(kPage, kHeadDim);
    for (int t = 0; t < kPage; ++t)
      for (int d = 0; d < kHeadDim; ++d)
        page[t][d] = RoundTo(codec.raw, s.Row(x, layer, t, kKvHeads)[h * kHeadDim + d]);
    priority.push_back(ref::HeadPriority(page));
  }
  return ref::TwoBitHeads(priority, kKvHeads / 2)[size_t(head)] ? codec.two_bit : id;
}

Seen View(const Sequence& s, const std::vector<float>& x, kv::CodecId mixed, int layer, int head) {
  const kv::CodecInfo& codec = kv::Get(CodecOfHead(s, x, mixed, layer, head));
  const kv::PageShape shape{.head_dim = kHeadDim, .tokens = kPage};
  Seen seen;
  for (int64_t t = 0; t < s.tokens; ++t)
    for (int d = 0; d < kHeadDim; ++d)
      seen.raw.push_back(RoundTo(codec.raw, s.Row(x, layer, t, kKvHeads)[head * kHeadDim + d]));
  seen.sealed.resize(seen.raw.size());
  for (int p = 0; p < s.tokens / kPage; ++p) {
    const size_t at = size_t(p) * kPage * kHeadDim;
    std::vector<float> rows(seen.raw.begin() + int64_t(at),
                            seen.raw.begin() + int64_t(at) + kPage * kHeadDim);
    std::vector<std::byte> page(size_t(codec.page_bytes(shape)));
    codec.encode_page(shape, rows.data(), page.data());
    for (int t = 0; t < kPage; ++t) {
      float out[kHeadDim];
      codec.decode_row(shape, page.data(), t, out);
      std::copy(out, out + kHeadDim, seen.sealed.begin() + int64_t(at) + t * kHeadDim);
    }
  }
  return seen;
}

// `own_page_raw` false breaks the rule: a token's own page, where complete, is read through the codec too.
std::vector<double> Truth(const Sequence& s, const AttentionRecipe& recipe, bool own_page_raw) {
  std::vector<double> out(s.q.size());
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int h = 0; h < kHeads; ++h) {
      const int kv_head = h / (kHeads / kKvHeads);
      const Seen k = View(s, s.k, recipe.k, layer, kv_head), v = View(s, s.v, recipe.v, layer, kv_head);
      for (int64_t t = 0; t < s.tokens; ++t) {
        const float* q = s.Row(s.q, layer, t, kHeads) + h * kHeadDim;
        double* o = out.data() + ((int64_t{layer} * s.tokens + t) * kHeads + h) * kHeadDim;
        double sum = 0;
        for (int64_t u = 0; u <= t; ++u) {
          const bool complete = u / kPage < s.tokens / kPage;
          const bool raw = own_page_raw ? u / kPage == t / kPage : !complete;
          const double* ku = (raw ? k.raw : k.sealed).data() + u * kHeadDim;
          const double* vu = (raw ? v.raw : v.sealed).data() + u * kHeadDim;
          double score = 0;
          for (int d = 0; d < kHeadDim; ++d) score += double(q[d]) * ku[d];
          const double p = std::exp(score * 0.125);  // scores are small: no maximum needed
          sum += p;
          for (int d = 0; d < kHeadDim; ++d) o[d] += p * vu[d];
        }
        for (int d = 0; d < kHeadDim; ++d) o[d] /= sum;
      }
    }
  }
  return out;
}

double WorstDifference(const std::vector<float>& a, const std::vector<double>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::fabs(double(a[i]) - b[i]));
  return worst;
}

TEST_P(PageRule, AgreesWithTheRuleInDouble) {
  const auto seqs = ThreeSequences();
  const auto truth = Truth(seqs[0], Recipe(), true), broken = Truth(seqs[0], Recipe(), false);
  constexpr double kTolerance = 2e-5;  // f32 sums of up to 300 products of order 1
  for (const cpu::CpuKernels* isa : Isas()) {
    const auto out = Outputs({.isa = isa, .recipe = Recipe()}, seqs, InChunks(77));
    EXPECT_LT(WorstDifference(out, truth), kTolerance) << isa->isa;
    const bool lossless = GetParam().id <= kv::CodecId::kBF16;  // raw and sealed are the same values
    if (!lossless) {
      EXPECT_GT(WorstDifference(out, broken), 100 * kTolerance) << isa->isa;
    }
  }
}

std::string CodecName(const testing::TestParamInfo<kv::CodecInfo>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
// What requantizes has no one decoded form of a page; qaq_engine_test has its rule.
std::vector<kv::CodecInfo> FixedCodecs() {
  std::vector<kv::CodecInfo> fixed;
  for (const kv::CodecInfo& c : kv::kRegistry)
    if (!c.requantizes) fixed.push_back(c);
  return fixed;
}
INSTANTIATE_TEST_SUITE_P(Codecs, PageRule, testing::ValuesIn(FixedCodecs()), CodecName);

// K and V of different codecs and raw types: nothing may take one side's sizes for the other.
TEST(PageRuleMixed, KAndVOfDifferentCodecs) {
  const auto seqs = ThreeSequences();
  for (const AttentionRecipe& recipe :
       {AttentionRecipe{.k = kv::CodecId::kF32, .v = kv::CodecId::kInt4Token},
        AttentionRecipe{.k = kv::CodecId::kInt8Token, .v = kv::CodecId::kBF16}}) {
    const RunOptions options{.isa = Isas().front(), .recipe = recipe, .threads = 2};
    const auto out = Outputs(options, seqs, InChunks(kTokens));
    EXPECT_TRUE(SameBytes(out, Outputs(options, seqs, InChunks(7))));
    EXPECT_LT(WorstDifference(out, Truth(seqs[0], recipe, true)), 2e-5);
  }
}

// Every arithmetic: scales by row, means frozen by position, P relative to a running maximum by page.
const char* const kArithmetics[] = {"sage1",
                                    "sage2-8b",
                                    "sage2-4b",
                                    "sage2pp-8b",
                                    "qk=int8-block smooth=qk pv=int8",
                                    "turbo tail=float",
                                    "turbo-mixed tail=float",
                                    "qk=int8-thread smooth=qk k=flashq-mixed v=int4-token",
                                    "flashq2+sage2-4b softmax=sas2",
                                    "qserve+sas"};

TEST(PageRuleArithmetic, SameBytesHoweverThePromptIsCut) {
  const auto seqs = ThreeSequences();
  for (const char* text : kArithmetics) {
    for (const int64_t window : {0, 100}) {
      const RunOptions one{
          .isa = Isas().front(), .recipe = *ParseRecipe(text, DType::kF32), .window = window};
      RunOptions more = one;
      more.threads = 3;
      const auto whole = Outputs(one, seqs, InChunks(kTokens));
      EXPECT_TRUE(AllFinite(whole)) << text;
      for (int chunk : {1, 7, 64, 256})
        EXPECT_TRUE(SameBytes(whole, Outputs(one, seqs, InChunks(chunk)))) << text << " chunks of " << chunk;
      EXPECT_TRUE(SameBytes(whole, Outputs(one, seqs, AmongOthers()))) << text;
      EXPECT_TRUE(SameBytes(whole, Outputs(more, seqs, InChunks(7)))) << text;
      EXPECT_TRUE(SameBytes(whole, Outputs(more, seqs, AmongOthers()))) << text;
    }
  }
}

TEST(PageRuleArithmetic, SameBytesOnEveryIsa) {
  const auto seqs = ThreeSequences();
  for (const char* text : kArithmetics) {
    for (const cpu::CpuKernels* isa : Isas()) {
      const RunOptions one{.isa = isa, .recipe = *ParseRecipe(text, DType::kF32)};
      EXPECT_TRUE(SameBytes(Outputs(one, seqs, InChunks(kTokens)), Outputs(one, seqs, InChunks(33))))
          << isa->isa << " " << text;
    }
  }
}

TEST(PageRuleArithmetic, ForgottenQuerySumsAreSeen) {
  const auto seqs = ThreeSequences();
  const RunOptions good{.isa = Isas().front(), .recipe = *ParseRecipe("sage2-4b", DType::kF32)};
  RunOptions bad = good;
  bad.fault = Fault::kQuerySumsForgotten;
  EXPECT_FALSE(SameBytes(Outputs(good, seqs, InChunks(7)), Outputs(bad, seqs, InChunks(7))));
}

// Far from the exact output by no more than its bits explain: the means that are taken off come back.
TEST(PageRuleArithmetic, StaysNearTheExactOutput) {
  const auto seqs = ThreeSequences();
  const auto truth = Truth(seqs[0], {}, true);
  for (const auto& [text, most] :
       {std::pair{"sage1", 0.03}, std::pair{"sage2-8b", 0.1}, std::pair{"sas2", 2e-3},
        std::pair{"sage2-4b", 0.5}, std::pair{"qk=int8-thread smooth=qk", 0.03}}) {
    const auto out =
        Outputs({.isa = Isas().front(), .recipe = *ParseRecipe(text, DType::kF32)}, seqs, InChunks(77));
    const double worst = WorstDifference(out, truth);
    EXPECT_LT(worst, most) << text;
    std::cerr << text << " " << worst << "\n";
    EXPECT_GT(worst, 0) << text << " is computed as exact";
  }
}

}  // namespace
}  // namespace nibble
