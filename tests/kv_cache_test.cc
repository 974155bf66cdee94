// SPDX-License-Identifier: Apache-2.0
// The paged KV cache: segments of a step, the page rule, and page accounting. The rule is tested twice: on
// tokens as tags, and on attention outputs, which must be the same bytes however the tokens were fed.
#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "backend/cpu_backend.h"
#include "kernels/cpu/kernels.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kPage = kv::kPageTokens;

std::unique_ptr<Backend> AnyBackend() {
  auto backend = MakeCpuBackend(1);
  NIBBLE_CHECK(backend.ok(), "no backend");
  return *std::move(backend);
}

std::unique_ptr<KvCache> MustMake(Backend& backend, const KvCacheOptions& options) {
  auto cache = KvCache::Make(backend, options);
  NIBBLE_CHECK(cache.ok(), cache.status().message().c_str());
  return *std::move(cache);
}

KvCacheOptions SmallOptions(int max_seqs, int max_step_tokens, int64_t max_tokens) {
  return {.shape = {.layers = 1, .kv_heads = 1, .head_dim = 8},
          .recipe = {},
          .max_seqs = max_seqs,
          .max_step_tokens = max_step_tokens,
          .max_tokens = max_tokens};
}

// ---- Bookkeeping on tags --------------------------------------------------------------------------------

// A token as (sequence, position); what a raw page or a sealed page holds is a list of tags.
using Tag = std::pair<int, int64_t>;
constexpr Tag kNothing{-1, -1};

// Plays the steps of a cache on tags, as KvAppend and Attention do on rows.
class TagModel {
 public:
  enum class Order { kCopyFirst, kCopyLate };
  explicit TagModel(Order order) : order_(order) {}

  // True when every query of the step would see exactly its sequence's tokens, each where the rule says.
  bool Step(const KvView& view, std::span<const SeqId> seqs, std::span<const int32_t> counts) {
    owner_.clear();
    for (size_t i = 0; i < seqs.size(); ++i) owner_.insert(owner_.end(), size_t(counts[i]), seqs[i]);
    if (order_ == Order::kCopyFirst)
      for (const KvSegment& s : view.segments) Copy(s);
    for (const KvSegment& s : view.segments) Append(s);
    bool ok = true;
    for (const KvSegment& s : view.segments) ok &= SeesItsTokens(view, s);
    return ok;
  }

 private:
  std::vector<Tag>& Raw(int32_t slot) {
    auto& raw = raw_[slot];
    raw.resize(kPage, kNothing);
    return raw;
  }
  void Copy(const KvSegment& s) {
    if (s.copy_from < 0) return;
    const auto from = Raw(s.copy_from);
    std::copy(from.begin(), from.begin() + s.position % kPage, Raw(s.raw_slot).begin());
  }
  void Append(const KvSegment& s) {
    for (int i = 0; i < s.rows; ++i)
      Raw(s.raw_slot)[size_t(s.position % kPage + i)] = {owner_[size_t(s.row + i)], s.position + i};
  }
  bool SeesItsTokens(const KvView& view, const KvSegment& s) {
    if (order_ == Order::kCopyLate) Copy(s);
    const int seq = owner_[size_t(s.row)];
    const auto& raw = Raw(s.raw_slot);
    const int first = s.position / kPage * kPage;
    for (int64_t t = first; t < s.position + s.rows; ++t)
      if (raw[size_t(t - first)] != Tag{seq, t}) return false;
    const bool full = (s.position + s.rows) % kPage == 0;
    if (full != (s.seal_page >= 0) || s.pages != s.position / kPage) return false;
    if (full) sealed_[s.seal_page] = raw;
    for (int p = 0; p < s.pages; ++p) {
      auto& page = sealed_[view.page_table[size_t(s.table + p)]];
      page.resize(kPage, kNothing);
      for (int t = 0; t < kPage; ++t)
        if (page[size_t(t)] != Tag{seq, p * kPage + t}) return false;
    }
    return true;
  }

