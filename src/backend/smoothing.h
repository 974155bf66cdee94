// SPDX-License-Identifier: Apache-2.0
// Floor 5. The means that smoothing takes off K and Q (recipe smooth=k, qk), on the CPU. A plan brings them;
// else K's is the mean of the sequence's first page, frozen from then on, and Q's is the mean of the queries
// of the page before, per query head. Both depend on positions alone, never on how a prompt was cut.
#pragma once
#include "backend/backend.h"

namespace nibble {

// Whether the side records must hold them. False where the layer's arithmetic smooths nothing or a plan does.
bool NeedsKeyMean(const KvView&);
bool NeedsQuerySums(const KvView&);

// From the first page's raw rows [page_tokens, head_dim], into the sequence's record.
void WriteKeyMean(const KvView&, int32_t seq, int head, const std::byte* raw);

// Adds a segment's queries to the sum of its page: in the open page's record, or the page's own once it is
// full.
void AddQueries(const AttendArgs&, const KvSegment&, int head);

struct Means {
  const float* k = nullptr;  // [head_dim], or null: none
  const float* q = nullptr;  // [group, head_dim], or null: none
};
// Those of query heads [first, first + group) of KV head `head` for a segment. `work`: [group, head_dim].
Means MeansOf(const KvView&, const KvSegment&, int head, int first, int group, float* work);

}  // namespace nibble
