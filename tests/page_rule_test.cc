// SPDX-License-Identifier: Apache-2.0
// The page rule end to end: cache, backend and the real kernels of every ISA. Attention outputs are the same
// bytes however the tokens of a prompt were cut, with whom they were batched, and for any number of threads;
// and they agree with the rule written down in double precision.
#include "page_rule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/ref/flashq.h"
#include "meets_integers.h"

namespace nibble::test {
namespace {

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

// More threads than KV heads take parts of the context of a decode step.
TEST_P(PageRule, SameBytesWhereThreadsShareAContext) {
  constexpr int kLong = (kAttentionBlockPages + 1) * kPage + 10;
  const std::vector<Sequence> seqs{Sequence::Random(kLong, 5)};
  Schedule schedule;
  for (int at = 0; at < kLong - 4; at += 260) schedule.push_back({{0, std::min(260, kLong - 4 - at)}});
  for (int i = 0; i < 4; ++i) schedule.push_back({{0, 1}});
  const RunOptions one{.isa = Isas().front(), .recipe = Recipe()},
      five{.isa = Isas().front(), .recipe = Recipe(), .threads = 5};
  const auto whole = Outputs(one, seqs, schedule);
  EXPECT_TRUE(AllFinite(whole));
  EXPECT_TRUE(SameBytes(whole, Outputs(five, seqs, schedule)));
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

// The same where the open page is an INT8 buffer and flashq4 its codec.
Seen ViewThroughBuffers(const Sequence& s, const std::vector<float>& x, int layer, int head) {
  Seen seen;
  const auto row = [&](int64_t t) { return s.Row(x, layer, t, kKvHeads) + head * kHeadDim; };
  float greatest = 0;
  for (int d = 0; d < kHeadDim; ++d) greatest = std::max(greatest, std::abs(row(0)[d]));
  float scale = ref::UniversalScale(greatest, kv::Int8Tail::kFirstHeadroom);
  for (int64_t start = 0; start < s.tokens; start += kPage) {
    ref::FlashBuffer buffer(scale, kHeadDim);
    for (int64_t t = start; t < std::min<int64_t>(s.tokens, start + kPage); ++t) buffer.Append(row(t));
    const ref::Codes q8 =
        ref::ExpandStage2(ref::FlashStage2(buffer.SealedCodes(), 4, ref::Stage2Form::kCanonical));
    for (int t = 0; t < q8.rows; ++t)
      for (int d = 0; d < kHeadDim; ++d) {
        seen.raw.push_back(buffer.Decoded(t, d));
        seen.sealed.push_back(q8[t][d] * double(buffer.SealedScale()));
      }
    scale = ref::UniversalScale(buffer.greatest(), kv::Int8Tail::kHeadroom);
  }
  return seen;
}

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
      const auto view = [&](const std::vector<float>& x, kv::CodecId id) {
        return recipe.tail == kv::Tail::kInt8 ? ViewThroughBuffers(s, x, layer, kv_head)
                                              : View(s, x, id, layer, kv_head);
      };
      const Seen k = view(s.k, recipe.k), v = view(s.v, recipe.v);
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
  // f32 sums of up to 300 products of order 1; where codes meet integers, queries and weights have 16 bits.
  constexpr double kTolerance = 2e-5, kIntegerTolerance = 1e-3;
  const double tolerance = test::MeetsIntegers(GetParam().id, kHeadDim) ? kIntegerTolerance : kTolerance;
  for (const cpu::CpuKernels* isa : Isas()) {
    const auto out = Outputs({.isa = isa, .recipe = Recipe()}, seqs, InChunks(77));
    EXPECT_LT(WorstDifference(out, truth), tolerance) << isa->isa;
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
    EXPECT_LT(WorstDifference(out, Truth(seqs[0], recipe, true)), 1e-3);
  }
}

// Every arithmetic: scales by row, means frozen by position, P relative to a running maximum by page.
const char* const kArithmetics[] = {"sage1",
                                    "sage2-8b",
                                    "sage2-4b",
                                    "sage2pp-8b",
                                    "qk=int8-block smooth=qk pv=int8",
                                    "turbo tail=float",
                                    "turbo",
                                    "turbo-mixed",
                                    "turbo-mixed tail=float",
                                    "k=flashq2 v=flashq2-outlier tail=int8 qk=int8-thread smooth=qk",
                                    "flashq4+sparq:r=16,k=80,mean=mean tail=int8",
                                    "flashq3+h2o:k=100 tail=int8",
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

// Sums of queries; and a completed open page, which keeps its slot until the next takes its scale from it.
TEST(PageRuleArithmetic, ForgottenStateIsSeen) {
  const auto seqs = ThreeSequences();
  for (const auto& [text, fault, chunk] : {std::tuple{"sage2-4b", Fault::kQuerySumsForgotten, 7},
                                           std::tuple{"turbo", Fault::kTailsForgotten, 64}}) {
    const RunOptions good{.isa = Isas().front(), .recipe = *ParseRecipe(text, DType::kF32)};
    RunOptions bad = good;
    bad.fault = fault;
    EXPECT_FALSE(SameBytes(Outputs(good, seqs, InChunks(chunk)), Outputs(bad, seqs, InChunks(chunk))))
        << text;
  }
}

TEST(PageRuleTail, AgreesWithTheRuleInDouble) {
  const auto seqs = ThreeSequences();
  const AttentionRecipe recipe = *ParseRecipe("flashq4 tail=int8", DType::kF32);
  const auto truth = Truth(seqs[0], recipe, true), broken = Truth(seqs[0], recipe, false);
  for (const cpu::CpuKernels* isa : Isas()) {
    const auto out = Outputs({.isa = isa, .recipe = recipe}, seqs, InChunks(77));
    EXPECT_LT(WorstDifference(out, truth), 1e-3) << isa->isa;  // codes meet integers
    EXPECT_GT(WorstDifference(out, broken), 2e-3) << isa->isa;
  }
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
    EXPECT_GT(worst, 0) << text << " is computed as exact";
  }
}

}  // namespace
}  // namespace nibble::test