  const Order order_;
  std::vector<SeqId> owner_;  // of each row of the step
  std::map<int32_t, std::vector<Tag>> raw_, sealed_;
};

// Feeds random counts to random sequences, opening and closing some on the way. Returns whether all steps
// were right.
bool PlayRandomSteps(TagModel::Order order, uint32_t seed) {
  auto backend = AnyBackend();
  constexpr int kSeqs = 5, kStep = 300;
  auto cache = MustMake(*backend, SmallOptions(kSeqs, kStep, 6000));
  TagModel model(order);
  std::mt19937 random(seed);
  std::vector<SeqId> open;
  bool ok = true;
  for (int step = 0; step < 200; ++step) {
    if (open.size() < kSeqs && random() % 3 == 0) open.push_back(*cache->Open());
    if (!open.empty() && random() % 9 == 0) {
      cache->Close(open.front());
      open.erase(open.begin());
    }
    std::vector<SeqId> seqs;
    std::vector<int32_t> counts;
    int32_t left = kStep;
    for (SeqId s : open) {
      if (random() % 4 == 0) continue;
      const int32_t count =
          std::min<int32_t>(left, int32_t(random() % 2 ? 1 + random() % 4 : random() % 200));
      seqs.push_back(s), counts.push_back(count);
      left -= count;
    }
    if (!cache->BeginStep(seqs, counts).ok()) continue;
    EXPECT_EQ(cache->Positions().size(), size_t(kStep - left));
    ok &= model.Step(cache->View(0), seqs, counts);
  }
  return ok;
}

TEST(KvCacheSegments, EveryQuerySeesItsTokens) {
  for (uint32_t seed = 1; seed <= 5; ++seed)
    EXPECT_TRUE(PlayRandomSteps(TagModel::Order::kCopyFirst, seed)) << seed;
}

TEST(KvCacheSegments, CopyingTheOpenPageTooLateIsSeen) {
  bool ok = true;
  for (uint32_t seed = 1; seed <= 5; ++seed) ok &= PlayRandomSteps(TagModel::Order::kCopyLate, seed);
  EXPECT_FALSE(ok);
}

TEST(KvCacheSegments, CutsAtPageBoundaries) {
  auto backend = AnyBackend();
  auto cache = MustMake(*backend, SmallOptions(2, 512, 1024));
  const SeqId seqs[] = {*cache->Open()};
  const int32_t first[] = {10}, second[] = {54 + 64 + 5}, third[] = {59};
  ASSERT_TRUE(cache->BeginStep(seqs, first).ok());
  auto s = cache->View(0).segments;
  ASSERT_EQ(s.size(), 1u);
  EXPECT_EQ(s[0].raw_slot, seqs[0]);
  EXPECT_EQ(s[0].seal_page, -1);

  ASSERT_TRUE(cache->BeginStep(seqs, second).ok());
  s = cache->View(0).segments;
  ASSERT_EQ(s.size(), 3u);
  EXPECT_LT(s[0].raw_slot, 0);  // completes the open page while more follows: scratch
  EXPECT_EQ(s[0].copy_from, seqs[0]);
  EXPECT_GE(s[0].seal_page, 0);
  EXPECT_LT(s[1].raw_slot, 0);  // a whole page
  EXPECT_EQ(s[1].copy_from, -1);
  EXPECT_EQ(s[1].pages, 1);
  EXPECT_EQ(cache->View(0).page_table[size_t(s[1].table)], s[0].seal_page);
  EXPECT_EQ(s[2].raw_slot, seqs[0]);
  EXPECT_EQ(s[2].pages, 2);

  ASSERT_TRUE(cache->BeginStep(seqs, third).ok());  // the last segment completes its page: stays in the tail
  s = cache->View(0).segments;
  ASSERT_EQ(s.size(), 1u);
  EXPECT_EQ(s[0].raw_slot, seqs[0]);
  EXPECT_EQ(s[0].copy_from, -1);
  EXPECT_GE(s[0].seal_page, 0);
  EXPECT_EQ(cache->Length(seqs[0]), 192);
  EXPECT_EQ(cache->Positions().front(), 133);
  EXPECT_EQ(cache->Positions().back(), 191);
}

