// SPDX-License-Identifier: Apache-2.0
#include "engine/ngram.h"

#include <algorithm>

namespace nibble {

// One pass from the newest end: of all places where the last token occurred, the one with the longest equal
// past; of equal ones the latest.
void GuessByLookup(std::span<const int32_t> tokens, const NgramOptions& options, int most,
                   std::vector<int32_t>* guess) {
  guess->clear();
  if (most <= 0 || tokens.size() < 2) return;
  size_t best = 0, best_length = 0;
  for (size_t end = tokens.size() - 1; end > best_length; --end) {  // a past that ends before `end`
    size_t length = 0;
    while (length < size_t(options.longest) && length < end &&
           tokens[end - 1 - length] == tokens[tokens.size() - 1 - length])
      ++length;
    if (length > best_length) best = end, best_length = length;
    if (best_length == size_t(options.longest)) break;
  }
  if (best_length < size_t(options.shortest)) return;
  const auto follows = tokens.subspan(best);
  guess->assign(follows.begin(), follows.begin() + std::min<ptrdiff_t>(most, ptrdiff_t(follows.size())));
}

}  // namespace nibble
