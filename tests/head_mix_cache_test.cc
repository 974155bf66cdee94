// SPDX-License-Identifier: Apache-2.0
// Precision by head through cache, backend and kernels: which heads of a sequence have 2 bits is the
// definition's choice from its first page, or the plan's; every head is to the bit what it is under the codec
// of its width; none of it depends on how a prompt was cut, with whom it was batched, or on threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "backend/cpu_backend.h"
#include "cache/kv_cache.h"
#include "kernels/cpu/kernels.h"
#include "kernels/ref/flashq.h"
#include "quant/kv/registry.h"
#include "tests/float_kernels.h"

namespace nibble {
namespace {

constexpr int kKvHeads = 5, kGroup = 2, kHeads = kKvHeads * kGroup, kDim = 48, kTokens = 210;
constexpr int kTwoBit = 2;  // half of 5 heads, and half a head keeps 4 bits
constexpr kv::CodecId kMixed = kv::CodecId::kFlashQMixed;
const kv::CodecId kTwo = kv::Get(kMixed).two_bit;
const std::string kFourName = "flashq4-search", kTwoName = kv::Get(kTwo).name;

// Q, K and V: [tokens, heads or kv_heads, head_dim].
struct Sequence {
  explicit Sequence(uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int heads) {
      x.resize(size_t(kTokens) * size_t(heads) * kDim);
      for (float& f : x) f = normal(random);
    };
    fill(q, kHeads), fill(k, kKvHeads), fill(v, kKvHeads);
  }
  std::vector<float> q, k, v;
};

AttentionRecipe Recipe(const std::string& text) {
  const auto recipe = ParseRecipe(text, DType::kF32);
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  return *recipe;
}

struct Options {
  std::string recipe;
  int chunk = kTokens;
  int threads = 1;
  const Plan* plan = nullptr;
  int first = 0;  // steps that sequence 0 runs before the others begin
};

// Outputs of each sequence, all fed in chunks: [tokens, heads, head_dim].
std::vector<std::vector<float>> Outputs(const Options& o, std::vector<Sequence> seqs) {
  CpuBackend backend(**cpu::ChooseIsa(), o.threads);
  EXPECT_TRUE(backend.Reserve(int(seqs.size()) * kTokens, 256, kHeads, kKvHeads, kDim).ok());
  const auto cache = *KvCache::Make(backend, {.shape = {1, kKvHeads, kDim},
                                              .heads = kHeads,
                                              .recipe = Recipe(o.recipe),
                                              .plan = o.plan,
                                              .max_seqs = int(seqs.size()),
                                              .max_step_tokens = int(seqs.size()) * kTokens,
                                              .max_tokens = int64_t(seqs.size()) * 256});
  std::vector<SeqId> ids;
  for (size_t i = 0; i < seqs.size(); ++i) ids.push_back(*cache->Open());
  std::vector<std::vector<float>> outs(seqs.size());
  for (int step = 0; outs.back().size() < seqs.back().q.size(); ++step) {
    std::vector<float> q, k, v;
    std::vector<int32_t> counts;
    for (size_t i = 0; i < seqs.size(); ++i) {
      const int fed = int(outs[i].size() / (kHeads * kDim));
      const int count = i > 0 && step < o.first ? 0 : std::min(o.chunk, kTokens - fed);
      counts.push_back(count);
      const auto take = [&](std::vector<float>& to, const std::vector<float>& from, int heads) {
        const auto begin = from.begin() + int64_t{fed} * heads * kDim;
        to.insert(to.end(), begin, begin + int64_t{count} * heads * kDim);
      };
      take(q, seqs[i].q, kHeads), take(k, seqs[i].k, kKvHeads), take(v, seqs[i].v, kKvHeads);
    }
    EXPECT_TRUE(cache->BeginStep(ids, counts).ok());
    const auto rows = int64_t(cache->Positions().size());
    std::vector<float> out(q.size(), NAN);
    const auto tensor = [&](std::vector<float>& x, int heads) {
      return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, heads, kDim});
    };
    const KvView view = cache->View(0);
    backend.KvAppend({view, tensor(k, kKvHeads), tensor(v, kKvHeads)});
    backend.Attention({view, tensor(q, kHeads), tensor(out, kHeads), kHeads, 0.15f, 0});
    auto row = out.begin();
    for (size_t i = 0; i < seqs.size(); ++i) {
      const int64_t n = int64_t{counts[i]} * kHeads * kDim;
      outs[i].insert(outs[i].end(), row, row + n), row += n;
    }
  }
  return outs;
}

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && test::SameBits(a.data(), b.data(), a.size());
}

// Which heads the definition gives 2 bits, from the first page of x as f16.
std::vector<bool> Defined(const std::vector<float>& x) {
  std::vector<double> priority;
  for (int h = 0; h < kKvHeads; ++h) {
    ref::Matrix page(kv::kPageTokens, kDim);
    for (int t = 0; t < kv::kPageTokens; ++t)
      for (int d = 0; d < kDim; ++d)
        page[t][d] = double(HalfToFloat(FloatToHalf(x[size_t((t * kKvHeads + h) * kDim + d)])));
    priority.push_back(ref::HeadPriority(page));
  }
  return ref::TwoBitHeads(priority, kTwoBit);
}

// Whether the query heads of KV head h have the same bytes in a and b.
bool SameHead(const std::vector<float>& a, const std::vector<float>& b, int h) {
  const size_t width = kGroup * kDim;
  for (size_t t = 0; t < kTokens; ++t) {
    const size_t at = (t * kKvHeads + size_t(h)) * width;
    if (!test::SameBits(a.data() + at, b.data() + at, width)) return false;
  }
  return true;
}

