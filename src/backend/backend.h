// SPDX-License-Identifier: Apache-2.0
// Floor 5. What a device must do for a model: memory, order, and about a dozen ops. Ops are queued on the
// backend's one stream and never fail on valid arguments; NIBBLE_CHECK guards them. No op allocates.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/numa.h"
#include "base/result.h"
#include "kernels/args.h"
#include "quant/kv/head_mix.h"
#include "quant/kv/plane_arena.h"
#include "quant/kv/qaq_rules.h"
#include "quant/weight/format.h"
#include "recipe/attention_recipe.h"
#include "recipe/plan.h"
#include "recipe/side_layout.h"
#include "tensor/tensor.h"

namespace nibble {

class ThreadPool;  // base/thread_pool.h

struct Buffer {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

struct DeviceInfo {
  std::string name;  // "cpu avx512, 2 threads"
  Device device = Device::kCpu;
  int threads = 0;
  size_t memory_bytes = 0;
};

// One of several products that share their input (Q, K, V; gate and up): x is quantized once.
struct LinearOut {
  const weight::PackedWeight* w;
  const float* bias;  // [n] on the device, or null
  Tensor y;           // [rows, n] f32
  bool accumulate = false;
};

// Running state of QAQ, by sequence slot and KV head: what the bound of K needs to know of the queries.
using QaqState = kv::NormHistogram;

// Where QAQ keeps K or V of one layer, beside the records in the pool. All null for another codec.
struct QaqStore {
  std::byte *planes = nullptr, *cells = nullptr;  // [kv_heads, capacity, bytes of a plane or cell]
  kv::ArenaState* arenas = nullptr;               // [kv_heads, 2]: planes, cells
  std::byte* host = nullptr;                      // [pages, kv_heads, raw page] or null: source=host only
  int64_t plane_capacity = 0, cell_capacity = 0;  // of a KV head
  int most_planes = 0, most_cells = 0;            // of a page
  const kv::QaqParams* params = nullptr;          // [kv_heads]
};

// K or V under a codec that gives some heads 2 bits; `places` null under any other, and where no head has 2.
// The op that seals the first page of a sequence says which heads (backend/head_choice.h).
struct HeadMix {
  kv::HeadPlace* places = nullptr;  // [slots, kv_heads], by KvSegment::seq
  int two_bit = 0;                  // heads with 2 bits, the same for every sequence
};

// What the cache shows to the ops of one layer. Addresses: page p of KV head h at k_pool + (p * kv_heads + h)
// * k_page_bytes, under HeadMix at SealedPagesOf (kv_view.h); tail slot s at k_tail + (s * kv_heads + h)
// * kv::TailBytes, scratch alike. Under tail=int8 a raw page is a kv::Int8Tail, and the tail slot of a
// sequence keeps a completed page until the next begins.
struct KvView {
  std::byte *k_pool = nullptr, *v_pool = nullptr;  // [pages, kv_heads, CodecInfo::pool_bytes]
  std::byte *k_tail = nullptr, *v_tail = nullptr;  // [slots, kv_heads, page_tokens, head_dim] raw
  std::byte *k_scratch = nullptr,
            *v_scratch = nullptr;  // [scratch slots, kv_heads, page_tokens, head_dim] raw
  std::byte* side_pool = nullptr;  // [pages, kv_heads, side.bytes] what the recipe keeps beside the pages
  std::byte* side_tail = nullptr;  // [slots, kv_heads, side.seq_bytes] of the sequence, by KvSegment::seq
  std::span<const KvSegment> segments;
  std::span<const int32_t> page_table;
  int kv_heads = 0;
  kv::PageShape page{};
  kv::CodecId k_codec{}, v_codec{};
  const AttentionRecipe* recipe = nullptr;  // of this layer, the plan applied
  const LayerPlan* plan = nullptr;          // or null
  SideLayout side{};
  HeadMix k_mix{}, v_mix{};
  QaqStore k_qaq{}, v_qaq{};
  QaqState* qaq_state = nullptr;  // [slots, kv_heads], by KvSegment::seq; null without QAQ
};

struct KvAppendArgs {
  KvView kv;
  Tensor k, v;  // [rows, kv_heads, head_dim] f32, RoPE applied
};

struct AttendArgs {
  KvView kv;
  Tensor q, out;  // [rows, heads, head_dim] f32
  int heads = 0;
  float scale = 0;
  int64_t window = 0;  // 0: none
};

// What a step reads that changes from one step to the next: of KvCache's current step.
struct StepInputs {
  std::span<const int32_t> tokens, positions, logit_rows;
  std::span<const KvSegment> segments;
  std::span<const int32_t> page_table;
  // Whose step it is: ops of another model or over another cache are not the same.
  const void *model = nullptr, *cache = nullptr;
  bool selects = false;   // rows choose the tokens they read
  bool observed = false;  // somebody looks at activations while the ops are queued
};

struct LogSumExpOut {
  float* max;       // [rows]
  double* lse;      // [rows]
  int32_t* argmax;  // [rows]
};

// What K or V of requantized pages took, looked at whenever a page was completed: so an average over the run.
enum class KvSide : uint8_t { kK, kV };
struct KvUsage {
  int64_t values = 0;      // seen, over all looks
  int64_t bits = 0;        // of records, resident planes, outliers and statistics
  int64_t paper_bits = 0;  // of the same by QAQ's formula: codes, exact outliers, 32 bits a token
  int64_t narrowings = 0, widenings = 0;  // of pages
  int64_t starved = 0;                    // widenings that found fewer planes than they wanted
  int64_t host_bytes = 0;                 // moved from the full-precision copy

