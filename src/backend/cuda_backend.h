// SPDX-License-Identifier: Apache-2.0
// Floor 5. The CUDA backend: one device, one stream. Ops check their arguments, turn host views into device
// addresses and launch kernels; nothing waits but Sync and Download. What it computes how, and what it
// refuses: docs/decisions/0013-cuda-backend.md.
#pragma once
#include <map>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda_decode.h"
#include "backend/cuda_memory.h"
#include "backend/cuda_prefill.h"
#include "backend/cuda_prompts.h"
#include "kernels/cuda/attention_pages.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/qaq.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/select.h"

namespace nibble {

class CudaBackend final : public Backend {
 public:
  // REQUIRES that the device exists.
  CudaBackend(int device, const cudaDeviceProp& properties);
  ~CudaBackend() override;

  DeviceInfo Info() const override;
  Result<Buffer> Alloc(size_t bytes) override;
  int64_t MostAllocated() override;
  void Free(Buffer) override;
  void Upload(const void* host, std::byte* device, size_t bytes) override;
  void Download(const std::byte* device, void* host, size_t bytes) override;
  void Sync() override;
  Result<weight::PackedWeight> Pack(const weight::WeightView&, MatmulArith) override;
  Result<std::vector<weight::PackedWeight>> PackTogether(std::span<const weight::WeightView>,
                                                         MatmulArith) override;
  Status Reserve(int max_rows, int max_k, int heads, int kv_heads, int head_dim) override;
  Status ReserveSelection(int64_t tokens, int heads, int kv_heads, int head_dim) override;
  Status ReservePrompts(const AttentionRecipe&, int64_t seq_tokens, int step_tokens, int kv_heads,
                        int head_dim) override;
  Status CheckRecipe(const AttentionRecipe&, int head_dim) const override;

  void RunStep(const StepInputs&, const std::function<void()>& ops) override;
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
  bool Draws() const override { return true; }
  void Draw(Tensor logits, std::span<const DrawRow> rows, std::span<const LogitChange> changes,
            int32_t* ids) override;
  void AffineHeads(Tensor x, const float* scale, const float* shift, int repeat) override;
  AttentionCounters TakeCounters() override;
  KvUsage Usage(KvSide side) const override;

  std::string ExplainLinear(const weight::PackedWeight&, MatmulArith) const override;
  std::string ExplainAttention(const AttentionRecipe&) const override;

 private:
  bool IsHopper() const { return properties_.major == 9; }
  Result<std::vector<weight::PackedWeight>> PackFloats(std::span<const weight::WeightView>, MatmulArith);
  Result<std::vector<weight::PackedWeight>> PackIntegers(std::span<const weight::WeightView>);
  Status SendIntegers(const weight::WeightView&, const cuda::LinearWeight& to);
  Result<const std::byte*> SendPart(const void* host, size_t bytes, std::vector<Buffer>* parts);
  void CopyInputs(Tensor x, bool codes, bool bf16);
  void LinearFloats(Tensor x, const LinearOut& out, int n, MatmulArith);
  void LinearIntegers(const LinearOut& out, int n, int rows);

  // What an op leaves to the next one. Rotations wait for the op behind them, which may take them into its
  // own launch; rows have copies as products read them (kernels/cuda/rows.h). Every op but those that use
  // what was left begins with Begin, and so does whatever shows memory to the host.
  struct Rotation {
    Tensor x, cos, sin;
  };
  struct LeftCopies {
    const void* rows = nullptr;  // of what
    int count = 0, k = 0;
    bool codes = false;              // in xq_, x_scale_, row_sum_
    const uint16_t* bf16 = nullptr;  // or null
  };
  void Begin();
  void Rotate();  // what waits
  cuda::RowCopies CopiesFor(int64_t k) const;
  void Leave(const Tensor& rows, const uint16_t* bf16);
  bool RotateAndAppend(const KvAppendArgs&, const cuda::PagedKv&);
  std::vector<Rotation> rotations_;
  LeftCopies left_{};
  const void* rounded_queries_ = nullptr;  // whose bf16 is in q_bf16_

