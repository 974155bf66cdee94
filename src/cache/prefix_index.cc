// SPDX-License-Identifier: Apache-2.0
#include "cache/prefix_index.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "quant/kv/codec.h"

namespace nibble {
namespace {

using kv::kPageTokens;

}  // namespace

PrefixKey PrefixIndex::Xxh3(const void* data, size_t bytes) {
  const XXH128_hash_t h = XXH3_128bits(data, bytes);
  return {h.low64, h.high64};
}

PrefixIndex::PrefixIndex(int64_t pages, std::string_view scope, Hash hash)
    : hash_(hash),
      scope_(scope),
      entries_(size_t(pages)),
      tokens_(size_t(pages) * kPageTokens),
      buckets_(std::bit_ceil(size_t(std::max<int64_t>(pages, 1)) * 2), -1) {}

// Lengths go in too, so that no part can be taken for the end of another.
PrefixKey PrefixIndex::Root(std::string_view salt) const {
  const std::string text = fmt::format("{} {} {}{}", scope_.size(), salt.size(), scope_, salt);
  return hash_(text.data(), text.size());
}

PrefixKey PrefixIndex::Next(const PrefixKey& key, std::span<const int32_t> tokens) const {
  NIBBLE_CHECK(tokens.size() == kPageTokens, "a prefix key is of whole pages");
  std::array<std::byte, sizeof(PrefixKey) + kPageTokens * sizeof(int32_t)> text;
  memcpy(text.data(), &key, sizeof(PrefixKey));
  memcpy(text.data() + sizeof(PrefixKey), tokens.data(), tokens.size_bytes());
  return hash_(text.data(), text.size());
}

std::span<const int32_t> PrefixIndex::TokensOf(int32_t page) const {
  return std::span(tokens_).subspan(size_t(page) * kPageTokens, kPageTokens);
}

int32_t PrefixIndex::Find(const PrefixKey& key, int32_t before, std::string_view salt,
                          std::span<const int32_t> tokens) const {
  for (int32_t page = buckets_[Bucket(key)]; page >= 0; page = entries_[size_t(page)].next) {
    const Entry& e = entries_[size_t(page)];
    if (e.key == key && e.before == before && (before >= 0 || e.salt == salt) &&
        std::ranges::equal(TokensOf(page), tokens))
      return page;
  }
  return -1;
}

void PrefixIndex::Add(int32_t page, const PrefixKey& key, int32_t before, std::string_view salt,
                      std::span<const int32_t> tokens) {
  Entry& e = entries_[size_t(page)];
  NIBBLE_CHECK(!e.held && tokens.size() == kPageTokens, "PrefixIndex::Add");
  int32_t& first = buckets_[Bucket(key)];
  e.key = key, e.held = true, e.before = before, e.next = first;
  e.salt = before < 0 ? salt : std::string_view();
  std::ranges::copy(tokens, tokens_.begin() + int64_t{page} * kPageTokens);
  first = page;
}

void PrefixIndex::Remove(int32_t page) {
  Entry& e = entries_[size_t(page)];
  NIBBLE_CHECK(e.held, "PrefixIndex::Remove");
  int32_t* link = &buckets_[Bucket(e.key)];
  while (*link != page) link = &entries_[size_t(*link)].next;
  *link = e.next;
  e.held = false;
}

}  // namespace nibble
