// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: weights and matrix products. Float weights lie as rows [n, k], integer ones in the
// blocks of docs/formats/weights_hopper.md.
#include "backend/cuda_backend.h"
#include "base/check.h"
#include "base/half.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/linear.h"
#include "quant/weight/pack.h"

namespace nibble {
namespace {

// Up to which a product is short: its start counts (bench/gpu: linear, "no early start").
constexpr int kFewRows = 64;

using weight::Layout;
using weight::Storage;

DType TypeOf(Layout layout) {
  return layout == Layout::kF32 ? DType::kF32 : layout == Layout::kF16 ? DType::kF16 : DType::kBF16;
}

Storage StorageOf(Layout layout) {
  return layout == Layout::kI4Group     ? Storage::kW4A8Group
         : layout == Layout::kI4Channel ? Storage::kW4A8Channel
                                        : Storage::kW8A8;
}

bool OnTensorCores(const weight::PackedWeight& w, MatmulArith arith) {
  return arith == MatmulArith::kBF16 && w.layout == Layout::kBF16 && w.k % 8 == 0;
}

// f32 and f16 weights under bf16 arithmetic.
std::vector<uint16_t> RoundedToBf16(const weight::WeightView& w) {
  std::vector<uint16_t> rounded(size_t(w.n) * size_t(w.k));
  for (size_t i = 0; i < rounded.size(); ++i) {
    float x = 0;
    uint16_t half = 0;
    if (w.storage == Storage::kF32)
      memcpy(&x, w.codes + 4 * i, 4);
    else
      memcpy(&half, w.codes + 2 * i, 2), x = HalfToFloat(half);
    rounded[i] = FloatToBf16(x);
  }
  return rounded;
}

}  // namespace

Result<weight::PackedWeight> CudaBackend::Pack(const weight::WeightView& view, MatmulArith arith) {
  NIBBLE_RETURN_IF_ERROR(weight::CheckShape(view.storage, view.n, view.k));
  return weight::IsQuantized(view.storage) ? PackIntegers(view) : PackFloats(view, arith);
}

Result<weight::PackedWeight> CudaBackend::PackFloats(const weight::WeightView& view, MatmulArith arith) {
  const Layout layout = weight::LayoutFor(view.storage, arith == MatmulArith::kBF16);
  const size_t bytes = size_t(view.n) * size_t(view.k) * size_t(SizeOf(TypeOf(layout)));
  NIBBLE_ASSIGN(const Buffer memory, Alloc(bytes));
  weights_.push_back(memory);
  const bool as_is = layout == weight::LayoutFor(view.storage, false);
  if (as_is)
    Upload(view.codes, memory.data, bytes);
  else
    Upload(RoundedToBf16(view).data(), memory.data, bytes);
  return weight::PackedWeight{
      .layout = layout, .n = view.n, .k = view.k, .codes = memory.data, .bytes = bytes};
}

Result<const std::byte*> CudaBackend::SendPart(const void* host, size_t bytes, std::vector<Buffer>* parts) {
  if (host == nullptr) return nullptr;
  NIBBLE_ASSIGN(const Buffer part, Alloc(bytes));
  parts->push_back(part);
  Upload(host, part.data, bytes);
  return part.data;
}

Result<weight::PackedWeight> CudaBackend::PackIntegers(const weight::WeightView& view) {
  if (!IsHopper())
    return Error(
        Code::kUnsupported,
        "{} weights need a GPU of compute capability 9.0 and this one has {}.{}; use float weights or "
        "--device cpu",
        weight::Name(view.storage), properties_.major, properties_.minor);
  if (view.n % 8 != 0 || view.k % 16 != 0)
    return Error(Code::kUnsupported,
                 "{} weights [{}, {}]: on a GPU rows must be a multiple of 8, inputs of 16",
                 weight::Name(view.storage), view.n, view.k);
  const size_t n = size_t(view.n), k = size_t(view.k), groups = k / weight::kGroup;
  const bool bytes8 = view.storage == Storage::kW8A8, grouped = view.storage == Storage::kW4A8Group;
  const size_t bytes = cuda::LinearBytes(view.storage, view.n, view.k);
  NIBBLE_ASSIGN(const Buffer memory, Alloc(bytes));
  weights_.push_back(memory);
  std::vector<Buffer> parts;
  weight::WeightView on_device = view;
  NIBBLE_ASSIGN(on_device.codes, SendPart(view.codes, bytes8 ? n * k : n * k / 2, &parts));
  NIBBLE_ASSIGN(const std::byte* scale, SendPart(view.scale, n * 2, &parts));
  NIBBLE_ASSIGN(const std::byte* group_scale,
                SendPart(grouped ? view.group_scale : nullptr, n * groups, &parts));
  NIBBLE_ASSIGN(const std::byte* zero,
                SendPart(bytes8 ? nullptr : view.zero, grouped ? n * groups : n, &parts));
  on_device.scale = reinterpret_cast<const uint16_t*>(scale);
  on_device.group_scale = reinterpret_cast<const uint8_t*>(group_scale);
  on_device.zero = reinterpret_cast<const uint8_t*>(zero);
  CheckCuda(cuda::PackLinear(on_device, memory.data, stream_));
  for (const Buffer& part : parts) Free(part);
  const cuda::LinearWeight w = cuda::LinearWeightAt(view.storage, view.n, view.k, memory.data);
  return weight::PackedWeight{.layout = weight::LayoutFor(view.storage, false),
                              .n = view.n,
                              .k = view.k,
                              .codes = w.blocks,
                              .scale = w.scale,
                              .zero = w.zero,
                              .bytes = bytes};
}

void CudaBackend::LinearFloats(Tensor x, const LinearOut& out, MatmulArith arith, cudaStream_t stream) {
  if (OnTensorCores(*out.w, arith))
    return CheckCuda(cuda::DenseBf16({.w = reinterpret_cast<const uint16_t*>(out.w->codes),
                                      .x = x_bf16_,
                                      .bias = out.bias,
                                      .y = out.y.as<float>(),
                                      .y_stride = out.y.stride[0],
                                      .rows = int(x.dim[0]),
                                      .n = out.w->n,
                                      .k = out.w->k,
                                      .accumulate = out.accumulate},
                                     stream));
  CheckCuda(cuda::Dense({.w = out.w->codes,
                         .type = TypeOf(out.w->layout),
                         .x = x.as<const float>(),
                         .bias = out.bias,
                         .y = out.y.as<float>(),
                         .x_stride = x.stride[0],
                         .y_stride = out.y.stride[0],
                         .rows = int(x.dim[0]),
                         .n = out.w->n,
                         .k = out.w->k,
                         .round_x = arith == MatmulArith::kBF16,
                         .accumulate = out.accumulate},
                        stream));
}

void CudaBackend::LinearIntegers(const LinearOut& out, int rows, bool early, cudaStream_t stream) {
  const weight::PackedWeight& w = *out.w;
  CheckCuda(cuda::LinearInt({.w = {StorageOf(w.layout), w.n, w.k, w.codes, w.scale, w.zero},
                             .x = xq_,
                             .x_scale = x_scale_,
                             .row_sum = row_sum_,
                             .bias = out.bias,
                             .y = out.y.data,
                             .type = cuda::Real::kF32,
                             .y_stride = out.y.stride[0],
                             .rows = rows,
                             .accumulate = out.accumulate,
                             .early_start = early,
                             .plan = {}},
                            stream));
}

void CudaBackend::Linear(Tensor x, std::span<const LinearOut> outs, MatmulArith arith) {
  NIBBLE_CHECK(x.rank == 2 && x.dtype == DType::kF32 && x.stride[1] == 1 && x.device == Device::kCuda,
               "Linear: x");
  const int rows = int(x.dim[0]), k = int(x.dim[1]);
  bool integer = false, tensor_cores = false;
  for (const LinearOut& out : outs) {
    NIBBLE_CHECK(out.w->k == k && out.y.rank == 2 && out.y.dim[0] == rows && out.y.dim[1] == out.w->n,
                 "Linear: shapes of x, weight and y");
    NIBBLE_CHECK(out.y.dtype == DType::kF32 && out.y.stride[1] == 1, "Linear: y");
    integer |= weight::IsInteger(out.w->layout);
    tensor_cores |= OnTensorCores(*out.w, arith);
  }
  if (rows == 0) return;
  NIBBLE_CHECK(rows <= max_rows_ && k <= max_k_, "Linear: more rows or inputs than Reserve was told");
  if (tensor_cores)
    CheckCuda(cuda::RoundToBf16(
        {.x = x.as<const float>(), .to = x_bf16_, .x_stride = x.stride[0], .rows = rows, .k = k}, stream_));
  if (integer) {
    CheckCuda(cuda::QuantizeRows({.x = x.data,
                                  .type = cuda::Real::kF32,
                                  .q = xq_,
                                  .scale = x_scale_,
                                  .row_sum = row_sum_,
                                  .x_stride = x.stride[0],
                                  .rows = rows,
                                  .k = k},
                                 stream_));
  }
  // Products of few rows do not fill the device: those that share an input run beside each other.
  const bool few = rows <= kFewRows, beside = few && outs.size() > 1 && outs.size() <= 1 + std::size(beside_);
  if (beside) CheckCuda(cudaEventRecord(forked_, stream_), "fork");
  for (size_t i = 0; i < outs.size(); ++i) {
    const cudaStream_t stream = beside && i > 0 ? beside_[i - 1].stream : stream_;
    if (stream != stream_) CheckCuda(cudaStreamWaitEvent(stream, forked_), "fork");
    weight::IsInteger(outs[i].w->layout) ? LinearIntegers(outs[i], rows, few && !beside, stream)
                                         : LinearFloats(x, outs[i], arith, stream);
    if (stream == stream_) continue;
    CheckCuda(cudaEventRecord(beside_[i - 1].done, stream), "join");
  }
  for (size_t i = 1; beside && i < outs.size(); ++i)
    CheckCuda(cudaStreamWaitEvent(stream_, beside_[i - 1].done), "join");
}

std::string CudaBackend::ExplainLinear(const weight::PackedWeight& w, MatmulArith arith) const {
  if (weight::IsInteger(w.layout)) return fmt::format("cuda/{}-wgmma", weight::Name(StorageOf(w.layout)));
  if (OnTensorCores(w, arith)) return "cuda/bf16-mma";
  return fmt::format("cuda/dense-{}{}",
                     w.layout == Layout::kF32   ? "f32"
                     : w.layout == Layout::kF16 ? "f16"
                                                : "bf16",
                     arith == MatmulArith::kBF16 ? ", inputs in bf16" : "");
}

}  // namespace nibble
