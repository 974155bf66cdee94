// SPDX-License-Identifier: Apache-2.0
// Floor 6. Which page holds which tokens behind which prefix. A key is a hash chained over all tokens of the
// prefix, its scope and its salt; a page found by its key is compared in full (its 64 tokens, the page before
// it, at the beginning the salt), so that a collision costs a lookup and never gives a wrong page.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct PrefixKey {
  uint64_t low = 0, high = 0;
  bool operator==(const PrefixKey&) const = default;
};

class PrefixIndex {
 public:
  using Hash = PrefixKey (*)(const void* data, size_t bytes);
  static PrefixKey Xxh3(const void* data, size_t bytes);  // XXH3-128

  // `scope`: what the bytes of a page depend on besides tokens: model, recipe, plan. Nothing but Add of a
  // page without a page before it and with a long salt allocates later.
  PrefixIndex(int64_t pages, std::string_view scope, Hash hash = Xxh3);

  PrefixKey Root(std::string_view salt) const;                                  // before the first page
  PrefixKey Next(const PrefixKey& key, std::span<const int32_t> tokens) const;  // tokens: of one page

  // The page of `tokens` behind the page `before` (-1: none, then of `salt`); -1 where there is none.
  int32_t Find(const PrefixKey& key, int32_t before, std::string_view salt,
               std::span<const int32_t> tokens) const;
  // REQUIRES that Find says -1 and that `page` is not in the index.
  void Add(int32_t page, const PrefixKey& key, int32_t before, std::string_view salt,
           std::span<const int32_t> tokens);
  void Remove(int32_t page);
  bool Has(int32_t page) const { return entries_[size_t(page)].held; }

 private:
  struct Entry {
    PrefixKey key;
    bool held = false;
    int32_t before = -1, next = -1;  // next: of its bucket
    std::string salt;                // of a first page
  };
  size_t Bucket(const PrefixKey& key) const { return size_t(key.low) & (buckets_.size() - 1); }
  std::span<const int32_t> TokensOf(int32_t page) const;

  const Hash hash_;
  const std::string scope_;
  std::vector<Entry> entries_;    // [pages]
  std::vector<int32_t> tokens_;   // [pages, 64]
  std::vector<int32_t> buckets_;  // first page of each, -1: none
};

}  // namespace nibble