  cuda::PagedKv PagedOf(const KvView&);
  cuda::Means MeansOf(const KvView&);
  void ChooseHeads(const KvView&, const cuda::PagedKv&, bool is_v);
  const uint8_t* PlannedHeads(const std::vector<bool>& heads);  // on the device; kept
  const float* OfPlan(const std::vector<float>& values);        // on the device; kept
  void CountDense(const KvView&, int64_t window);
  const SparqParams* SparqOfHeads(const KvView&);
  void AttendSelected(const AttendArgs&, const cuda::PagedKv&);  // cuda_select.cc
  void Attend(const AttendArgs&);
  bool AttendsOnTensorCores(const KvView&, int heads) const;
  // Which kernel has a layer's prompt rows: that of all rows, or one that reads pages of bf16 rows as they
  // are or decodes pages of any codec first.
  enum class Prompts : uint8_t { kAsAll, kBf16Pages, kDecoded };
  Prompts PromptsOf(const AttentionRecipe&, int head_dim, int64_t window) const;
  void AttendPrompts(const AttendArgs&, const cuda::PagedKv&, Prompts);
  void RoundQueries(const AttendArgs&);
  void AttendOnTensorCores(const AttendArgs&, const cuda::PagedKv&);
  DecodeEntries::Args EntriesOf(const AttendArgs&, const cuda::PagedKv&) const;
  void AttendEntries(const AttendArgs&, const cuda::PagedKv&, DecodeEntries::Rows);
  void WidenOutputs(const AttendArgs&);
  void AttendPages(const AttendArgs&, const cuda::PagedKv&, Prompts kind);
  void AttendBySparq(const AttendArgs&, const DecodeEntries::Args&);
  // QAQ (cuda_qaq.cc): attention page by page of every sequence, requantizing after each.
  const kv::QaqParams* QaqOfHeads(const kv::QaqParams* of_heads, int kv_heads);
  cuda::QaqSide QaqSideOf(const QaqStore&, int kv_heads);
  bool Weighs(std::span<const KvSegment>) const;
  void Requantize(const AttendArgs&, const cuda::PagedKv&);
  void AttendInWaves(const AttendArgs&);

  const int device_;
  const cudaDeviceProp properties_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<SendRing> ring_;
  std::vector<Buffer> weights_;                   // Pack's results
  bool has_integers_ = false, has_bf16_ = false;  // among them

  // Reserve's work buffers.
  int max_rows_ = 0, max_k_ = 0;
  Buffer work_;
  uint16_t *q_bf16_ = nullptr, *out_bf16_ = nullptr;  // [max_rows, heads, head_dim]
  int64_t max_q_width_ = 0;
  uint16_t* x_bf16_ = nullptr;  // [max_rows, max_k]
  int8_t* xq_ = nullptr;        // [max_rows, max_k]
  float* x_scale_ = nullptr;    // [max_rows]
  int32_t* row_sum_ = nullptr;  // [max_rows]

  // What ops of a step read on the device.
  Mirror<int32_t> tokens_, positions_, page_table_;
  Mirror<KvSegment> segments_;
  Mirror<DrawRow> draw_rows_;
  Mirror<LogitChange> logit_changes_;
  Buffer draw_work_;
  std::unique_ptr<DecodeEntries> entries_, selected_;  // of rows that select: in selected_
  std::unique_ptr<PrefillSequences> prefill_;
  std::unique_ptr<UnpackedPrompts> prompts_;
  Buffer prompt_pages_, prompt_codes_;  // ReservePrompts'
  int prompt_step_tokens_ = 0;
  struct PlanVector {
    std::vector<float> values;
    Buffer buffer;  // on the device
  };
  std::map<const float*, PlanVector> plan_vectors_;                     // by their address on the host
  std::vector<std::pair<std::vector<uint8_t>, Buffer>> planned_heads_;  // equal ones once

  Buffer select_work_;
  int64_t select_tokens_ = 0;  // ReserveSelection's
  std::vector<std::pair<std::vector<SparqParams>, Buffer>>
      sparq_;  // [kv_heads] of every layer, equal ones once

  std::vector<KvSegment> wave_;
  int qaq_window_ = 0;  // the greatest of all recipes and heads seen so far
  Buffer qaq_work_;
  std::vector<std::pair<std::vector<kv::QaqParams>, Buffer>> qaq_params_;  // as sparq_
  cuda::QaqUsage* qaq_usage_ = nullptr;                                    // [2]: K, V

  // Steps that were recorded as graphs (cuda_step.cc). They hold addresses: Free forgets them all.
  struct Recorded {
    std::vector<int64_t> form;
    std::vector<cudaGraphExec_t> graphs;              // in order; empty: seen once, not recorded yet
    std::vector<std::pair<KvView, int64_t>> attends;  // layers, with their windows: what the host counts
    int64_t tail_values = 0;
  };
  std::vector<int64_t> FormOf(const StepInputs&) const;
  void RunRepeating(const StepInputs&, const std::function<void()>& ops);
  void Record(Recorded&, const std::function<void()>& ops);
  void EndGraph();
  void AfterLayer();  // of the step that is recorded
  void ForgetSteps();
  // Pages that decode steps filled: sealed at the step's end, all layers together.
  bool Defers(const KvView&) const;
  void SealDeferred();
  bool deferring_ = false;
  std::vector<cuda::PagedKv> deferred_;
  std::vector<Recorded> recorded_;
  Recorded* recording_ = nullptr;

  AttentionCounters counters_{};  // those that the host knows
  struct DeviceCounters {
    cuda::SasCounters sas;
    cuda::SelectCounters select;
    unsigned long long tail_clamped;
  };
  DeviceCounters* device_counters_ = nullptr;
};

}  // namespace nibble