TEST(KvCacheSegments, TheLargestStepFitsItsScratch) {
  // Sequences one token short of a full page share the rows of a step: BeginStep CHECKs its bounds.
  auto backend = AnyBackend();
  for (int step : {1, 2, 3, 4, 63, 64, 65, 66, 67, 128, 129, 130, 131, 200}) {
    for (int first = 0; first <= step; ++first) {
      auto cache = MustMake(*backend, SmallOptions(2, step, 4096));
      const SeqId seqs[] = {*cache->Open(), *cache->Open()};
      for (const SeqId& seq : seqs) {
        for (int32_t left = kPage - 1; left > 0; left -= std::min(left, step)) {
          const int32_t counts[] = {std::min(left, step)};
          ASSERT_TRUE(cache->BeginStep({&seq, 1}, counts).ok());
        }
      }
      const int32_t counts[] = {first, step - first};
      ASSERT_TRUE(cache->BeginStep(seqs, counts).ok());
    }
  }
}

// ---- Accounting -----------------------------------------------------------------------------------------

TEST(KvCacheAccounting, NoPageIsLostOrGivenTwice) {
  auto backend = AnyBackend();
  auto cache = MustMake(*backend, SmallOptions(16, 512, 64 * 100));
  ASSERT_EQ(cache->FreeTokens(), 6400);
  std::mt19937 random(3);
  std::map<SeqId, std::vector<int32_t>> pages;  // sealed pages a sequence holds, as seen from outside
  for (int step = 0; step < 3000; ++step) {
    if (auto id = random() % 2 ? cache->Open() : Result<SeqId>(Status(Code::kNotFound, "")); id.ok())
      pages[*id] = {};
    if (pages.empty()) continue;
    auto it = std::next(pages.begin(), int64_t(random() % pages.size()));
    const SeqId seqs[] = {it->first};
    const int32_t counts[] = {int32_t(1 + random() % 512)};
    if (random() % 5 == 0) {
      cache->Close(it->first);
      pages.erase(it);
    } else if (cache->BeginStep(seqs, counts).ok()) {
      for (const KvSegment& s : cache->View(0).segments)
        if (s.seal_page >= 0) it->second.push_back(s.seal_page);
    }
    std::vector<bool> held(100, false);
    size_t total = 0;
    for (const auto& [id, list] : pages) {
      EXPECT_EQ(int64_t(list.size()), cache->Length(id) / kPage);
      for (int32_t p : list) {
        EXPECT_FALSE(held[size_t(p)]) << "page " << p << " held twice";
        held[size_t(p)] = true;
      }
      total += list.size();
    }
    ASSERT_EQ(cache->FreeTokens(), int64_t(100 - total) * kPage);
  }
  while (!pages.empty()) {
    cache->Close(pages.begin()->first);
    pages.erase(pages.begin());
  }
  EXPECT_EQ(cache->FreeTokens(), 6400);
}

TEST(KvCacheAccounting, ExhaustionChangesNothing) {
  auto backend = AnyBackend();
  auto cache = MustMake(*backend, SmallOptions(2, 512, 130));  // three pages
  const SeqId a = *cache->Open(), b = *cache->Open();
  const auto third = cache->Open();
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.status().code(), Code::kOutOfMemory);
  EXPECT_NE(third.status().message().find("all 2 sequences"), std::string::npos);

  const SeqId both[] = {a, b}, one[] = {a};
  const int32_t fits[] = {130, 30}, too_many[] = {62, 34}, exact[] = {62};
  ASSERT_TRUE(cache->BeginStep(both, fits).ok());
  const auto status = cache->BeginStep(both, too_many);
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  EXPECT_NE(status.message().find("fills 2 pages of 64 tokens; 1 of 3 are free"), std::string::npos)
      << status.message();
  EXPECT_EQ(cache->Length(a), 130);
  EXPECT_EQ(cache->Length(b), 30);
  EXPECT_EQ(cache->FreeTokens(), 64);
  EXPECT_EQ(cache->View(0).segments.size(), 4u);  // still the step before: 3 segments of a, 1 of b
  EXPECT_TRUE(cache->BeginStep(one, exact).ok());
  EXPECT_EQ(cache->FreeTokens(), 0);
  cache->Close(a);
  EXPECT_EQ(cache->FreeTokens(), 192);
}

