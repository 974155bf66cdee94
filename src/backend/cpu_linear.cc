// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: weights and matrix products. A product is cut into panels of outputs times blocks of
// rows; the panels of all products that share an input form one list, so that small K and V projections fill
// the gaps of a large Q.
#include "backend/cpu_backend.h"
#include "base/check.h"

namespace nibble {
namespace {

// Rows of one work item. Their input block stays in the second-level cache while the item walks its panels;
// inputs of integer products are a quarter as large.
constexpr int kRowBlock = 64, kIntRowBlock = 256;
// Multiply-adds below which an item is not worth handing out: a microsecond or so.
constexpr int64_t kMinMacs = 65536;
// Kernels take panels in pairs or fours.
constexpr int64_t kPanelStep = 4;
// Work items a thread: enough that one slow thread does not leave the others waiting for long.
constexpr int64_t kItemsPerThread = 6;

int Panels(const weight::PackedWeight& w) { return weight::Panels(w.n); }

}  // namespace

void CpuBackend::QuantizeRows(const float* x, int64_t x_stride, int rows, int k) {
  NIBBLE_CHECK(rows <= max_rows_ && k <= max_k_, "Linear: more rows or inputs than Reserve was told");
  const int64_t groups = (k + weight::kGroup - 1) / weight::kGroup;
  ForBlocks(rows, k, [&](int begin, int end, int) {
    kernels_.quantize_rows({.x = x + begin * x_stride,
                            .q = xq_ + int64_t{begin} * k,
                            .scale = x_scale_ + begin,
                            .group_sum = group_sum_ + begin * groups,
                            .x_stride = x_stride,
                            .rows = end - begin,
                            .k = k});
  });
}

void CpuBackend::Linear(Tensor x, std::span<const LinearOut> outs, MatmulArith arith) {
  NIBBLE_CHECK(x.rank == 2 && x.dtype == DType::kF32 && x.stride[1] == 1, "Linear: x");
  const int rows = static_cast<int>(x.dim[0]), k = static_cast<int>(x.dim[1]);
  const int64_t groups = (k + weight::kGroup - 1) / weight::kGroup;
  int64_t panels = 0;
  bool integer = false;
  for (const LinearOut& out : outs) {
    NIBBLE_CHECK(out.w->k == k && out.y.rank == 2 && out.y.dim[0] == rows && out.y.dim[1] == out.w->n,
                 "Linear: shapes of x, weight and y");
    NIBBLE_CHECK(out.y.dtype == DType::kF32 && out.y.stride[1] == 1, "Linear: y");
    panels += Panels(*out.w);
    integer |= weight::IsInteger(out.w->layout);
  }
  if (rows == 0 || panels == 0) return;
  if (integer) QuantizeRows(x.as<const float>(), x.stride[0], rows, k);

  const int row_block = integer ? kIntRowBlock : kRowBlock;
  const int64_t row_blocks = (rows + row_block - 1) / row_block;
  const int64_t macs = int64_t{std::min(rows, row_block)} * weight::kPanel * k;  // of one panel and row block
  const int64_t fair = (panels * row_blocks) / (kItemsPerThread * pool_.threads());
  int64_t chunk = std::clamp<int64_t>(std::max(fair, kMinMacs / macs), 1, panels);
  if (chunk > kPanelStep) chunk -= chunk % kPanelStep;
  const int64_t chunks = (panels + chunk - 1) / chunk;
  pool_.Run(row_blocks * chunks, [&](int64_t item, int) {
    const int64_t row = item / chunks * row_block;
    const int64_t begin = item % chunks * chunk, end = std::min(panels, begin + chunk);
    int64_t first = 0;  // panels of the products before this one
    for (const LinearOut& out : outs) {
      const int64_t count = Panels(*out.w);
      const int64_t from = std::max(begin, first) - first, to = std::min(end, first + count) - first;
      first += count;
      if (from >= to) continue;
      kernels_.linear({.w = *out.w,
                       .x = x.as<const float>() + row * x.stride[0],
                       .xq = xq_ + row * k,
                       .x_scale = x_scale_ + row,
                       .group_sum = group_sum_ + row * groups,
                       .bias = out.bias,
                       .y = out.y.as<float>() + row * out.y.stride[0],
                       .x_stride = x.stride[0],
                       .y_stride = out.y.stride[0],
                       .rows = static_cast<int>(std::min<int64_t>(row_block, rows - row)),
                       .panel_begin = static_cast<int>(from),
                       .panel_end = static_cast<int>(to),
                       .arith = arith,
                       .accumulate = out.accumulate});
    }
  });
}

std::string CpuBackend::ExplainLinear(const weight::PackedWeight& w, MatmulArith arith) const {
  return fmt::format("{}/{}", kernels_.isa, kernels_.linear_name(w.layout, arith));
}

}  // namespace nibble
