// SPDX-License-Identifier: Apache-2.0
// Floor 6. Who holds which page. A page has as many holders as sequences that read it; one that nobody holds
// is free or, when it is of a prefix that may come again, idle: idle pages are given away, the longest unused
// first, when no page is free.
//
// Pages of a sequence are chained from the newest to the oldest, so that a sequence of any length needs no
// memory of its own. Sequences that share a page share all pages before it; whoever holds a page holds those,
// and gives back the newest first. So of a chain the newest page is always given away first.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "cache/prefix_index.h"

namespace nibble {

class PagePool {
 public:
  // `scope` as in PrefixIndex.
  PagePool(int64_t pages, std::string_view scope);

  int64_t total() const { return int64_t(pages_.size()); }
  int64_t available() const { return int64_t(free_.size()) + idle_count_; }  // free and idle
  int64_t idle() const { return idle_count_; }

  int32_t Take(int32_t before);  // for one holder; REQUIRES available() > 0
  void Hold(int32_t page);       // one holder more
  void Drop(int32_t page);       // one less
  int32_t holders(int32_t page) const { return pages_[size_t(page)].holders; }
  int32_t before(int32_t page) const { return pages_[size_t(page)].before; }
  void SetBefore(int32_t page, int32_t before) { pages_[size_t(page)].before = before; }

  PrefixIndex& index() { return index_; }
  const PrefixIndex& index() const { return index_; }

 private:
  struct Page {
    int32_t holders = 0;
    int32_t before = -1;             // of the same sequence, -1: none
    int32_t older = -1, newer = -1;  // among the idle
  };
  void Unlink(int32_t page);  // from the idle

  std::vector<Page> pages_;
  std::vector<int32_t> free_;
  int32_t oldest_ = -1, newest_ = -1;  // idle
  int64_t idle_count_ = 0;
  PrefixIndex index_;
};

}  // namespace nibble
