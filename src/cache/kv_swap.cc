// SPDX-License-Identifier: Apache-2.0
#include "cache/kv_swap.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>
#include <vector>

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

// f(address, bytes) for the places of a page of one KV head on a device: its record, planes and outliers.
template <class F>
void VisitPlaces(const KvView& kv, KvSide side, int head, int32_t page, F&& f) {
  const QaqStore& store = side == KvSide::kK ? kv.k_qaq : kv.v_qaq;
  const int64_t plane_bytes = kv::QaqPlaneBytes(kv.page);
  f(SealedPagesOf(kv, side == KvSide::kV, 0, head).At(page), size_t(kv::QaqRecordBytes(kv.page)));
  f(store.planes + (head * store.plane_capacity + int64_t{page} * store.most_planes) * plane_bytes,
    size_t(store.most_planes * plane_bytes));
  f(store.cells + (head * store.cell_capacity + int64_t{page} * store.most_cells) * kv::kQaqCellBytes,
    size_t(store.most_cells) * kv::kQaqCellBytes);
}

// A record that was saved, and the cells that lie behind its planes, as they are to be at `page`.
void MovePlaces(const KvView& kv, KvSide side, int head, int32_t page, std::byte* record, std::byte* cells) {
  const QaqStore& store = side == KvSide::kK ? kv.k_qaq : kv.v_qaq;
  const std::byte* at = SealedPagesOf(kv, side == KvSide::kV, 0, head).At(page);
  kv::QaqHeader h = kv::LoadQaqHeader(record);
  h.planes_at = store.planes + head * store.plane_capacity * kv::QaqPlaneBytes(kv.page) - at;
  h.cells_at = store.cells + head * store.cell_capacity * kv::kQaqCellBytes - at;
  for (int b = 0; b < store.most_planes; ++b) h.plane[b] = uint32_t(page * store.most_planes + b);
  h.first_cell = uint32_t(page * store.most_cells);
  kv::StoreQaqHeader(record, h);
  for (int i = 0; i + 1 < kv::QaqCells(h.outliers); ++i) {
    const uint32_t next = h.first_cell + uint32_t(i) + 1;
    memcpy(cells + (i + 1) * kv::kQaqCellBytes - 4, &next, 4);
  }
}

void SwapInPlaces(const SwapLayer& l, KvSide side, int head, int32_t page, const std::byte** from) {
  std::vector<std::byte> bytes;
  VisitPlaces(l.kv, side, head, page, [&](const std::byte*, size_t n) { bytes.resize(bytes.size() + n); });
  memcpy(bytes.data(), *from, bytes.size());
  *from += bytes.size();
  const QaqStore& store = side == KvSide::kK ? l.kv.k_qaq : l.kv.v_qaq;
  MovePlaces(l.kv, side, head, page, bytes.data(),
             bytes.data() + bytes.size() - size_t(store.most_cells) * kv::kQaqCellBytes);
  const std::byte* next = bytes.data();
  VisitPlaces(l.kv, side, head, page, [&](std::byte* to, size_t n) {
    l.backend.Upload(next, to, n);
    next += n;
  });
}

bool OnDevice(const SwapLayer& l) { return l.backend.Info().device == Device::kCuda; }

// f(side, head) for the pages that a device keeps in places of their own.
template <class F>
void VisitHeads(const SwapLayer& l, F&& f) {
  if (!OnDevice(l)) return;
  for (const KvSide side : {KvSide::kK, KvSide::kV})
    for (int head = 0; InArenas(l.kv, side) && head < l.kv.kv_heads; ++head) f(side, head);
}

// f(pages of a KV head, the record of `page`) for the pages that lie in arenas, on the host.
template <class F>
void VisitArenas(const SwapLayer& l, int32_t page, F&& f) {
  if (OnDevice(l)) return;
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
    VisitHeads(l, [&](KvSide side, int head) { VisitPlaces(l.kv, side, head, page, count); });
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
    VisitHeads(l, [&](KvSide side, int head) { VisitPlaces(l.kv, side, head, page, copy); });
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
    VisitHeads(l, [&](KvSide side, int head) { SwapInPlaces(l, side, head, page, &from); });
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
