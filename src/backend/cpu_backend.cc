// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: memory, and the ops that are split by rows.
#include "backend/cpu_backend.h"

#include <cstring>

#include "backend/cpu_memory.h"
#include "base/arg_max.h"
#include "base/check.h"
#include "kernels/cpu/kernels.h"

namespace nibble {
namespace {

constexpr size_t kAlign = 64;
size_t AlignUp(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

void CheckRows(const Tensor& t, const char* what) {
  NIBBLE_CHECK(t.dtype == DType::kF32 && t.device == Device::kCpu, what);
  NIBBLE_CHECK(t.rank >= 2 && t.stride[size_t(t.rank) - 1] == 1, what);
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeCpuBackend(int threads, NumaMode numa) {
  NIBBLE_ASSIGN(const cpu::CpuKernels* kernels, cpu::ChooseIsa());
  if (numa == NumaMode::kOff)
    return std::unique_ptr<Backend>(
        std::make_unique<CpuBackend>(*kernels, threads > 0 ? threads : AvailableCpus()));
  NIBBLE_ASSIGN(NumaPlan plan, PlanNumaHere(numa, std::max(0, threads)));
  NIBBLE_RETURN_IF_ERROR(NumaMemory(plan).Probe());
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(*kernels, std::move(plan)));
}

CpuBackend::CpuBackend(const cpu::CpuKernels& kernels, int threads)
    : kernels_(kernels), node_memory_(numa_), pool_(threads) {}

CpuBackend::CpuBackend(const cpu::CpuKernels& kernels, NumaPlan plan, NumaMemory::Mbind mbind)
    : kernels_(kernels), numa_(std::move(plan)), node_memory_(numa_, mbind), pool_(numa_) {}

CpuBackend::~CpuBackend() {
  for (const Buffer& b : weights_) Free(b);
  Free(work_);
  Free(select_work_);
}

DeviceInfo CpuBackend::Info() const {
  const int n = pool_.threads();
  return {fmt::format("cpu {}, {} thread{}", kernels_.isa, n, n == 1 ? "" : "s"), Device::kCpu, n,
          MachineMemory()};
}

void CpuBackend::Upload(const void* host, std::byte* device, size_t bytes) {
  if (bytes > 0) memcpy(device, host, bytes);
}

void CpuBackend::Download(const std::byte* device, void* host, size_t bytes) {
  if (bytes > 0) memcpy(host, device, bytes);
}

Status CpuBackend::Reserve(int max_rows, int max_k, int heads, int kv_heads, int head_dim) {
  NIBBLE_CHECK(max_rows > 0 && max_k > 0 && head_dim > 0, "Reserve of nothing");
  NIBBLE_CHECK(kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv_heads");
  const int rows = std::max(max_rows, max_rows_), k = std::max(max_k, max_k_);
  const int group = std::max(heads / kv_heads, max_group_), dim = std::max(head_dim, max_head_dim_);
  const size_t groups = (size_t(k) + weight::kGroup - 1) / weight::kGroup, threads = size_t(pool_.threads());
  const int64_t floats =
      AttentionScratchFloats(kv::kPageTokens, group, {.head_dim = dim, .tokens = kv::kPageTokens});
  const size_t xq = AlignUp(size_t(rows) * size_t(k)), scale = AlignUp(size_t(rows) * sizeof(float));
  const size_t sums = AlignUp(size_t(rows) * groups * sizeof(int32_t));
  const size_t tiles = AlignUp(size_t(floats) * sizeof(float));
  const size_t means = AlignUp(size_t(group) * size_t(dim) * sizeof(float));
  const size_t pages = size_t{3} * kMaxContextPages * sizeof(void*);
  const size_t scores = AlignUp((kMaxContextPages + 1) * sizeof(float*));
  const size_t states =
      AlignUp(size_t(AttentionStateFloats(1, group, {.head_dim = dim, .tokens = kv::kPageTokens})) *
              sizeof(float) * size_t(kMaxSharedBlocks));
  // Little of it is ever touched: not Alloc, whose huge pages would be.
  NIBBLE_ASSIGN(Buffer work,
                MapMemory(xq + scale + sums + threads * (tiles + means + pages + scores + states)));
  Free(work_);
  work_ = work;
  wave_.reserve(size_t(rows));
  max_rows_ = rows, max_k_ = k, max_group_ = group, max_head_dim_ = dim;
  std::byte* p = work.data;
  const auto take = [&p](size_t bytes) { return std::exchange(p, p + bytes); };
  xq_ = reinterpret_cast<int8_t*>(take(xq));
  x_scale_ = reinterpret_cast<float*>(take(scale));
  group_sum_ = reinterpret_cast<int32_t*>(take(sums));
  states_ = reinterpret_cast<float*>(take(threads * states));
  scratch_.resize(threads);
  for (Scratch& s : scratch_) {
    s.floats = reinterpret_cast<float*>(take(tiles));
    s.q_mean = reinterpret_cast<float*>(take(means));
    s.pages = reinterpret_cast<const std::byte**>(take(pages));
    s.scores = reinterpret_cast<float**>(take(scores));
  }
  return {};
}

void CpuBackend::Embed(std::span<const int32_t> tokens, const weight::PackedWeight& table, Tensor y) {
  CheckRows(y, "Embed: y");
  NIBBLE_CHECK(y.rank == 2 && y.dim[0] == int64_t(tokens.size()) && y.dim[1] == table.k, "Embed: y shape");
  NIBBLE_CHECK(y.dim[0] <= 1 || y.stride[0] == table.k, "Embed: y must be dense");
  for (int32_t t : tokens) NIBBLE_CHECK(t >= 0 && t < table.n, "Embed: token outside the vocabulary");
  ForBlocks(y.dim[0], table.k, [&](int begin, int end, int) {
    kernels_.embed({.table = table,
                    .tokens = tokens.data() + begin,
                    .y = y.as<float>() + int64_t{begin} * table.k,
                    .rows = end - begin});
  });
}

void CpuBackend::Norm(Tensor x, const float* weight, float eps, Tensor y) {
  CheckRows(x, "Norm: x"), CheckRows(y, "Norm: y");
  NIBBLE_CHECK(x.rank == y.rank && x.rank <= 3 && x.dim == y.dim, "Norm: x and y shapes");
  // [rows, k] or [rows, heads, head_dim]: `inner` vectors of k lie one stride apart inside a row.
  const int inner = x.rank == 3 ? static_cast<int>(x.dim[1]) : 1;
  const int k = static_cast<int>(x.dim[size_t(x.rank) - 1]);
  const auto call = [&](int64_t row, int rows, size_t stride_dim) {
    kernels_.rms_norm({.x = x.as<const float>() + row * x.stride[0],
                       .weight = weight,
                       .y = y.as<float>() + row * y.stride[0],
                       .x_stride = x.stride[stride_dim],
                       .y_stride = y.stride[stride_dim],
                       .rows = rows,
                       .k = k,
                       .eps = eps});
  };
  ForBlocks(x.dim[0], int64_t{inner} * k, [&](int begin, int end, int) {
    if (x.rank == 2) return call(begin, end - begin, 0);
    for (int row = begin; row < end; ++row) call(row, inner, 1);
  });
}

void CpuBackend::RopeTable(std::span<const int32_t> positions, const float* inv_freq, Tensor cos,
                           Tensor sin) {
  CheckRows(cos, "RopeTable: cos"), CheckRows(sin, "RopeTable: sin");
  const int64_t half = cos.dim[1];
  NIBBLE_CHECK(cos.rank == 2 && sin.rank == 2 && cos.dim == sin.dim, "RopeTable: shapes");
  NIBBLE_CHECK(cos.dim[0] == int64_t(positions.size()), "RopeTable: rows");
  NIBBLE_CHECK(cos.stride[0] == half && sin.stride[0] == half, "RopeTable: tables must be dense");
  constexpr int64_t kTrigonometry = 16;  // a cosine and a sine against a multiply-add
  ForBlocks(cos.dim[0], half * kTrigonometry, [&](int begin, int end, int) {
    kernels_.rope_table({.positions = positions.data() + begin,
                         .inv_freq = inv_freq,
                         .cos = cos.as<float>() + begin * half,
                         .sin = sin.as<float>() + begin * half,
                         .rows = end - begin,
                         .head_dim = static_cast<int>(2 * half)});
  });
}

void CpuBackend::Rope(Tensor x, Tensor cos, Tensor sin) {
  CheckRows(x, "Rope: x"), CheckRows(cos, "Rope: cos"), CheckRows(sin, "Rope: sin");
  const int64_t half = cos.dim[1];
  NIBBLE_CHECK(x.rank == 3 && x.dim[2] == 2 * half && x.stride[1] == x.dim[2], "Rope: x shape");
  NIBBLE_CHECK(cos.dim == sin.dim && cos.dim[0] == x.dim[0], "Rope: table shapes");
  NIBBLE_CHECK(cos.stride[0] == half && sin.stride[0] == half, "Rope: tables must be dense");
  ForBlocks(x.dim[0], x.dim[1] * x.dim[2], [&](int begin, int end, int) {
    kernels_.rope({.x = x.as<float>() + begin * x.stride[0],
                   .cos = cos.as<const float>() + begin * half,
                   .sin = sin.as<const float>() + begin * half,
                   .x_stride = x.stride[0],
                   .rows = end - begin,
                   .heads = static_cast<int>(x.dim[1]),
                   .head_dim = static_cast<int>(x.dim[2])});
  });
}

void CpuBackend::Glu(Tensor gate, Tensor up, Activation activation, Tensor y) {
  CheckRows(gate, "Glu: gate"), CheckRows(up, "Glu: up"), CheckRows(y, "Glu: y");
  NIBBLE_CHECK(gate.rank == 2 && gate.dim == up.dim && gate.dim == y.dim, "Glu: shapes");
  constexpr int64_t kExponential = 4;  // cost of an activation against a multiply-add
  ForBlocks(y.dim[0], y.dim[1] * kExponential, [&](int begin, int end, int) {
    kernels_.glu({.gate = gate.as<const float>() + begin * gate.stride[0],
                  .up = up.as<const float>() + begin * up.stride[0],
                  .y = y.as<float>() + begin * y.stride[0],
                  .gate_stride = gate.stride[0],
                  .up_stride = up.stride[0],
                  .y_stride = y.stride[0],
                  .rows = end - begin,
                  .k = static_cast<int>(y.dim[1]),
                  .activation = activation});
  });
}

void CpuBackend::AffineHeads(Tensor x, const float* scale, const float* shift, int repeat) {
  CheckRows(x, "AffineHeads: x");
  NIBBLE_CHECK(x.rank == 3 && repeat > 0 && x.dim[1] % repeat == 0, "AffineHeads: x shape");
  const int64_t dim = x.dim[2];
  ForBlocks(x.dim[0], x.dim[1] * dim, [&](int begin, int end, int) {
    for (int row = begin; row < end; ++row)
      for (int64_t head = 0; head < x.dim[1]; ++head) {
        float* y = x.as<float>() + row * x.stride[0] + head * x.stride[1];
        const int64_t first = head / repeat * dim;
        if (scale != nullptr)
          for (int64_t d = 0; d < dim; ++d) y[d] *= scale[first + d];
        if (shift != nullptr)
          for (int64_t d = 0; d < dim; ++d) y[d] += shift[first + d];
      }
  });
}

AttentionCounters CpuBackend::TakeCounters() {
  AttentionCounters sum{};
  for (Scratch& s : scratch_) {
    const AttentionCounters& c = s.counters;
    sum.rows += c.rows, sum.tokens_read += c.tokens_read, sum.scalars_read += c.scalars_read;
    sum.bytes_read += c.bytes_read, sum.dense_fallbacks += c.dense_fallbacks;
    sum.sas_rows += c.sas_rows, sum.sas_dropped += c.sas_dropped, sum.sas_dropped_mass += c.sas_dropped_mass;
    sum.tail_clamped += c.tail_clamped, sum.tail_values += c.tail_values;
    s.counters = {};
  }
  return sum;
}

void CpuBackend::LogSumExp(Tensor logits, const LogSumExpOut& out) {
  CheckRows(logits, "LogSumExp: logits");
  NIBBLE_CHECK(logits.rank == 2, "LogSumExp: rank");
  ForBlocks(logits.dim[0], logits.dim[1], [&](int begin, int end, int) {
    kernels_.log_sum_exp({.x = logits.as<const float>() + begin * logits.stride[0],
                          .max = out.max + begin,
                          .lse = out.lse + begin,
                          .argmax = out.argmax + begin,
                          .x_stride = logits.stride[0],
                          .rows = end - begin,
                          .k = static_cast<int>(logits.dim[1])});
  });
}

void CpuBackend::ArgMax(Tensor logits, int32_t* ids) {
  CheckRows(logits, "ArgMax: logits");
  NIBBLE_CHECK(logits.rank == 2 && logits.dim[1] > 0, "ArgMax: shape");
  ForBlocks(logits.dim[0], logits.dim[1], [&](int begin, int end, int) {
    for (int row = begin; row < end; ++row) {
      const std::span x(logits.as<const float>() + row * logits.stride[0],
                        static_cast<size_t>(logits.dim[1]));
      ids[row] = AllFinite(x) ? static_cast<int32_t>(nibble::ArgMax(x)) : -1;
    }
  });
}

}  // namespace nibble
