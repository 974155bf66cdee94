// SPDX-License-Identifier: Apache-2.0
#include "cache/page_pool.h"

#include "base/check.h"

namespace nibble {

PagePool::PagePool(int64_t pages, std::string_view scope) : pages_(size_t(pages)), index_(pages, scope) {
  free_.reserve(size_t(pages));
  for (int64_t p = pages; p-- > 0;) free_.push_back(int32_t(p));
}

int32_t PagePool::Take(int32_t before) {
  NIBBLE_CHECK(available() > 0, "no page to take");
  int32_t page = oldest_;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    Unlink(page);
    index_.Remove(page);
  }
  pages_[size_t(page)].holders = 1;
  pages_[size_t(page)].before = before;
  return page;
}

void PagePool::Hold(int32_t page) {
  if (pages_[size_t(page)].holders++ == 0) Unlink(page);
}

void PagePool::Drop(int32_t page) {
  Page& p = pages_[size_t(page)];
  NIBBLE_CHECK(p.holders > 0, "a page that nobody holds is dropped");
  if (--p.holders > 0) return;
  if (!index_.Has(page)) {
    free_.push_back(page);
    return;
  }
  p.older = newest_, p.newer = -1;
  (newest_ >= 0 ? pages_[size_t(newest_)].newer : oldest_) = page;
  newest_ = page;
  ++idle_count_;
}

void PagePool::Unlink(int32_t page) {
  Page& p = pages_[size_t(page)];
  NIBBLE_CHECK(p.holders <= 1 && idle_count_ > 0, "a page that is not idle");
  (p.older >= 0 ? pages_[size_t(p.older)].newer : oldest_) = p.newer;
  (p.newer >= 0 ? pages_[size_t(p.newer)].older : newest_) = p.older;
  p.older = p.newer = -1;
  --idle_count_;
}

}  // namespace nibble