const char* const kArithmetics[] = {"", " qk=int8-block softmax=sas pv=int8"};

TEST(HeadMixCache, SharesOfNoneAndAllAreTheCodecsThemselves) {
  const std::vector<Sequence> one{Sequence(1)};
  for (const std::string arithmetic : kArithmetics) {
    const auto run = [&](const std::string& k, const std::string& v) {
      return Outputs({.recipe = "k=" + k + " v=" + v + arithmetic, .chunk = 77}, one)[0];
    };
    const std::string none = "flashq-mixed:2bit=0", all = "flashq-mixed:2bit=1";
    EXPECT_TRUE(Same(run(none, none), run(kFourName, kFourName))) << arithmetic;
    EXPECT_TRUE(Same(run(all, all), run(kTwoName, kTwoName))) << arithmetic;
    EXPECT_TRUE(Same(run(none, all), run(kFourName, kTwoName))) << arithmetic;
    EXPECT_TRUE(Same(run(all, none), run(kTwoName, kFourName))) << arithmetic;
    EXPECT_FALSE(Same(run("flashq-mixed", none), run(kFourName, kFourName))) << arithmetic;
    EXPECT_FALSE(Same(run("flashq-mixed", none), run(all, none))) << arithmetic;
  }
}

TEST(HeadMixCache, EachHeadHasTheWidthThatItsFirstPageEarned) {
  int widths[2] = {};
  for (const uint32_t seed : {1, 2, 3})
    for (const bool is_v : {false, true}) {
      const std::vector<Sequence> one{Sequence(seed)};
      const std::string side = is_v ? "v=" : "k=";
      const auto mixed = Outputs({.recipe = side + "flashq-mixed"}, one)[0];
      const auto four = Outputs({.recipe = side + kFourName}, one)[0];
      const auto two = Outputs({.recipe = side + kTwoName}, one)[0];
      const std::vector<bool> defined = Defined(is_v ? one[0].v : one[0].k);
      for (int h = 0; h < kKvHeads; ++h) {
        EXPECT_TRUE(SameHead(mixed, defined[size_t(h)] ? two : four, h)) << side << " head " << h;
        EXPECT_FALSE(SameHead(mixed, defined[size_t(h)] ? four : two, h)) << "the widths differ";
        ++widths[defined[size_t(h)]];
      }
    }
  EXPECT_EQ(widths[1], 3 * 2 * kTwoBit);
}

// The sequences choose different heads, so a row of pages is laid out by sequence.
TEST(HeadMixCache, BytesDoNotDependOnCutBatchOrThreads) {
  const std::vector<Sequence> three{Sequence(1), Sequence(2), Sequence(3)};
  ASSERT_NE(Defined(three[0].k), Defined(three[1].k));
  for (const std::string arithmetic : kArithmetics) {
    const std::string recipe = "k=flashq-mixed v=flashq-mixed" + arithmetic;
    std::vector<std::vector<float>> alone;
    for (const Sequence& s : three) alone.push_back(Outputs({.recipe = recipe}, {s})[0]);
    for (const int chunk : {1, 7, 63, 64, 65, 128})
      for (const int threads : {1, 3}) {
        const auto batch = Outputs({.recipe = recipe, .chunk = chunk, .threads = threads, .first = 2}, three);
        for (size_t i = 0; i < three.size(); ++i)
          EXPECT_TRUE(Same(batch[i], alone[i])) << arithmetic << " chunk " << chunk << " sequence " << i;
      }
    EXPECT_FALSE(Same(alone[0], alone[1]));
  }
}

// The codec that requantizes has pages of its own on the other side.
TEST(HeadMixCache, BesideQaq) {
  const std::vector<Sequence> two{Sequence(1), Sequence(2)};
  for (const std::string recipe : {"k=qaq v=flashq-mixed", "k=flashq-mixed v=qaq"}) {
    const auto whole = Outputs({.recipe = recipe}, two);
    for (const int chunk : {7, 65})
      EXPECT_EQ(Outputs({.recipe = recipe, .chunk = chunk, .threads = 2}, two), whole) << recipe;
    EXPECT_FALSE(Same(whole[0], Outputs({.recipe = "k=qaq v=qaq"}, two)[0])) << recipe;
  }
}

TEST(HeadMixCache, APlanNamesTheHeads) {
  const std::vector<Sequence> one{Sequence(4)};
  const Options own{.recipe = "k=flashq-mixed v=flashq-mixed"};
  Plan plan{.heads = kHeads, .kv_heads = kKvHeads, .head_dim = kDim, .layers = {{}}};
  const auto planned = [&] { return Outputs({.recipe = own.recipe, .chunk = 50, .plan = &plan}, one)[0]; };
  const auto want = Outputs(own, one)[0];
  EXPECT_TRUE(Same(planned(), want)) << "a plan that names none";
  plan.layers[0].k_two_bit = Defined(one[0].k), plan.layers[0].v_two_bit = Defined(one[0].v);
  EXPECT_TRUE(Same(planned(), want)) << "the same heads";
  std::vector<bool>& two = plan.layers[0].v_two_bit;
  std::rotate(two.begin(), two.begin() + 1, two.end());
  EXPECT_FALSE(Same(planned(), want)) << "other heads";
  const auto of_v = Outputs({.recipe = "k=flashq-mixed v=" + kTwoName, .plan = &plan}, one)[0];
  for (int h = 0; h < kKvHeads; ++h) EXPECT_EQ(SameHead(planned(), of_v, h), bool(two[size_t(h)])) << h;
}

}  // namespace
}  // namespace nibble
