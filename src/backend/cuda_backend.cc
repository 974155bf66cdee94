// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: finding the device, memory, and the ops of rows.
#include "backend/cuda_backend.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/draw.h"
#include "kernels/cuda/elementwise.h"

namespace nibble {
namespace {

constexpr int kLeastMajor = 8;

void CheckRows(const Tensor& t, const char* what) {
  NIBBLE_CHECK(t.dtype == DType::kF32 && t.device == Device::kCuda, what);
  NIBBLE_CHECK(t.rank >= 2 && t.stride[size_t(t.rank) - 1] == 1, what);
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend() {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver)
    return Error(Code::kUnsupported,
                 "cuda: no NVIDIA driver, or one too old for CUDA {}.{}; use --device cpu",
                 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return Error(Code::kUnsupported, "cuda: the driver shows no GPU; use --device cpu");
  cudaDeviceProp properties{};
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, 0);
  if (error == cudaSuccess && properties.major < kLeastMajor)
    return Error(Code::kUnsupported,
                 "cuda: {} has compute capability {}.{}, at least {}.0 is needed; use --device cpu",
                 properties.name, properties.major, properties.minor, kLeastMajor);
  if (error == cudaSuccess) error = cudaSetDevice(0);
  if (error == cudaSuccess) error = cudaFree(nullptr);  // makes the context, or says why not
  if (error != cudaSuccess)
    return Error(Code::kIo, "cuda: the GPU cannot be used: {}; use --device cpu", cudaGetErrorString(error));
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(0, properties));
}

CudaBackend::CudaBackend(int device, const cudaDeviceProp& properties)
    : device_(device), properties_(properties) {
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  // Freed memory stays with the process: caches come and go with every scored text.
  cudaMemPool_t pool = nullptr;
  uint64_t keep = UINT64_MAX;
  CheckCuda(cudaDeviceGetDefaultMemPool(&pool, device), "memory pool");
  CheckCuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool");
  ring_ = std::make_unique<SendRing>(stream_);
  entries_ = std::make_unique<DecodeEntries>(stream_);
  selected_ = std::make_unique<DecodeEntries>(stream_);
  prefill_ = std::make_unique<PrefillSequences>(stream_);
  prompts_ = std::make_unique<UnpackedPrompts>(stream_);
  CheckCuda(cudaMallocAsync(reinterpret_cast<void**>(&device_counters_), sizeof(DeviceCounters), stream_),
            "counters");
  CheckCuda(cudaMemsetAsync(device_counters_, 0, sizeof(DeviceCounters), stream_), "counters");
  CheckCuda(cudaMallocAsync(reinterpret_cast<void**>(&qaq_usage_), 2 * sizeof(cuda::QaqUsage), stream_),
            "counters");
  CheckCuda(cudaMemsetAsync(qaq_usage_, 0, 2 * sizeof(cuda::QaqUsage), stream_), "counters");
}

CudaBackend::~CudaBackend() {
  CheckCuda(cudaStreamSynchronize(stream_), "kernels of this backend");
  ForgetSteps();
  for (const Buffer& b : weights_) Free(b);
  for (const auto& [host, kept] : plan_vectors_) Free(kept.buffer);
  for (const auto& [params, buffer] : sparq_) Free(buffer);
  for (const auto& [params, buffer] : qaq_params_) Free(buffer);
  for (const auto& [heads, buffer] : planned_heads_) Free(buffer);
  Free(work_), Free(select_work_), Free(prompt_pages_), Free(prompt_codes_), Free(draw_work_),
      Free(qaq_work_);
  CheckCuda(cudaFreeAsync(qaq_usage_, stream_), "counters");
  CheckCuda(cudaFreeAsync(device_counters_, stream_), "counters");
  ring_.reset();
  CheckCuda(cudaStreamSynchronize(stream_), "kernels of this backend");
  CheckCuda(cudaStreamDestroy(stream_), "stream");
}

DeviceInfo CudaBackend::Info() const {
  return {fmt::format("cuda {}, {} (compute capability {}.{}, {} MiB)", device_, properties_.name,
                      properties_.major, properties_.minor, properties_.totalGlobalMem >> 20),
          Device::kCuda, 0, properties_.totalGlobalMem};
}

Result<Buffer> CudaBackend::Alloc(size_t bytes) {
  if (bytes == 0) return Buffer{};
  void* p = nullptr;
  const cudaError_t error = cudaMallocAsync(&p, bytes, stream_);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    CheckCuda(cudaMemGetInfo(&free, &total), "free memory");
    return Error(Code::kOutOfMemory, "cuda: cannot allocate {} bytes: {} of {} are free", bytes, free, total);
  }
  CheckCuda(error, "allocation");
  CheckCuda(cudaMemsetAsync(p, 0, bytes, stream_), "zeros");
  return Buffer{static_cast<std::byte*>(p), bytes};
}

