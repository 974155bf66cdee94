// SPDX-License-Identifier: Apache-2.0
// Pages that sequences share: found by content, compared in full, given away in the right order, never lost;
// rows that are taken back. No model and no bytes: what pages hold is what this test fed.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "cache/page_pool.h"

namespace nibble {
namespace {

constexpr int kPage = 64;
using Ids = std::vector<int32_t>;

Ids PageOf(int32_t token) { return Ids(kPage, token); }

TEST(PrefixIndex, ComparesInFullWhenAllKeysAreEqual) {
  const auto same = [](const void*, size_t) { return PrefixKey{1, 1}; };
  PrefixIndex index(8, "scope", same);
  const PrefixKey key = index.Root("a");
  EXPECT_EQ(key, index.Next(key, PageOf(1)));
  index.Add(0, key, -1, "a", PageOf(1));
  index.Add(1, key, 0, "a", PageOf(2));
  index.Add(2, key, -1, "b", PageOf(1));
  EXPECT_EQ(index.Find(key, -1, "a", PageOf(1)), 0);
  EXPECT_EQ(index.Find(key, -1, "b", PageOf(1)), 2);
  EXPECT_EQ(index.Find(key, -1, "c", PageOf(1)), -1);
  EXPECT_EQ(index.Find(key, -1, "a", PageOf(2)), -1);
  EXPECT_EQ(index.Find(key, 0, "a", PageOf(2)), 1);
  EXPECT_EQ(index.Find(key, 2, "b", PageOf(2)), -1);
  Ids one_differs = PageOf(1);
  one_differs[63] = 2;
  EXPECT_EQ(index.Find(key, -1, "a", one_differs), -1);
  index.Remove(1);
  EXPECT_EQ(index.Find(key, 0, "a", PageOf(2)), -1);
  EXPECT_EQ(index.Find(key, -1, "a", PageOf(1)), 0);
}

TEST(PrefixIndex, KeysDependOnScopeSaltAndEveryToken) {
  PrefixIndex index(1, "scope"), other(1, "scope2");
  const PrefixKey root = index.Root("salt");
  EXPECT_NE(root, other.Root("salt"));
  EXPECT_NE(root, index.Root("Salt"));
  EXPECT_NE(index.Root("ab"), PrefixIndex(1, "scopea").Root("b"));  // a part is not the end of another
  Ids tokens = PageOf(5);
  const PrefixKey key = index.Next(root, tokens);
  for (int32_t& t : tokens) {
    ++t;
    EXPECT_NE(index.Next(root, tokens), key);
    --t;
  }
  EXPECT_NE(index.Next(key, tokens), key);
}

TEST(PagePool, GivesTheLongestUnusedAwayAndTheEndOfAChainFirst) {
  PagePool pool(3, "scope");
  const auto keep = [&](int32_t page, int32_t before, int32_t token) {
    pool.index().Add(page, {uint64_t(token), 0}, before, "", PageOf(token));
  };
  const int32_t a = pool.Take(-1), b = pool.Take(a), c = pool.Take(-1);
  keep(a, -1, 1), keep(b, a, 2), keep(c, -1, 3);
  pool.Drop(b), pool.Drop(a), pool.Drop(c);  // as sequences do: the newest first
  EXPECT_EQ(pool.idle(), 3);
  EXPECT_EQ(pool.available(), 3);
  pool.Hold(c);
  EXPECT_EQ(pool.Take(c), b);
  EXPECT_EQ(pool.Take(-1), a);
  EXPECT_FALSE(pool.index().Has(a));
  EXPECT_TRUE(pool.index().Has(c));
  EXPECT_EQ(pool.available(), 0);
  pool.Drop(a);
  EXPECT_EQ(pool.Take(-1), a);  // free, as it is of no prefix any more
}

// Random sequences over two tokens, so that prefixes come again, on a pool that is too small.
class SharedPages : public testing::Test {
 protected:
  static constexpr int64_t kPages = 24;
  struct Open {
    Ids tokens;
    int64_t length = 0;
  };

