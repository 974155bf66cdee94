// SPDX-License-Identifier: Apache-2.0
#include "backend/qaq_pages.h"

#include <algorithm>

#include "quant/kv/qaq_update.h"

namespace nibble {

void QaqPages::Seal(const float* rows, double sigma, std::byte* page) {
  Release(page);
  kv::QaqHeader h = {};
  h.planes_at = planes_.base() - page, h.cells_at = cells_.base() - page;
  h.width = h.resident = uint8_t(params_.max);
  for (int b = 0; b < params_.max; ++b) h.plane[b] = planes_.Take();
  kv::QaqOutlierWriter outliers{page, &h};
  const auto take = [this] { return cells_.Take(); };
  for (int t = 0; t < shape_.tokens; ++t) {
    const float* x = rows + t * shape_.head_dim;
    kv::QaqRange range;
    if (kv::QaqFits(x, shape_.head_dim)) {
      const kv::OutlierCounts n = kv::QaqCountOutliers(params_, x, shape_.head_dim, sigma);
      const kv::QaqExtremes e(x, shape_.head_dim, n.low, n.high);
      range = kv::QaqFit(x, shape_.head_dim, e, n.low, n.high);
      for (int i = 0; i < n.low; ++i) outliers.Add(t, e.low[i], x[e.low[i]], take);
      for (int i = 0; i < n.high; ++i) outliers.Add(t, e.high[i], x[e.high[i]], take);
    }
    kv::StoreQaqRange(shape_, page, t, range);
    h.half_range = std::max(h.half_range, HalfToFloat(range.half));
    kv::QaqStoreCodes(shape_, page, h, t, x, 0, params_.max);
  }
  kv::StoreQaqHeader(page, h);
}

void QaqPages::Release(std::byte* page) {
  Drop(page, 0);
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  uint32_t cell = h.first_cell;
  for (int left = kv::QaqCells(h.outliers); left > 0; --left) {
    uint32_t next = 0;
    memcpy(&next, cells_.Cell(cell) + kv::kQaqCellBytes - 4, 4);
    cells_.Give(cell);
    cell = next;
  }
  h.outliers = 0;
  kv::StoreQaqHeader(page, h);
}

void QaqPages::Drop(std::byte* page, int keep) {
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  while (h.resident > keep) planes_.Give(h.plane[--h.resident]);
  kv::StoreQaqHeader(page, h);
}

void QaqPages::Restore(std::byte* page, const float* rows, int planes) {
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  const int first = h.resident;
  while (h.resident < planes) h.plane[h.resident++] = planes_.Take();
  for (int t = 0; t < shape_.tokens; ++t)
    kv::QaqStoreCodes(shape_, page, h, t, rows + t * shape_.head_dim, first, planes);
  kv::StoreQaqHeader(page, h);
}

std::byte* QaqPages::Save(const std::byte* page, std::byte* to) const {
  const kv::QaqHeader h = kv::LoadQaqHeader(page);
  const auto write = [&to](const std::byte* from, int64_t bytes) {
    memcpy(to, from, size_t(bytes));
    to += bytes;
  };
  write(page, kv::QaqRecordBytes(shape_));
  for (int b = 0; b < h.resident; ++b) write(planes_.Cell(h.plane[b]), kv::QaqPlaneBytes(shape_));
  uint32_t cell = h.first_cell;
  for (int left = kv::QaqCells(h.outliers); left > 0; --left) {
    write(cells_.Cell(cell), kv::kQaqCellBytes);
    memcpy(&cell, cells_.Cell(cell) + kv::kQaqCellBytes - 4, 4);
  }
  return to;
}

const std::byte* QaqPages::Load(const std::byte* from, std::byte* page) {
  Release(page);
  const auto read = [&from](std::byte* to, int64_t bytes) {
    memcpy(to, from, size_t(bytes));
    from += bytes;
  };
  read(page, kv::QaqRecordBytes(shape_));
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  h.planes_at = planes_.base() - page, h.cells_at = cells_.base() - page;
  for (int b = 0; b < h.resident; ++b) {
    h.plane[b] = planes_.Take();
    read(planes_.Cell(h.plane[b]), kv::QaqPlaneBytes(shape_));
  }
  uint32_t before = 0;
  const int cells = kv::QaqCells(h.outliers);
  for (int i = 0; i < cells; ++i) {
    const uint32_t cell = cells_.Take();
    read(cells_.Cell(cell), kv::kQaqCellBytes);
    if (i == 0)
      h.first_cell = cell;
    else
      memcpy(cells_.Cell(before) + kv::kQaqCellBytes - 4, &cell, 4);
    before = cell;
  }
  kv::StoreQaqHeader(page, h);
  return from;
}

QaqPages QaqPagesOf(const KvView& kv, KvSide side, int head) {
  const QaqStore& store = side == KvSide::kK ? kv.k_qaq : kv.v_qaq;
  const int plane_bytes = kv::QaqPlaneBytes(kv.page);
  kv::ArenaState* arenas = store.arenas + 2 * head;
  return {kv.page, store.params[head],
          kv::PlaneArena(arenas, store.planes + head * store.plane_capacity * plane_bytes, plane_bytes,
                         store.plane_capacity),
          kv::PlaneArena(arenas + 1, store.cells + head * store.cell_capacity * kv::kQaqCellBytes,
                         kv::kQaqCellBytes, store.cell_capacity)};
}

int64_t QaqPages::Bytes(const std::byte* page) const {
  const kv::QaqHeader h = kv::LoadQaqHeader(page);
  return kv::QaqRecordBytes(shape_) + int64_t{h.resident} * kv::QaqPlaneBytes(shape_) +
         int64_t{kv::QaqCells(h.outliers)} * kv::kQaqCellBytes;
}

}  // namespace nibble