void CudaBackend::Free(Buffer b) {
  if (b.data == nullptr) return;
  Begin();
  ForgetSteps();
  CheckCuda(cudaFreeAsync(b.data, stream_), "free");
}

int64_t CudaBackend::MostAllocated() {
  cudaMemPool_t pool;
  uint64_t bytes = 0;
  CheckCuda(cudaDeviceGetDefaultMemPool(&pool, device_), "memory pool");
  CheckCuda(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &bytes), "memory pool");
  return int64_t(bytes);
}

// From and to memory that is not pinned these return when the host side is done.
void CudaBackend::Upload(const void* host, std::byte* device, size_t bytes) {
  Begin();
  CheckCuda(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "upload");
}

void CudaBackend::Download(const std::byte* device, void* host, size_t bytes) {
  Begin();
  CheckCuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "download");
}

void CudaBackend::Sync() {
  Begin();
  CheckCuda(cudaStreamSynchronize(stream_), "kernels of a step");
}

void CudaBackend::Begin() {
  Rotate();
  left_ = {};
  rounded_queries_ = nullptr;
}

void CudaBackend::Rotate() {
  for (const Rotation& r : rotations_)
    CheckCuda(cuda::Rope({.x = r.x.as<float>(),
                          .cos = r.cos.as<const float>(),
                          .sin = r.sin.as<const float>(),
                          .x_stride = r.x.stride[0],
                          .rows = int(r.x.dim[0]),
                          .heads = int(r.x.dim[1]),
                          .head_dim = int(r.x.dim[2])},
                         stream_));
  rotations_.clear();
}

// Where products may read copies of rows of k; nothing of rows that have none.
cuda::RowCopies CudaBackend::CopiesFor(int64_t k) const {
  if (k % 16 != 0 || k > std::min<int64_t>(max_k_, cuda::kMostRowValues)) return {};
  return {.q = has_integers_ ? xq_ : nullptr,
          .scale = x_scale_,
          .row_sum = row_sum_,
          .bf16 = has_bf16_ ? x_bf16_ : nullptr};
}

void CudaBackend::Leave(const Tensor& rows, const uint16_t* bf16) {
  left_ = {rows.data, int(rows.dim[0]), int(rows.dim[1]), has_integers_, bf16};
}

