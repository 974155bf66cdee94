// SPDX-License-Identifier: Apache-2.0
// Floor 2. Cells of one size with a free list: where bit planes live that a page may give back. One arena
// belongs to K or V of one KV head of one layer and is only ever touched by one thread at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"

namespace nibble::kv {

// Lives in zeroed memory beside the cells. A freed cell's first four bytes name the next one.
struct ArenaState {
  uint32_t fresh;  // cells never taken start here, so that memory is touched only when it is needed
  uint32_t free;   // 1 + the cell that was freed last, 0: none
  uint32_t used;
};

class PlaneArena {
 public:
  PlaneArena(ArenaState* state, std::byte* cells, int cell_bytes, int64_t capacity)
      : state_(state), cells_(cells), cell_bytes_(cell_bytes), capacity_(capacity) {}

  std::byte* base() const { return cells_; }
  std::byte* Cell(uint32_t index) const { return cells_ + int64_t{index} * cell_bytes_; }
  int64_t used() const { return state_->used; }

  uint32_t Take() {
    ++state_->used;
    if (state_->free == 0) {
      NIBBLE_CHECK(state_->fresh < capacity_, "plane arena: more planes than its pages can have");
      return state_->fresh++;
    }
    const uint32_t cell = state_->free - 1;
    memcpy(&state_->free, Cell(cell), 4);
    return cell;
  }
  void Give(uint32_t cell) {
    NIBBLE_CHECK(cell < state_->fresh && state_->used > 0, "plane arena: a cell that was not taken");
    memcpy(Cell(cell), &state_->free, 4);
    state_->free = cell + 1;
    --state_->used;
  }

 private:
  ArenaState* state_;
  std::byte* cells_;
  int cell_bytes_;
  int64_t capacity_;
};

}  // namespace nibble::kv
