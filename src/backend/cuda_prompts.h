// SPDX-License-Identifier: Apache-2.0
// Floor 5. Prompt rows under bf16 arithmetic over pages of any codec: a sequence's pages of one layer are
// decoded to bf16, its own pages are copied raw, and the kernel of kernels/cuda/attention_prefill.h reads
// both. Which rows these are hangs on their positions alone (KvSegment::dense_rows), and so does what a row
// reads: its bytes depend on neither chunks nor batch.
#pragma once
#include <span>
#include <vector>

#include "backend/cuda_memory.h"
#include "kernels/args.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/attention_turbo.h"
#include "kernels/cuda/unpack.h"

namespace nibble {

class UnpackedPrompts {
 public:
  explicit UnpackedPrompts(cudaStream_t stream) : stream_(stream) {}
  UnpackedPrompts(const UnpackedPrompts&) = delete;
  UnpackedPrompts& operator=(const UnpackedPrompts&) = delete;

  // SageAttention over sealed pages, with the own page exact.
  struct Sage {
    const float* q;  // [rows, heads, head_dim], row stride q_stride
    int64_t q_stride;
    const float* k_mean;  // as cuda::SagePagesArgs has them
    const std::byte* records;
    int64_t record_stride;
    const float* q_mean;
    const std::byte* q_sums;
    int64_t q_sum_stride;
    float levels;
    bool by_page;
    std::span<std::byte> memory;  // SageBytes of recipe/prompt_pages.h
    int step_tokens;              // that it is for
    bool smooths_queries() const { return q_mean != nullptr || q_sums != nullptr; }
  };
  // TurboAttention over the codes of sealed pages, with the own page in bf16.
  struct Turbo {
    const float* q;  // [rows, heads, head_dim], row stride q_stride
    int64_t q_stride;
    SasPolynomial polynomial;
    int threshold;
    std::span<std::byte> memory;  // TurboBytes of recipe/prompt_pages.h
    int step_tokens;              // that it is for
  };
  struct Args {
    cuda::PagedKv kv;
    const uint16_t* q;  // bf16 [rows, heads, head_dim], dense
    uint16_t* out;      // the same; rows that are no prompt's stay as they are
    int heads;
    float scale;
    std::span<std::byte> memory;  // for decoded pages, 256-byte aligned; enough for the longest sequence
    const Sage* sage = nullptr;   // or exact attention, where neither is given
    const Turbo* turbo = nullptr;
  };
  // The step's prompt rows. A plan is made and sent when the step is another one than before.
  void Run(const Args&, std::span<const KvSegment> segments, std::span<const int32_t> page_table, SendRing&);

 private:
  // Sequences whose rows follow each other and whose pages fit into the memory together.
  struct Group {
    int first_row = 0, rows = 0, first_sequence = 0, sequences = 0, q_tiles = 0, first_page = 0, pages = 0;
    // Of sequences that see sealed pages.
    int first_sage = 0, sages = 0, first_sage_q_tile = 0, sage_q_tiles = 0, first_tile = 0, tiles = 0,
        delta_tiles = 0;
  };
  // What a group may have.
  struct Limits {
    int64_t pages = 0;
    int q_tiles = 0;
    bool operator==(const Limits&) const = default;
  };
  static Limits LimitsOf(const Args&);
  void MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table, const Limits&);
  void Add(std::span<const KvSegment> of_sequence, std::span<const int32_t> page_table, const Limits&);
  void AddSage(Group& group, const cuda::PageBases& bases, int rows, int keys, int seq,
               std::span<const int32_t> pages);
  void RunGroup(const Args&, const Group&);
  void RunTurbo(const Args&, const Group&, const uint16_t* k, const uint16_t* v);
  void RunSage(const Args&, const Group&, const uint16_t* k, const uint16_t* v, const float* lse,
               const cuda::SageTiles&);

  cudaStream_t stream_;
  std::vector<KvSegment> planned_;
  std::vector<int32_t> planned_table_;
  Limits planned_limits_{};
  std::vector<Group> groups_;
  // Of all groups; q_offsets and k_offsets have one more a group.
  std::vector<int32_t> q_offsets_, k_offsets_, tile_ends_;
  std::vector<cuda::PageBases> bases_;
  std::vector<cuda::UnpackedPage> pages_;
  std::vector<cuda::SageSequence> sages_;
  std::vector<cuda::SagePageTile> tiles_;
  std::vector<int32_t> sum_pages_;
  struct Sent {
    const int32_t *q_offsets, *k_offsets, *tile_ends;
    const cuda::PageBases* bases;
    const cuda::UnpackedPage* pages;
    const cuda::SageSequence* sages;
    const cuda::SagePageTile* tiles;
    const int32_t* sum_pages;
  };
  Sent sent_{};
  Mirror<int32_t> q_offsets_mirror_, k_offsets_mirror_, tile_ends_mirror_, sum_pages_mirror_;
  Mirror<cuda::PageBases> bases_mirror_;
  Mirror<cuda::UnpackedPage> pages_mirror_;
  Mirror<cuda::SageSequence> sages_mirror_;
  Mirror<cuda::SagePageTile> tiles_mirror_;
};

}  // namespace nibble