  void SetUp() override {
    backend_ = *MakeCpuBackend(1);
    cache_ = *KvCache::Make(*backend_, {.shape = {1, 1, 8},
                                        .max_seqs = 5,
                                        .max_step_tokens = 256,
                                        .max_tokens = kPages * kPage,
                                        .prefix_scope = "scope"});
  }
  Ids RandomTokens() {
    Ids tokens;
    for (auto pages = 1 + rng_() % 5; pages > 0; --pages) {
      const Ids page = PageOf(int32_t(rng_() % 2));
      tokens.insert(tokens.end(), page.begin(), page.end());
    }
    tokens.resize(tokens.size() - rng_() % kPage);
    return tokens;
  }
  Ids Prefix(const Open& open, int64_t pages) const {
    return Ids(open.tokens.begin(), open.tokens.begin() + pages * kPage);
  }

  void OpenOne() {
    const auto id = cache_->Open();
    if (!id.ok()) return;
    Open open{.tokens = RandomTokens()};
    const auto all_but_last = std::span(open.tokens).first(open.tokens.size() - 1);
    const PrefixMatch match = cache_->FindPrefix(all_but_last, "");
    const int64_t before = cache_->FreeTokens();
    open.length = cache_->TakePrefix(*id, all_but_last, "");
    EXPECT_EQ(open.length, match.tokens);
    EXPECT_EQ(cache_->FreeTokens(), before - match.idle_pages * kPage);
    hits_ += open.length > 0;
    open_[*id] = open;
  }

  void Feed(SeqId id, Open* open) {
    const int64_t rows = std::min<int64_t>(int64_t(open->tokens.size()) - open->length, 1 + rng_() % 100);
    const auto count = int32_t(rows);
    if (rows == 0 || !cache_->BeginStep({&id, 1}, {&count, 1}).ok()) return;
    const KvView view = cache_->View(0);
    for (const KvSegment& s : view.segments) {
      for (int32_t p = 0; p < s.pages; ++p)  // what it reads is what was once fed behind the same prefix
        EXPECT_EQ(holds_[view.page_table[size_t(s.table + p)]], Prefix(*open, p + 1));
      if (s.seal_page >= 0) holds_[s.seal_page] = Prefix(*open, s.pages + 1);
    }
    open->length += rows;
    cache_->Keep(id, std::span(open->tokens).first(size_t(open->length)));
  }

  // Of equal prefixes that are kept there is one page: so many different ones are in use.
  size_t DifferentPages() const {
    std::map<Ids, int> different;
    for (const auto& [id, open] : open_)
      for (int64_t p = 1; p * kPage <= open.length; ++p) ++different[Prefix(open, p)];
    return different.size();
  }

  std::mt19937 rng_{4};
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvCache> cache_;
  std::map<SeqId, Open> open_;
  std::map<int32_t, Ids> holds_;  // page: its tokens and all before
  int hits_ = 0;
};

TEST_F(SharedPages, RandomSequencesReadTheirOwnPrefixes) {
  for (int step = 0; step < 20000; ++step) {
    if (rng_() % 4 == 0) OpenOne();
    if (open_.empty()) continue;
    const auto it = std::next(open_.begin(), int64_t(rng_() % open_.size()));
    if (rng_() % 6 == 0) {
      cache_->Close(it->first);
      open_.erase(it);
    } else {
      Feed(it->first, &it->second);
    }
    ASSERT_EQ(cache_->Pages().used, int64_t(DifferentPages()));
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(hits_, 1000);
  while (!open_.empty()) {
    cache_->Close(open_.begin()->first);
    open_.erase(open_.begin());
  }
  EXPECT_EQ(cache_->FreeTokens(), kPages * kPage);
  EXPECT_GT(cache_->Pages().idle, 0);
}

TEST_F(SharedPages, RollBackTakesRowsOfTheOpenPageBack) {
  const SeqId id = *cache_->Open();
  const auto feed = [&](int32_t count) { ASSERT_TRUE(cache_->BeginStep({&id, 1}, {&count, 1}).ok()); };
  feed(60), feed(6);  // the certain row and two more complete the page, three guesses follow
  cache_->RollBack(id, 64);
  EXPECT_EQ(cache_->Length(id), 64);
  feed(5);
  EXPECT_EQ(cache_->Positions()[0], 64);
  EXPECT_DEATH(cache_->RollBack(id, 63), "RollBack over a page");
}

}  // namespace
}  // namespace nibble
