// SPDX-License-Identifier: Apache-2.0
#include "cache/qaq_storage.h"

#include <algorithm>
#include <utility>

#include "quant/kv/qaq.h"

namespace nibble {
namespace {

int MaxCells(kv::PageShape page, const kv::QaqParams& params) {
  const kv::OutlierCounts counts = params.pick == kv::QaqPick::kCost
                                       ? kv::MostCostOutliers(page.head_dim)
                                       : kv::QuantileOutliers(page.head_dim, double(params.outliers));
  return kv::QaqCells((counts.low + counts.high) * page.tokens);
}

}  // namespace

Status QaqStorage::Alloc(Backend& backend, int layers, int kv_heads, int64_t pages, kv::PageShape page,
                         std::vector<kv::QaqParams> all) {
  params_ = std::move(all);
  const kv::QaqParams& params = params_.front();
  int most = 0;
  for (const kv::QaqParams& p : params_) most = std::max(most, p.max);
  plane_bytes_ = kv::QaqPlaneBytes(page);
  kv_heads_ = kv_heads;
  first_.params = params_.data();
  first_.most_planes = most, first_.most_cells = MaxCells(page, params);
  first_.plane_capacity = pages * most;
  first_.cell_capacity = pages * first_.most_cells;
  const int64_t heads = int64_t{layers} * kv_heads;
  NIBBLE_ASSIGN(planes_, backend.Alloc(size_t(heads * first_.plane_capacity * plane_bytes_)));
  NIBBLE_ASSIGN(cells_, backend.Alloc(size_t(heads * first_.cell_capacity * kv::kQaqCellBytes)));
  NIBBLE_ASSIGN(arenas_, backend.Alloc(size_t(heads) * 2 * sizeof(kv::ArenaState)));
  if (params.source == kv::QaqSource::kHost) {
    host_bytes_ = pages * kv_heads * page.tokens * page.head_dim * SizeOf(kv::Qaq::kRaw);
    NIBBLE_ASSIGN(host_, backend.Alloc(size_t(layers * host_bytes_)));
  }
  first_.planes = planes_.data, first_.cells = cells_.data, first_.host = host_.data;
  first_.arenas = reinterpret_cast<kv::ArenaState*>(arenas_.data);
  return {};
}

void QaqStorage::Free(Backend& backend) {
  for (const Buffer& b : {planes_, cells_, arenas_, host_}) backend.Free(b);
}

QaqStore QaqStorage::View(int layer) const {
  QaqStore store = first_;
  if (store.params == nullptr) return store;
  const int64_t head = layer * kv_heads_;
  store.planes += head * store.plane_capacity * plane_bytes_;
  store.cells += head * store.cell_capacity * kv::kQaqCellBytes;
  store.arenas += head * 2;
  store.params += head;
  if (store.host != nullptr) store.host += layer * host_bytes_;
  return store;
}

QaqPageBytes PlanQaqPage(kv::PageShape page, const kv::QaqParams& params) {
  const int64_t record = kv::QaqRecordBytes(page), plane = kv::QaqPlaneBytes(page);
  const int64_t cells = int64_t{MaxCells(page, params)} * kv::kQaqCellBytes;
  const bool cost = params.pick == kv::QaqPick::kCost;
  return {.least = record + params.min * plane + (cost ? 0 : cells),
          .most = record + params.max * plane + cells};
}

}  // namespace nibble
