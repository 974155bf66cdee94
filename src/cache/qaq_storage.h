// SPDX-License-Identifier: Apache-2.0
// Floor 6. Memory of QAQ for K or V of all layers: plane and outlier arenas by layer and KV head, and the
// full-precision copy where the recipe asks for one. An arena can hold all planes of all pages; memory that
// no plane has touched yet costs nothing.
#pragma once
#include <vector>

#include "backend/backend.h"

namespace nibble {

class QaqStorage {
 public:
  // `params` [layers, kv_heads] differ in bounds alone.
  Status Alloc(Backend& backend, int layers, int kv_heads, int64_t pages, kv::PageShape page,
               std::vector<kv::QaqParams> params);
  void Free(Backend& backend);
  QaqStore View(int layer) const;

 private:
  int64_t plane_bytes_ = 0, host_bytes_ = 0, kv_heads_ = 0;
  std::vector<kv::QaqParams> params_;
  QaqStore first_;  // of layer 0
  Buffer planes_, cells_, arenas_, host_;
};

// Bytes of one sealed page of one KV head: the least and the most that these settings allow.
struct QaqPageBytes {
  int64_t least, most;
};
QaqPageBytes PlanQaqPage(kv::PageShape page, const kv::QaqParams& params);

}  // namespace nibble