TEST(KvCacheAccounting, OptionsAndSizesAreChecked) {
  auto backend = AnyBackend();
  KvCacheOptions o = SmallOptions(0, 512, 64);
  EXPECT_EQ(KvCache::Make(*backend, o).status().code(), Code::kInvalidArgument);
  o = SmallOptions(1, 512, int64_t{1} << 40);
  EXPECT_EQ(KvCache::Make(*backend, o).status().code(), Code::kInvalidArgument);
  o = SmallOptions(1, 512, INT32_MAX);
  o.shape = {.layers = 128, .kv_heads = 64, .head_dim = 256};
  const auto huge = KvCache::Make(*backend, o);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), Code::kOutOfMemory);
  EXPECT_NE(huge.status().message().find("bytes"), std::string::npos);
}

TEST(KvCacheAccounting, PlannedSizes) {
  const KvShape shape{.layers = 3, .kv_heads = 2, .head_dim = 64};
  const KvSizes exact = PlanKv(shape, 2, {}, 4, 1000);
  EXPECT_DOUBLE_EQ(exact.bits_per_value, 32.0);
  EXPECT_EQ(exact.bytes_per_token, 3 * 2 * 64 * 4 * 2);
  EXPECT_EQ(exact.tail_bytes_per_seq, 3 * 2 * 64 * 64 * 4 * 2);
  EXPECT_EQ(exact.pool_bytes, 16 * 64 * exact.bytes_per_token + 4 * exact.tail_bytes_per_seq);
  const AttentionRecipe int4{.k = kv::CodecId::kInt4Token, .v = kv::CodecId::kInt4Token};
  const KvSizes small = PlanKv(shape, 2, int4, 1, 1000);
  // A token and head: 64 codes of 4 bits, an f16 scale and an f16 offset.
  EXPECT_DOUBLE_EQ(small.bits_per_value, 4.0 + 32.0 / 64);
  EXPECT_EQ(small.tail_bytes_per_seq, 3 * 2 * 64 * 64 * 2 * 2);
  // The mean of K is kept once a sequence and head, not by page; the sum of queries (two heads) by page too.
  AttentionRecipe smooth = int4;
  smooth.arithmetic.qk = QkArith::kInt8Thread, smooth.arithmetic.smooth = Smooth::kK;
  const KvSizes mean = PlanKv(shape, 2, smooth, 1, 1000);
  EXPECT_DOUBLE_EQ(mean.bits_per_value, small.bits_per_value);
  EXPECT_EQ(mean.tail_bytes_per_seq, small.tail_bytes_per_seq + 3 * 2 * 64 * 4);
  smooth.arithmetic.smooth = Smooth::kQK;
  const KvSizes sums = PlanKv(shape, 4, smooth, 1, 1000);
  EXPECT_DOUBLE_EQ(sums.bits_per_value, small.bits_per_value + 2 * 64 * 4 * 8 / (2.0 * 64 * 64));
  EXPECT_EQ(sums.tail_bytes_per_seq, small.tail_bytes_per_seq + 3 * 2 * 3 * 64 * 4);
  const AttentionRecipe int8{.k = kv::CodecId::kFlashQ4, .v = kv::CodecId::kFlashQ2, .tail = kv::Tail::kInt8};
  // A byte a value, an exponent a token, scale, greatest magnitude and count.
  EXPECT_EQ(PlanKv(shape, 2, int8, 1, 1000).tail_bytes_per_seq, 3 * 2 * (64 * 64 + 64 + 12) * 2);
}

