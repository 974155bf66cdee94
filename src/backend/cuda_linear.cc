// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: weights and matrix products. Float weights lie as rows [n, k], integer ones in the
// blocks of docs/formats/weights_hopper.md.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "base/check.h"
#include "base/half.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_pack.h"
#include "quant/weight/pack.h"

namespace nibble {
namespace {

// Up to which a product is short: its start counts (bench/gpu: linear, "no early start").
constexpr int kFewRows = 64;
// What a matrix takes on its way to the device beside its packed form: so much at a time.
constexpr int kSentBytes = 4 << 20;

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

// One after the other as the rows of one matrix: those of a storage and a width, where rows end whole blocks.
bool Joins(std::span<const weight::WeightView> views) {
  return views.size() == 1 || std::all_of(views.begin(), views.end(), [&views](const weight::WeightView& v) {
           return v.storage == views[0].storage && v.k == views[0].k &&
                  (!weight::IsQuantized(v.storage) || v.n % cuda::kBlockRows == 0);
         });
}

size_t CodesBytes(const weight::PackedWeight& w) {
  return weight::IsInteger(w.layout) ? cuda::LinearScaleOffset(StorageOf(w.layout), w.n, w.k)
                                     : size_t(w.n) * size_t(w.k) * size_t(SizeOf(TypeOf(w.layout)));
}

// Rows first .. first + count - 1 of a quantized matrix.
weight::WeightView RowsOf(const weight::WeightView& w, int first, int count) {
  const size_t at = size_t(first), groups = size_t(w.k) / weight::kGroup;
  weight::WeightView rows = w;
  rows.n = count;
  rows.codes += at * size_t(w.k) / (w.storage == Storage::kW8A8 ? 1 : 2);
  rows.scale += at;
  if (w.group_scale != nullptr) rows.group_scale += at * groups;
  if (w.zero != nullptr) rows.zero += at * (w.storage == Storage::kW4A8Group ? groups : 1);
  return rows;
}

// How many of `outs`, from the first on, are columns of one matrix and have weights that are rows of one.
size_t Joined(std::span<const LinearOut> outs) {
  size_t count = 1;
  for (; count < outs.size(); ++count) {
    const LinearOut &last = outs[count - 1], &out = outs[count];
    const bool weights = out.w->layout == last.w->layout && last.w->n % cuda::kBlockRows == 0 &&
                         out.w->codes == last.w->codes + CodesBytes(*last.w);
    const bool columns = out.y.data == last.y.as<float>() + last.w->n && out.y.stride == last.y.stride;
    if (!weights || !columns || out.bias != nullptr || last.bias != nullptr ||
        out.accumulate != last.accumulate)
      break;
  }
  return count;
}

}  // namespace

Result<weight::PackedWeight> CudaBackend::Pack(const weight::WeightView& view, MatmulArith arith) {
  NIBBLE_ASSIGN(const std::vector<weight::PackedWeight> packed, PackTogether({&view, 1}, arith));
  return packed[0];
}

Result<std::vector<weight::PackedWeight>> CudaBackend::PackTogether(std::span<const weight::WeightView> views,
                                                                    MatmulArith arith) {
  for (const weight::WeightView& view : views)
    NIBBLE_RETURN_IF_ERROR(weight::CheckShape(view.storage, view.n, view.k));
  if (!Joins(views)) return Backend::PackTogether(views, arith);
  return weight::IsQuantized(views[0].storage) ? PackIntegers(views) : PackFloats(views, arith);
}

Result<std::vector<weight::PackedWeight>> CudaBackend::PackFloats(std::span<const weight::WeightView> views,
                                                                  MatmulArith arith) {
  const Layout layout = weight::LayoutFor(views[0].storage, arith == MatmulArith::kBF16);
  const auto bytes_of = [layout](const weight::WeightView& v) {
    return size_t(v.n) * size_t(v.k) * size_t(SizeOf(TypeOf(layout)));
  };
  size_t all = 0;
  for (const weight::WeightView& view : views) all += bytes_of(view);
  NIBBLE_ASSIGN(const Buffer memory, Alloc(all));
  weights_.push_back(memory);
  has_bf16_ |= layout == Layout::kBF16 && arith == MatmulArith::kBF16;
  std::vector<weight::PackedWeight> packed;
  std::byte* to = memory.data;
  for (const weight::WeightView& view : views) {
    const size_t bytes = bytes_of(view);
    if (layout == weight::LayoutFor(view.storage, false))
      Upload(view.codes, to, bytes);
    else
      Upload(RoundedToBf16(view).data(), to, bytes);
    packed.push_back({.layout = layout, .n = view.n, .k = view.k, .codes = to, .bytes = bytes});
    to += bytes;
  }
  return packed;
}

Result<const std::byte*> CudaBackend::SendPart(const void* host, size_t bytes, std::vector<Buffer>* parts) {
  if (host == nullptr) return nullptr;
  NIBBLE_ASSIGN(const Buffer part, Alloc(bytes));
  parts->push_back(part);
  Upload(host, part.data, bytes);
  return part.data;
}

Status CudaBackend::SendIntegers(const weight::WeightView& view, const cuda::LinearWeight& to) {
  const size_t n = size_t(view.n), k = size_t(view.k), groups = k / weight::kGroup;
  const bool bytes8 = view.storage == Storage::kW8A8, grouped = view.storage == Storage::kW4A8Group;
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
  CheckCuda(cuda::PackLinearRows(on_device, to, stream_));
  for (const Buffer& part : parts) Free(part);
  // The next rows come when these parts are gone: loading takes little beside what it leaves.
  CheckCuda(cudaStreamSynchronize(stream_), "packing");
  return {};
}

Result<std::vector<weight::PackedWeight>> CudaBackend::PackIntegers(
    std::span<const weight::WeightView> views) {
  const Storage storage = views[0].storage;
  int n = 0;
  const int k = views[0].k;
  for (const weight::WeightView& view : views) {
    if (!IsHopper())
      return Error(
          Code::kUnsupported,
          "{} weights need a GPU of compute capability 9.0 and this one has {}.{}; use float weights or "
          "--device cpu",
          weight::Name(storage), properties_.major, properties_.minor);
    if (view.n % 8 != 0 || view.k % 16 != 0)
      return Error(Code::kUnsupported,
                   "{} weights [{}, {}]: on a GPU rows must be a multiple of 8, inputs of 16",
                   weight::Name(storage), view.n, view.k);
    n += view.n;
  }
  const size_t bytes = cuda::LinearBytes(storage, n, k);
  NIBBLE_ASSIGN(const Buffer memory, Alloc(bytes));
  weights_.push_back(memory);
  has_integers_ = true;
  const cuda::LinearWeight all = cuda::LinearWeightAt(storage, n, k, memory.data);
  const auto rows_at = [&](int row, int count) {
    return cuda::LinearWeight{storage,
                              count,
                              k,
                              all.blocks + cuda::LinearScaleOffset(storage, row, k),
                              all.scale + row,
                              all.zero == nullptr ? nullptr : all.zero + row};
  };
  const int together = std::max(kSentBytes / k / cuda::kBlockRows, 1) * cuda::kBlockRows;
  std::vector<weight::PackedWeight> packed;
  int row = 0;
  for (const weight::WeightView& view : views) {
    for (int first = 0; first < view.n; first += together) {
      const int count = std::min(together, view.n - first);
      NIBBLE_RETURN_IF_ERROR(SendIntegers(RowsOf(view, first, count), rows_at(row + first, count)));
    }
    const cuda::LinearWeight w = rows_at(row, view.n);
    row += view.n;
    packed.push_back({.layout = weight::LayoutFor(storage, false),
                      .n = view.n,
                      .k = k,
                      .codes = w.blocks,
                      .scale = w.scale,
                      .zero = w.zero,
                      .bytes = bytes * size_t(view.n) / size_t(n)});
  }
  return packed;
}

void CudaBackend::LinearFloats(Tensor x, const LinearOut& out, int n, MatmulArith arith) {
  if (OnTensorCores(*out.w, arith))
    return CheckCuda(cuda::DenseBf16({.w = reinterpret_cast<const uint16_t*>(out.w->codes),
                                      .x = left_.bf16,
                                      .bias = out.bias,
                                      .y = out.y.as<float>(),
                                      .y_stride = out.y.stride[0],
                                      .rows = int(x.dim[0]),
                                      .n = n,
                                      .k = out.w->k,
                                      .accumulate = out.accumulate},
                                     stream_));
  CheckCuda(cuda::Dense({.w = out.w->codes,
                         .type = TypeOf(out.w->layout),
                         .x = x.as<const float>(),
                         .bias = out.bias,
                         .y = out.y.as<float>(),
                         .x_stride = x.stride[0],
                         .y_stride = out.y.stride[0],
                         .rows = int(x.dim[0]),
                         .n = n,
                         .k = out.w->k,
                         .round_x = arith == MatmulArith::kBF16,
                         .accumulate = out.accumulate},
                        stream_));
}

void CudaBackend::LinearIntegers(const LinearOut& out, int n, int rows) {
  const weight::PackedWeight& w = *out.w;
  CheckCuda(cuda::LinearInt({.w = {StorageOf(w.layout), n, w.k, w.codes, w.scale, w.zero},
                             .x = xq_,
                             .x_scale = x_scale_,
                             .row_sum = row_sum_,
                             .bias = out.bias,
                             .y = out.y.data,
                             .type = cuda::Real::kF32,
                             .y_stride = out.y.stride[0],
                             .rows = rows,
                             .accumulate = out.accumulate,
                             .early_start = rows <= kFewRows,
                             .plan = {}},
                            stream_));
}

// What the op before did not leave.
void CudaBackend::CopyInputs(Tensor x, bool codes, bool bf16) {
  const int rows = int(x.dim[0]), k = int(x.dim[1]);
  if (left_.rows != x.data || left_.count != rows || left_.k != k) left_ = {};
  if (bf16 && left_.bf16 == nullptr) {
    CheckCuda(cuda::RoundToBf16(
        {.x = x.as<const float>(), .to = x_bf16_, .x_stride = x.stride[0], .rows = rows, .k = k}, stream_));
    left_.bf16 = x_bf16_;
  }
  if (codes && !left_.codes)
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
  Rotate();
  CopyInputs(x, integer, tensor_cores);
  while (!outs.empty()) {
    const size_t count = Joined(outs);
    int n = 0;
    for (const LinearOut& out : outs.first(count)) n += out.w->n;
    weight::IsInteger(outs[0].w->layout) ? LinearIntegers(outs[0], n, rows)
                                         : LinearFloats(x, outs[0], n, arith);
    outs = outs.subspan(count);
  }
  Begin();
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
