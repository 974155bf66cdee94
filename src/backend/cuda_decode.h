// SPDX-License-Identifier: Apache-2.0
// Floor 5. Attention straight from the pages under bf16 arithmetic, for the codecs of
// kernels/cuda/attention_decode.h: a step's segments as entries of up to eight rows, prompts and decode rows
// alike; and rows that select their tokens by SparQ.
#pragma once
#include <span>
#include <vector>

#include "backend/cuda_memory.h"
#include "kernels/args.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/count_chosen.h"
#include "kernels/cuda/pages.h"
#include "recipe/attention_recipe.h"

namespace nibble {

class DecodeEntries {
 public:
  explicit DecodeEntries(cudaStream_t stream) : stream_(stream) {}
  ~DecodeEntries();
  DecodeEntries(const DecodeEntries&) = delete;
  DecodeEntries& operator=(const DecodeEntries&) = delete;

  // Whether the tensor cores compute this recipe as it is written: the rows that attend to all they see, and
  // those that select.
  static bool Takes(const AttentionRecipe&, int heads, int kv_heads, int head_dim);
  static bool TakesSparq(const SparqParams&, int head_dim);

  struct Args {
    cuda::PagedKv kv;
    const uint16_t* q;  // bf16 [rows, heads, head_dim], dense
    uint16_t* out;      // the same
    int heads;
    float scale;
    int window;
  };
  // The rows of a segment that are of a plan: those below dense_rows, those from there on.
  enum class Rows : uint8_t { kAll, kDense, kOther };
  // Plans a step and sends the plan; the same step again does nothing.
  void Prepare(std::span<const KvSegment> segments, std::span<const int32_t> page_table, Rows, SendRing&);
  void Run(const Args&);  // of the step that was prepared
  // `call` has all but what the plan knows. Counts what was read.
  void RunSparq(const Args&, cuda::CountChosenArgs call);
  // What a recorded launch depends on besides its arguments.
  std::vector<int64_t> Form() const;

 private:
  static constexpr int kRows = 8;  // of an entry
  struct Plan {
    std::vector<int32_t> open, lengths, scratch_lengths, row_begin, table;
    int max_pages = 0, rows = 0;
    bool in_scratch = false, in_tail = false;  // where some entry's open page is
  };
  struct Sent {
    const int32_t *open, *lengths, *scratch_lengths, *row_begin, *table;
  };
  void MakePlan(std::span<const KvSegment> segments, std::span<const int32_t> page_table, Rows);
  cuda::DecodeArgs ArgsOf(const Args&) const;
  void Place(const Args&, bool scratch, cuda::DecodeArgs*) const;
  void* Workspace(int64_t bytes);

  cudaStream_t stream_;
  std::vector<KvSegment> planned_;  // what the plan was made for
  std::vector<int32_t> planned_table_;
  Rows planned_rows_ = Rows::kAll;
  Plan plan_;
  Sent sent_{};
  Mirror<int32_t> open_, lengths_, scratch_lengths_, row_begin_, table_;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
  uint32_t* chosen_ = nullptr;  // of SparQ
  int64_t chosen_bytes_ = 0;
};

}  // namespace nibble
