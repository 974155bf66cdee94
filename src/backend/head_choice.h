// SPDX-License-Identifier: Apache-2.0
// Floor 5. Which KV heads of a sequence get 2 bits under a codec that mixes widths (quant/kv/head_mix.h), on
// the CPU. A plan says it; else the sequence's first page does, by HeadPriority of its raw rows, once and for
// all: pages that are sealed cannot change their width. So the choice depends on 64 positions and never on
// how a prompt was cut.
#pragma once
#include "backend/backend.h"

namespace nibble {

inline bool ChoosesHeads(const KvView& kv) {
  return kv.k_mix.places != nullptr || kv.v_mix.places != nullptr;
}

// K or V, where `s` completes the first page of its sequence; else nothing. The rows of all heads are
// written. scratch: [page_tokens, head_dim].
void ChooseHeads(const KvView& kv, const KvSegment& s, bool is_v, float* scratch);

}  // namespace nibble
