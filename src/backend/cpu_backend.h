// SPDX-License-Identifier: Apache-2.0
// Floor 5. The CPU backend: splits every op over the thread pool and calls the kernels of one ISA. How an op
// is split never changes a byte: kernels promise that a row (and an output panel) does not depend on its
// neighbours in the call.
#pragma once
#include <algorithm>
#include <vector>

#include "backend/backend.h"
#include "base/numa.h"
#include "base/thread_pool.h"
#include "kernels/cpu/table.h"

namespace nibble {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const cpu::CpuKernels& kernels, int threads);
  // Threads and memory as the plan says. `mbind`: null: the system's.
  CpuBackend(const cpu::CpuKernels& kernels, NumaPlan plan, NumaMemory::Mbind mbind = nullptr);
  ~CpuBackend() override;

  DeviceInfo Info() const override;
  Result<Buffer> Alloc(size_t bytes) override;
  void Free(Buffer) override;
  void Upload(const void* host, std::byte* device, size_t bytes) override;
  void Download(const std::byte* device, void* host, size_t bytes) override;
  void Sync() override {}
  ThreadPool* HostThreads() override { return &pool_; }
  Result<weight::PackedWeight> Pack(const weight::WeightView&, MatmulArith) override;
  Result<std::vector<weight::PackedWeight>> PackTogether(std::span<const weight::WeightView>,
                                                         MatmulArith) override;
  Result<std::vector<weight::PackedWeight>> Adopt(std::span<const weight::PackedWeight>) override;
  Status Reserve(int max_rows, int max_k, int heads, int kv_heads, int head_dim) override;
  Status ReserveSelection(int64_t tokens, int heads, int kv_heads, int head_dim) override;
  Status CheckRecipe(const AttentionRecipe&, int) const override { return {}; }

  void Embed(std::span<const int32_t> tokens, const weight::PackedWeight& table, Tensor y) override;
  void Norm(Tensor x, const float* weight, float eps, Tensor y) override;
  void Linear(Tensor x, std::span<const LinearOut> outs, MatmulArith) override;
  void RopeTable(std::span<const int32_t> positions, const float* inv_freq, Tensor cos, Tensor sin) override;
  void Rope(Tensor x, Tensor cos, Tensor sin) override;
  void Glu(Tensor gate, Tensor up, Activation, Tensor y) override;
  void KvAppend(const KvAppendArgs&) override;
  void Attention(const AttendArgs&) override;
  void LogSumExp(Tensor logits, const LogSumExpOut&) override;
  void ArgMax(Tensor logits, int32_t* ids) override;
  void AffineHeads(Tensor x, const float* scale, const float* shift, int repeat) override;
  AttentionCounters TakeCounters() override;
  KvUsage Usage(KvSide side) const override;

  std::string ExplainLinear(const weight::PackedWeight&, MatmulArith) const override;
  std::string ExplainAttention(const AttentionRecipe&) const override;
  std::vector<std::string> ExplainMemory() const override;

 private:
  // Work below this many elements (a microsecond or two) is not worth waking a thread for.
  static constexpr int64_t kMinElements = 8192;

  // Calls f(begin, end, worker) for blocks that cover [0, n), each of about kMinElements elements or more.
  template <class F>
  void ForBlocks(int64_t n, int64_t elements_each, F&& f) {
    const int64_t block = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, elements_each));
    pool_.Run((n + block - 1) / block, [&](int64_t i, int worker) {
      f(static_cast<int>(i * block), static_cast<int>(std::min(n, (i + 1) * block)), worker);
    });
  }

  // Work memory of one thread, inside Reserve's buffer.
  struct Scratch {
    float* floats;            // attention tiles, or one page of rows while sealing
    float* q_mean;            // [max_group, max_head_dim]
    const std::byte** pages;  // [3, kMaxContextPages] addresses of one KV head: K and V pages, side records
    float** scores;           // [kMaxContextPages + 1] of one KV head: H2O's weights
    float* select;            // ReserveSelection's
    AttentionCounters counters;
    KvUsage usage[2];  // by KvSide
  };
  // 16 million tokens of context. Only the addresses that are used take memory.
  static constexpr int64_t kMaxContextPages = 1 << 18;
  static constexpr int64_t kMaxSharedBlocks = 1024;  // a million tokens: beyond, a context is not shared

  Result<std::byte*> TakeWeights(size_t bytes);  // cpu_memory.cc
  Status PlaceShares(const weight::PackedWeight& w, int64_t first, int64_t total) const;
  void QuantizeRows(const float* x, int64_t x_stride, int rows, int k);
  void CopyOpenRows(const KvView&);
  void AppendSegment(const KvAppendArgs&, const KvSegment&, int head, bool is_v);
  void AppendInt8(const KvAppendArgs&, int begin, int end, AttentionCounters& counters);  // cpu_tail.cc
  void Seal(const KvView&);
  void SealSegment(const KvView&, const KvSegment&, int head, bool is_v, float* scratch);
  void SumQueries(const AttendArgs&);
  void AttendDense(const AttendArgs&);
  // Query rows [row_begin, row_end) of a segment, query heads [first, first + group) of a KV head.
  struct Queries {
    const KvSegment& segment;
    int head, row_begin, row_end, first, group;
  };
  AttentionArgs MakeAttentionArgs(const AttendArgs&, const Queries&, Scratch&) const;
  void AttendQueries(const AttendArgs&, const Queries&, float* states, Scratch&);
  bool SharesContext(const AttendArgs&) const;
  void AttendInBlocks(const AttendArgs&);

  // Token selection: cpu_select.cc.
  void SealRecords(const KvView&);
  void AttendSelected(const AttendArgs&);
  void AttendH2o(const AttendArgs&);
  SelectRow MakeSelectRow(const AttendArgs&, const KvSegment&, int head, int row, Scratch&) const;
  void AttendAll(const AttendArgs&);
  // QAQ (cpu_qaq.cc): attention page by page of every sequence, requantizing after each.
  void AttendInWaves(const AttendArgs&);
  void GatherStatistics(const AttendArgs&);
  void WeighRows(const AttendArgs&, const KvSegment&, int head, Scratch&);

  const cpu::CpuKernels& kernels_;
  const NumaPlan numa_;  // kOff without
  const NumaMemory node_memory_;
  ThreadPool pool_;
  std::vector<Buffer> large_;          // of Alloc, from kHugeFrom bytes on
  std::vector<Buffer> weights_;        // slabs that hold Pack's results
  std::byte* weights_next_ = nullptr;  // what is left of the last slab
  size_t weights_left_ = 0;

  // Reserve's work buffers.
  int max_rows_ = 0, max_k_ = 0, max_group_ = 0, max_head_dim_ = 0;
  Buffer work_;
  int8_t* xq_ = nullptr;          // [max_rows, max_k]
  float* x_scale_ = nullptr;      // [max_rows]
  int32_t* group_sum_ = nullptr;  // [max_rows, ceil(max_k / 128)]
  float* states_ = nullptr;       // [threads, kMaxSharedBlocks] states of AttendInBlocks
  std::vector<Scratch> scratch_;  // [threads]
  Buffer select_work_;
  int64_t max_select_floats_ = 0;  // of a thread
  std::vector<KvSegment> wave_;    // AttendInWaves; room for every row of a step
};

}  // namespace nibble
