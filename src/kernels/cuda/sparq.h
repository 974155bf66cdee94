// SPDX-License-Identifier: Apache-2.0
// Floor 4. SparQ attention of decode rows (arXiv 2312.04985) straight from the pages: the channels in which
// the queries are largest rank all tokens on a d-major copy of the keys, `k` tokens are read through their
// codecs. Definition: kernels/ref/select.h, of which adaptive k (eps) and the means other than that of all
// tokens are refused. Two launches: blocks that each rank a tile of tokens, then for each row and KV head a
// cluster of blocks that selects and attends; its blocks trade through each other's shared memory. On GPUs
// without clusters one block selects.
//
// Every sum has one order, which hangs on positions alone: a row's bytes do not depend on the other rows of
// the batch. Of tokens with equal scores the first are read.
#pragma once
#include "kernels/cuda/attention_decode.h"
#include "recipe/selection.h"

namespace nibble::cuda {

struct SparqDecodeArgs {
  // As AttentionDecode takes them; lse is null. Pages of which no token is selected are not read. With a
  // window and a mean, the page before the first seen one has its entry in the table too.
  DecodeArgs cache;
  // Side records (recipe/side_layout.h): of page p and KV head h at p * record_stride + h *
  // record_head_stride, 16-byte aligned, strides in bytes.
  const std::byte* records;
  int64_t record_stride, record_head_stride;
  int v_sum, k_copy;  // offsets in a record: SideLayout
  SparqParams sparq;
  // [rows of all entries, kv_heads, chosen_words]: bit t % 32 of word t / 32 says that token t was read; bits
  // of positions beyond the row or below its window's first page stay as they are. null: not wanted.
  uint32_t* chosen;
  int chosen_words;
  // Blocks of a cluster, 1, 2, 4, 8 or 16: part of the definition of a result's last bits. 0: 8 where the
  // GPU has clusters, else 1.
  int blocks;
};

// cache.workspace has these bytes; what is in them does not matter.
int64_t SparqWorkspaceBytes(const SparqDecodeArgs&);

Launch SparqDecode(const SparqDecodeArgs&, Stream);

}  // namespace nibble::cuda