  KvUsage& operator+=(const KvUsage& o) { return Add(o, 1); }
  friend KvUsage operator-(KvUsage a, const KvUsage& b) { return a.Add(b, -1); }

 private:
  KvUsage& Add(const KvUsage& o, int64_t sign) {
    values += sign * o.values, bits += sign * o.bits, paper_bits += sign * o.paper_bits;
    narrowings += sign * o.narrowings, widenings += sign * o.widenings;
    starved += sign * o.starved, host_bytes += sign * o.host_bytes;
    return *this;
  }
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceInfo Info() const = 0;

  // 64-byte aligned, zero-filled on first touch. kOutOfMemory names the size.
  virtual Result<Buffer> Alloc(size_t bytes) = 0;
  virtual void Free(Buffer) = 0;
  // The most that buffers have taken at a time, of a device with memory of its own; else 0.
  virtual int64_t MostAllocated() { return 0; }
  virtual void Upload(const void* host, std::byte* device, size_t bytes) = 0;
  virtual void Download(const std::byte* device, void* host, size_t bytes) = 0;
  virtual void Sync() = 0;
  // Threads that are idle between ops, for work of the engine; null: none.
  virtual ThreadPool* HostThreads() { return nullptr; }

  // Turns a stored weight into a compute layout; the backend owns the result for its lifetime. kUnsupported
  // for a shape no kernel takes (k % 8 for u4, k % 128 for grouped u4, k % 4 for s8). Under kBF16 arithmetic
  // f32 and f16 weights become bf16.
  virtual Result<weight::PackedWeight> Pack(const weight::WeightView&, MatmulArith) = 0;
  // Several that always multiply the same input, in the order in which Linear gets them: a device may lay
  // them out as one matrix, which one launch multiplies when the outputs are columns of one matrix too.
  virtual Result<std::vector<weight::PackedWeight>> PackTogether(std::span<const weight::WeightView>,
                                                                 MatmulArith);
  // Weights that lie packed in memory of the caller, as Pack lays them out: as they are, or, where the
  // backend places memory, copies of its own. Of the CPU.
  virtual Result<std::vector<weight::PackedWeight>> Adopt(std::span<const weight::PackedWeight> packed) {
    return std::vector<weight::PackedWeight>(packed.begin(), packed.end());
  }
  // Sizes the work buffers that ops need, so that no op allocates: widest input k, rows a step, and heads.
  virtual Status Reserve(int max_rows, int max_k, int heads, int kv_heads, int head_dim) = 0;

  // The same for rows that select tokens, in contexts of up to `tokens`.
  virtual Status ReserveSelection(int64_t tokens, int heads, int kv_heads, int head_dim) = 0;

