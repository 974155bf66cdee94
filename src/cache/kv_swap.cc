// SPDX-License-Identifier: Apache-2.0
#include "cache/kv_swap.h"

#include <sys/mman.h>

#include <utility>

#include "backend/kv_view.h"
#include "backend/qaq_pages.h"
#include "base/check.h"

namespace nibble {
namespace {

bool InArenas(const KvView& kv, KvSide side) {
  return (side == KvSide::kK ? kv.k_qaq : kv.v_qaq).params != nullptr;
}

// f(address, bytes) for all that belongs to the sequence and its open page.
template <class F>
void VisitSlot(const SwapLayer& l, F&& f) {
  const KvView& kv = l.kv;
  const auto heads = size_t(kv.kv_heads);
  for (const bool is_v : {false, true}) {
    const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
    const size_t raw = RawBytes(kv, codec.raw);
    f(RawPage(kv, is_v, l.seq, 0, raw), heads * raw);
    const HeadMix& mix = is_v ? kv.v_mix : kv.k_mix;
    if (mix.places != nullptr)
      f(reinterpret_cast<std::byte*>(mix.places + int64_t{l.seq} * kv.kv_heads),
        heads * sizeof(kv::HeadPlace));
  }
  if (kv.side.seq_bytes > 0) f(OpenRecord(kv, l.seq, 0), heads * size_t(kv.side.seq_bytes));
  if (kv.qaq_state != nullptr)
    f(reinterpret_cast<std::byte*>(kv.qaq_state + int64_t{l.seq} * kv.kv_heads), heads * sizeof(QaqState));
}

// f(address, bytes) for what a sealed page keeps in places of its own.
template <class F>
void VisitPage(const KvView& kv, int32_t page, F&& f) {
  for (const KvSide side : {KvSide::kK, KvSide::kV}) {
    const bool is_v = side == KvSide::kV;
    const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
    const int64_t row = kv::RowBytes(codec, kv.page, kv.kv_heads, (is_v ? kv.v_mix : kv.k_mix).two_bit);
    if (!InArenas(kv, side)) f((is_v ? kv.v_pool : kv.k_pool) + page * row, size_t(row));
    const QaqStore& qaq = is_v ? kv.v_qaq : kv.k_qaq;
    const size_t raw = size_t(kv.kv_heads) * RawBytes(kv, codec.raw);
    if (qaq.host != nullptr) f(qaq.host + size_t(page) * raw, raw);
  }
  if (kv.side.bytes > 0) f(PageRecord(kv, page, 0), size_t(kv.kv_heads * kv.side.bytes));
}

// f(pages of a KV head, the record of `page`) for the pages that lie in arenas.
template <class F>
void VisitArenas(const SwapLayer& l, int32_t page, F&& f) {
  for (const KvSide side : {KvSide::kK, KvSide::kV}) {
    if (!InArenas(l.kv, side)) continue;
    for (int head = 0; head < l.kv.kv_heads; ++head) {
      QaqPages pages = QaqPagesOf(l.kv, side, head);
      f(pages, SealedPagesOf(l.kv, side == KvSide::kV, l.seq, head).At(page));
    }
  }
}

}  // namespace

int64_t SwapBytes(const SwapLayer& l) {
  int64_t bytes = 0;
  const auto count = [&bytes](const std::byte*, size_t n) { bytes += int64_t(n); };
  VisitSlot(l, count);
  for (const int32_t page : l.pages) {
    VisitPage(l.kv, page, count);
    VisitArenas(l, page, [&](const QaqPages& qaq, const std::byte* record) { bytes += qaq.Bytes(record); });
  }
  return bytes;
}

std::byte* SwapOut(const SwapLayer& l, std::byte* to) {
  const auto copy = [&](const std::byte* from, size_t n) {
    l.backend.Download(from, to, n);
    to += n;
  };
  VisitSlot(l, copy);
  for (const int32_t page : l.pages) {
    VisitPage(l.kv, page, copy);
    VisitArenas(l, page, [&](const QaqPages& qaq, const std::byte* record) { to = qaq.Save(record, to); });
  }
  return to;
}

const std::byte* SwapIn(const SwapLayer& l, int64_t skip, const std::byte* from) {
  const auto copy = [&](std::byte* to, size_t n) {
    l.backend.Upload(from, to, n);
    from += n;
  };
  VisitSlot(l, copy);
  for (const int32_t page : l.pages) {
    const bool there = skip-- > 0;
    if (there) {
      VisitPage(l.kv, page, [&](const std::byte*, size_t n) { from += n; });
    } else {
      VisitPage(l.kv, page, copy);
    }
    VisitArenas(l, page, [&](QaqPages& qaq, std::byte* record) {
      NIBBLE_CHECK(!there, "pages of QAQ are not shared");
      from = qaq.Load(from, record);
    });
  }
  return from;
}

HostBlock HostBlock::Make(size_t bytes) {
  HostBlock block;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return block;
  block.data_ = static_cast<std::byte*>(at), block.bytes_ = bytes;
  return block;
}

HostBlock::~HostBlock() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

HostBlock::HostBlock(HostBlock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

HostBlock& HostBlock::operator=(HostBlock&& other) noexcept {
  std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace nibble
