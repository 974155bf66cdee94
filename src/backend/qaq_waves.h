// SPDX-License-Identifier: Apache-2.0
// Floor 5. The order in which a step attends and requantizes under QAQ: a sequence's segments one after the
// other, those of different sequences together (docs/decisions/0012-qaq-changes-widths-at-pages.md).
#pragma once
#include <span>
#include <vector>

#include "backend/kv_view.h"

namespace nibble {

// Calls attend() for each wave: `wave` then holds the first segment of each sequence, the second, and so on.
template <class F>
void ForWaves(std::span<const KvSegment> all, std::vector<KvSegment>* wave, F&& attend) {
  size_t left = all.size();
  for (int number = 0; left > 0; ++number) {
    wave->clear();
    int nth = 0;  // of its sequence in this step
    for (size_t i = 0; i < all.size(); ++i) {
      nth = i > 0 && all[i].seq == all[i - 1].seq ? nth + 1 : 0;
      if (nth == number) wave->push_back(all[i]);
    }
    left -= wave->size();
    attend();
  }
}

}  // namespace nibble