  // The same for prompts of sequences of up to `seq_tokens` in steps of up to `step_tokens`, where a device
  // decodes their pages ahead (recipe/prompt_pages.h).
  virtual Status ReservePrompts(const AttentionRecipe&, int64_t /*seq_tokens*/, int /*step_tokens*/,
                                int /*kv_heads*/, int /*head_dim*/) {
    return {};
  }

  // kUnsupported, with what is missing, for a recipe or a head size that this device does not compute.
  virtual Status CheckRecipe(const AttentionRecipe&, int head_dim) const = 0;

  // Calls `ops`, which queue all work of one step of a model. A device may record what they queue and, for a
  // later step of the same form, send the inputs and replay it instead.
  virtual void RunStep(const StepInputs&, const std::function<void()>& ops) { ops(); }

  virtual void Embed(std::span<const int32_t> tokens, const weight::PackedWeight& table, Tensor y) = 0;
  virtual void Norm(Tensor x, const float* weight, float eps,
                    Tensor y) = 0;  // over the last dimension; y may be x
  virtual void Linear(Tensor x, std::span<const LinearOut> outs, MatmulArith) = 0;
  virtual void RopeTable(std::span<const int32_t> positions, const float* inv_freq, Tensor cos,
                         Tensor sin) = 0;
  virtual void Rope(Tensor x, Tensor cos, Tensor sin) = 0;  // x [rows, heads, head_dim], in place
  virtual void Glu(Tensor gate, Tensor up, Activation, Tensor y) = 0;
  virtual void KvAppend(const KvAppendArgs&) = 0;  // raw rows into slots, full pages through the codec
  virtual void Attention(const AttendArgs&) = 0;
  // x = x * scale + shift, in place, of x [rows, heads, head_dim] with scale and shift [heads / repeat,
  // head_dim]: `repeat` heads share a row. Null: 1, 0.
  virtual void AffineHeads(Tensor x, const float* scale, const float* shift, int repeat) = 0;
  virtual void LogSumExp(Tensor logits, const LogSumExpOut&) = 0;
  // ids [rows]: the lowest index of each maximum, -1 for a row that holds NaN or infinity.
  virtual void ArgMax(Tensor logits, int32_t* ids) = 0;
  // Whether Draw is there: a device that shares no memory with the host draws tokens itself.
  virtual bool Draws() const { return false; }
  // ids [rows]: a token for each row of logits, whose changed entries change in place; -1 as for ArgMax.
  virtual void Draw(Tensor /*logits*/, std::span<const DrawRow> /*rows*/,
                    std::span<const LogitChange> /*changes*/, int32_t* /*ids*/) {}

  // Summed over all attention since the last call, which sets them to 0.
  virtual AttentionCounters TakeCounters() = 0;

  // Of all requantized pages since the backend was made.
  virtual KvUsage Usage(KvSide side) const = 0;

  // Which kernel an op gets, for --explain.
  virtual std::string ExplainLinear(const weight::PackedWeight&, MatmulArith) const = 0;
  virtual std::string ExplainAttention(const AttentionRecipe&) const = 0;
  // Where threads and memory are, and how much of it the system keeps in huge pages now: one line each.
  virtual std::vector<std::string> ExplainMemory() const { return {}; }
};

// threads <= 0: all available. Fails when NIBBLE_CPU names an ISA that is unknown or that this machine lacks,
// and where the machine has not what `numa` asks for (base/numa.h).
Result<std::unique_ptr<Backend>> MakeCpuBackend(int threads, NumaMode numa = NumaMode::kOff);

// The first CUDA device. kUnsupported where the build has no CUDA or the machine no driver or device.
Result<std::unique_ptr<Backend>> MakeCudaBackend();

// kAuto: a GPU where MakeCudaBackend finds one, else the CPU. `threads` is of the CPU, and so is `numa`: with
// a GPU it is refused.
enum class DeviceChoice : uint8_t { kCpu, kCuda, kAuto };
Result<std::unique_ptr<Backend>> MakeBackend(DeviceChoice, int threads, NumaMode numa = NumaMode::kOff);

}  // namespace nibble