Status CudaBackend::Reserve(int max_rows, int max_k, int heads, int kv_heads, int head_dim) {
  NIBBLE_CHECK(max_rows > 0 && max_k > 0 && head_dim > 0, "Reserve of nothing");
  NIBBLE_CHECK(kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv_heads");
  if (heads / kv_heads > cuda::kMaxAttentionGroup)
    return Error(Code::kUnsupported, "{} query heads a KV head: on a GPU at most {}; use --device cpu",
                 heads / kv_heads, cuda::kMaxAttentionGroup);
  const size_t rows = size_t(std::max(max_rows, max_rows_)), k = size_t(std::max(max_k, max_k_));
  const auto up = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  const size_t row = up(rows * 4);
  max_q_width_ = std::max(max_q_width_, int64_t{heads} * head_dim);
  const size_t q = up(2 * rows * size_t(max_q_width_));
  NIBBLE_ASSIGN(Buffer work, Alloc(2 * q + up(2 * rows * k) + up(rows * k) + 2 * row));
  Free(work_);
  work_ = work;
  max_rows_ = int(rows), max_k_ = int(k);
  std::byte* p = work.data;
  const auto take = [&p](size_t bytes) { return std::exchange(p, p + bytes); };
  q_bf16_ = reinterpret_cast<uint16_t*>(take(q));
  out_bf16_ = reinterpret_cast<uint16_t*>(take(q));
  x_bf16_ = reinterpret_cast<uint16_t*>(take(up(2 * rows * k)));
  xq_ = reinterpret_cast<int8_t*>(take(up(rows * k)));
  x_scale_ = reinterpret_cast<float*>(take(row));
  row_sum_ = reinterpret_cast<int32_t*>(take(row));
  return {};
}

void CudaBackend::Embed(std::span<const int32_t> tokens, const weight::PackedWeight& table, Tensor y) {
  CheckRows(y, "Embed: y");
  NIBBLE_CHECK(y.rank == 2 && y.dim[0] == int64_t(tokens.size()) && y.dim[1] == table.k, "Embed: y shape");
  NIBBLE_CHECK(y.dim[0] <= 1 || y.stride[0] == table.k, "Embed: y must be dense");
  NIBBLE_CHECK(table.layout <= weight::Layout::kBF16 || table.layout == weight::Layout::kI8Channel,
               "Embed: no embedding is stored in 4 bits");
  NIBBLE_CHECK(int64_t(tokens.size()) <= max_rows_, "Embed: more rows than Reserve was told");
  for (int32_t t : tokens) NIBBLE_CHECK(t >= 0 && t < table.n, "Embed: token outside the vocabulary");
  if (tokens.empty()) return;
  Begin();
  CheckCuda(cuda::Embed({.table = table,
                         .tokens = tokens_.Send(tokens, *ring_),
                         .y = y.as<float>(),
                         .rows = int(tokens.size())},
                        stream_));
}

void CudaBackend::Norm(Tensor x, const float* weight, float eps, Tensor y) {
  CheckRows(x, "Norm: x"), CheckRows(y, "Norm: y");
  NIBBLE_CHECK(x.rank == y.rank && x.rank <= 3 && x.dim == y.dim, "Norm: x and y shapes");
  if (x.dim[0] == 0) return;
  Begin();
  const bool heads = x.rank == 3;
  const cuda::NormArgs args{.x = x.as<const float>(),
                            .weight = weight,
                            .y = y.as<float>(),
                            .x_stride = x.stride[0],
                            .y_stride = y.stride[0],
                            .x_inner_stride = heads ? x.stride[1] : 0,
                            .y_inner_stride = heads ? y.stride[1] : 0,
                            .rows = int(x.dim[0]),
                            .inner = heads ? int(x.dim[1]) : 1,
                            .k = int(x.dim[size_t(x.rank) - 1]),
                            .eps = eps};
  const cuda::RowCopies copies = heads ? cuda::RowCopies{} : CopiesFor(args.k);
  if (!copies.any() || args.rows > max_rows_) return CheckCuda(cuda::Norm(args, stream_));
  CheckCuda(cuda::NormRows(args, copies, stream_));
  Leave(y, copies.bf16);
}

void CudaBackend::RopeTable(std::span<const int32_t> positions, const float* inv_freq, Tensor cos,
                            Tensor sin) {
  CheckRows(cos, "RopeTable: cos"), CheckRows(sin, "RopeTable: sin");
  const int64_t half = cos.dim[1];
  NIBBLE_CHECK(cos.rank == 2 && sin.rank == 2 && cos.dim == sin.dim, "RopeTable: shapes");
  NIBBLE_CHECK(cos.dim[0] == int64_t(positions.size()) && cos.dim[0] <= max_rows_, "RopeTable: rows");
  NIBBLE_CHECK(cos.stride[0] == half && sin.stride[0] == half, "RopeTable: tables must be dense");
  if (positions.empty()) return;
  Begin();
  CheckCuda(cuda::RopeTable({.positions = positions_.Send(positions, *ring_),
                             .inv_freq = inv_freq,
                             .cos = cos.as<float>(),
                             .sin = sin.as<float>(),
                             .rows = int(positions.size()),
                             .head_dim = int(2 * half)},
                            stream_));
}

void CudaBackend::Rope(Tensor x, Tensor cos, Tensor sin) {
  CheckRows(x, "Rope: x"), CheckRows(cos, "Rope: cos"), CheckRows(sin, "Rope: sin");
  const int64_t half = cos.dim[1];
  NIBBLE_CHECK(x.rank == 3 && x.dim[2] == 2 * half && x.stride[1] == x.dim[2], "Rope: x shape");
  NIBBLE_CHECK(cos.dim == sin.dim && cos.dim[0] == x.dim[0], "Rope: table shapes");
  NIBBLE_CHECK(cos.stride[0] == half && sin.stride[0] == half, "Rope: tables must be dense");
  if (x.dim[0] == 0) return;
  if (rotations_.size() == 2) Rotate();
  left_ = {};
  rounded_queries_ = nullptr;
  rotations_.push_back({x, cos, sin});
}

void CudaBackend::Glu(Tensor gate, Tensor up, Activation activation, Tensor y) {
  CheckRows(gate, "Glu: gate"), CheckRows(up, "Glu: up"), CheckRows(y, "Glu: y");
  NIBBLE_CHECK(gate.rank == 2 && gate.dim == up.dim && gate.dim == y.dim, "Glu: shapes");
  if (y.dim[0] == 0) return;
  Begin();
  const GluArgs args{.gate = gate.as<const float>(),
                     .up = up.as<const float>(),
                     .y = y.as<float>(),
                     .gate_stride = gate.stride[0],
                     .up_stride = up.stride[0],
                     .y_stride = y.stride[0],
                     .rows = int(y.dim[0]),
                     .k = int(y.dim[1]),
                     .activation = activation};
  const cuda::RowCopies copies = CopiesFor(args.k);
  if (!copies.any() || args.rows > max_rows_) return CheckCuda(cuda::Glu(args, stream_));
  CheckCuda(cuda::GluRows(args, copies, stream_));
  Leave(y, copies.bf16);
}

void CudaBackend::AffineHeads(Tensor x, const float* scale, const float* shift, int repeat) {
  CheckRows(x, "AffineHeads: x");
  NIBBLE_CHECK(x.rank == 3 && repeat > 0 && x.dim[1] % repeat == 0, "AffineHeads: x shape");
  if (x.dim[0] == 0) return;
  Begin();
  CheckCuda(cuda::Affine({.x = x.as<float>(),
                          .scale = scale,
                          .shift = shift,
                          .x_stride = x.stride[0],
                          .head_stride = x.stride[1],
                          .rows = int(x.dim[0]),
                          .heads = int(x.dim[1]),
                          .head_dim = int(x.dim[2]),
                          .repeat = repeat},
                         stream_));
}

void CudaBackend::LogSumExp(Tensor logits, const LogSumExpOut& out) {
  CheckRows(logits, "LogSumExp: logits");
  NIBBLE_CHECK(logits.rank == 2, "LogSumExp: rank");
  if (logits.dim[0] == 0) return;
  Begin();
  CheckCuda(cuda::LogSumExp({.x = logits.as<const float>(),
                             .max = out.max,
                             .lse = out.lse,
                             .argmax = out.argmax,
                             .x_stride = logits.stride[0],
                             .rows = int(logits.dim[0]),
                             .k = int(logits.dim[1])},
                            stream_));
}

void CudaBackend::ArgMax(Tensor logits, int32_t* ids) {
  CheckRows(logits, "ArgMax: logits");
  NIBBLE_CHECK(logits.rank == 2 && logits.dim[1] > 0, "ArgMax: shape");
  if (logits.dim[0] == 0) return;
  Begin();
  CheckCuda(cuda::ArgMax({.x = logits.as<const float>(),
                          .ids = ids,
                          .x_stride = logits.stride[0],
                          .rows = int(logits.dim[0]),
                          .k = int(logits.dim[1])},
                         stream_));
}

// Work memory grows with the rows of a call: to the most sequences that draw in one step.
void CudaBackend::Draw(Tensor logits, std::span<const DrawRow> rows, std::span<const LogitChange> changes,
                       int32_t* ids) {
  CheckRows(logits, "Draw: logits");
  NIBBLE_CHECK(logits.rank == 2 && logits.dim[1] > 0 && logits.dim[0] == int64_t(rows.size()), "Draw: shape");
  if (rows.empty()) return;
  Begin();
  const int count = int(rows.size()), k = int(logits.dim[1]);
  const auto bytes = size_t(cuda::DrawWorkspaceBytes(count, k));
  if (bytes > draw_work_.bytes) {
    Free(draw_work_);
    const auto work = Alloc(bytes);
    NIBBLE_CHECK(work.ok(), "no memory to draw tokens");
    draw_work_ = *work;
  }
  CheckCuda(cuda::Draw({.x = logits.as<float>(),
                        .rows = draw_rows_.Send(rows, *ring_),
                        .changes = logit_changes_.Send(changes, *ring_),
                        .ids = ids,
                        .workspace = draw_work_.data,
                        .x_stride = logits.stride[0],
                        .count = count,
                        .k = k},
                       stream_));
}

}  // namespace nibble