// Under bf16 arithmetic a GPU decodes the pages of a layer once, for the longest prompt: those of 1,000
// tokens and of a step's 512 raw, with one at each end.
TEST(KvCacheAccounting, PromptsOnAGpu) {
  const KvShape shape{.layers = 3, .kv_heads = 2, .head_dim = 64};
  const int64_t pages = 16 + 8 + 2, bytes = pages * 2 * 64 * 64 * 2 * 2;
  const auto prompt_bytes = [&shape](const char* recipe, DType dtype) {
    return PlanKv(shape, 4, *ParseRecipe(recipe, dtype), 1, 1000).prompt_bytes;
  };
  EXPECT_EQ(prompt_bytes("qserve", DType::kBF16), bytes);
  EXPECT_EQ(prompt_bytes("qserve", DType::kF32), 0);
  EXPECT_EQ(prompt_bytes("exact", DType::kBF16), 0) << "pages are bf16 already";
  EXPECT_EQ(prompt_bytes("qaq", DType::kBF16), 0) << "not on a GPU";
  // SageAttention: 6 tiles of queries, 20 of keys, results of 512 rows.
  EXPECT_EQ(prompt_bytes("sage2-8b", DType::kBF16),
            bytes + 6 * 4 * 128 * (64 + 8) + 20 * 2 * (128 * 2 * 64 + 64) + 512 * 4 * 4 + 6 * 256);
  // And where queries are smoothed two means a tile, with a float for each key of 14 tiles.
  EXPECT_EQ(prompt_bytes("sage2-4b", DType::kBF16) - prompt_bytes("sage2-8b", DType::kBF16),
            6 * 4 * 2 * 4 * (64 + 14 * 128) + 2 * 256);
  EXPECT_EQ(PlanKv({3, 2, 80}, 4, *ParseRecipe("qserve", DType::kBF16), 1, 1000).prompt_bytes, 0);
}

// Of three KV heads the share gives one 2 bits: the mean over heads counts.
TEST(KvCacheAccounting, MixedWidthsCountHeadByHead) {
  const KvShape shape{.layers = 5, .kv_heads = 3, .head_dim = 128};
  const AttentionRecipe mixed{.k = kv::CodecId::kFlashQMixed, .v = kv::CodecId::kFlashQ4};
  const kv::PageShape page{.head_dim = 128, .tokens = kv::kPageTokens};
  const kv::CodecInfo& codec = kv::Get(mixed.k);
  const int four = codec.pool_bytes(page), two = kv::Get(codec.two_bit).pool_bytes(page);
  ASSERT_LT(two, four);
  const KvSizes sizes = PlanKv(shape, 6, mixed, 2, 1000);
  EXPECT_DOUBLE_EQ(sizes.k_bits, 8.0 * (2 * four + two) / (3 * 64 * 128));
  EXPECT_DOUBLE_EQ(sizes.v_bits, 8.0 * four / (64 * 128));
  EXPECT_DOUBLE_EQ(sizes.bits_per_value, (sizes.k_bits + sizes.v_bits) / 2);
  const int64_t row = 5 * (5 * four + two);
  EXPECT_EQ(sizes.bytes_per_token, (row + 63) / 64);
  EXPECT_EQ(sizes.pool_bytes, 16 * row + 2 * sizes.tail_bytes_per_seq);
  EXPECT_EQ(sizes.tail_bytes_per_seq, 5 * 3 * (2 * 64 * 128 * 2 + int64_t{sizeof(kv::HeadPlace)}));
  EXPECT_EQ(sizes.least_bits_per_value, sizes.bits_per_value);
}

TEST(KvCacheDeathTest, OurBugsAreCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto backend = AnyBackend();
  auto cache = MustMake(*backend, SmallOptions(2, 8, 64));
  const SeqId a = *cache->Open();
  const SeqId twice[] = {a, a}, once[] = {a};
  const int32_t ones[] = {1, 1}, many[] = {9};
  EXPECT_DEATH((void)cache->BeginStep(twice, ones), "a sequence twice");
  EXPECT_DEATH((void)cache->BeginStep(once, many), "max_step_tokens");
  cache->Close(a);
  EXPECT_DEATH(cache->Close(a), "not open");
}

}  // namespace
}  // namespace nibble
