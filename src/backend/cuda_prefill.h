// SPDX-License-Identifier: Apache-2.0
// Floor 5. Prompt rows under bf16 arithmetic where a cache page holds bf16 rows as they are: exact attention
// of kernels/cuda/attention_prefill.h over whole sequences. Which rows these are hangs on their positions
// alone (KvSegment::dense_rows), so a row's bytes depend on neither chunks nor batch.
#pragma once
#include <span>
#include <vector>

#include "backend/cuda_memory.h"
#include "kernels/args.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/pages.h"
#include "recipe/attention_recipe.h"

namespace nibble {

class PrefillSequences {
 public:
  explicit PrefillSequences(cudaStream_t stream) : stream_(stream) {}
  PrefillSequences(const PrefillSequences&) = delete;
  PrefillSequences& operator=(const PrefillSequences&) = delete;

  // Of a layer with this window. REQUIRES Hopper.
  static bool Takes(const AttentionRecipe&, int head_dim, int64_t window);

  struct Args {
    cuda::PagedKv kv;
    const uint16_t* q;  // bf16 [rows, heads, head_dim], dense
    uint16_t* out;      // the same; rows that are no prompt's stay as they are
    int heads;
    float scale;
  };
  // The step's prompt rows. A plan is made and sent when the step is another one than before.
  void Run(const Args&, std::span<const KvSegment> segments, std::span<const int32_t> page_table, SendRing&);

 private:
  // Sequences whose rows follow each other and whose last pages are all tail slots, or all scratch.
  struct Group {
    int first_row = 0, rows = 0, first_sequence = 0, sequences = 0, q_tiles = 0;
    bool scratch = false;
  };
  void MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table);
  void Add(std::span<const KvSegment> of_sequence, std::span<const int32_t> page_table);
  void RunGroup(const Args&, const Group&);

  cudaStream_t stream_;
  std::vector<KvSegment> planned_;
  std::vector<int32_t> planned_table_;
  std::vector<Group> groups_;
  // Of all groups; q_offsets and k_offsets have one more a group.
  std::vector<int32_t> q_offsets_, k_offsets_, tile_ends_, open_, table_;
  int max_pages_ = 0, last_page_ = 0, last_open_ = 0;
  struct Sent {
    const int32_t *q_offsets, *k_offsets, *tile_ends, *open, *table;
  };
  Sent sent_{};
  Mirror<int32_t> q_offsets_mirror_, k_offsets_mirror_, tile_ends_mirror_, open_mirror_, table_mirror_;
};

}  // namespace nibble
