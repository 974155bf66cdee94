// SPDX-License-Identifier: Apache-2.0
// Floor 6. What a sequence holds of one layer, copied to host memory and back: its open page and the state
// beside it, then its sealed pages with their records, the oldest first. Pages are copied byte by byte,
// except QAQ's, whose planes lie in arenas and come back to other places.
#pragma once
#include <cstdint>
#include <span>

#include "backend/backend.h"

namespace nibble {

// A layer as KvCache::View shows it.
struct SwapLayer {
  Backend& backend;
  const KvView& kv;
  int32_t seq;                     // whose slot
  std::span<const int32_t> pages;  // oldest first
};

int64_t SwapBytes(const SwapLayer& layer);
// Both give the end of what they wrote or read. Copies may be under way until Backend::Sync.
std::byte* SwapOut(const SwapLayer& layer, std::byte* to);
// `skip` of the pages are there already; not under QAQ.
const std::byte* SwapIn(const SwapLayer& layer, int64_t skip, const std::byte* from);

// Memory that goes back to the system when it is given up.
class HostBlock {
 public:
  HostBlock() = default;
  static HostBlock Make(size_t bytes);  // without data when there is no memory
  ~HostBlock();
  HostBlock(HostBlock&& other) noexcept;
  HostBlock& operator=(HostBlock&& other) noexcept;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace nibble
