// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: QAQ while decoding. As on the CPU (cpu_qaq.cc) attention goes through a step in
// waves, the n-th of which holds the n-th page of every sequence; statistics and new widths stay on the
// device, behind the attention of their wave.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "backend/kv_view.h"
#include "backend/qaq_waves.h"
#include "base/check.h"
#include "quant/kv/qaq.h"

namespace nibble {
namespace {

constexpr int kPagesStep = 32;  // by which work memory grows, so that a recorded step serves for a while

}  // namespace

// On the device. Kept: layers are few, and most have the recipe's own.
const kv::QaqParams* CudaBackend::QaqOfHeads(const kv::QaqParams* of_heads, int kv_heads) {
  const std::vector<kv::QaqParams> params(of_heads, of_heads + kv_heads);
  const auto known = std::find_if(qaq_params_.begin(), qaq_params_.end(),
                                  [&params](const auto& p) { return p.first == params; });
  if (known != qaq_params_.end()) return reinterpret_cast<const kv::QaqParams*>(known->second.data);
  const size_t bytes = params.size() * sizeof(kv::QaqParams);
  const auto buffer = Alloc(bytes);
  NIBBLE_CHECK(buffer.ok(), "no memory for the parameters of heads");
  Upload(params.data(), buffer->data, bytes);
  qaq_params_.emplace_back(params, *buffer);
  return reinterpret_cast<const kv::QaqParams*>(buffer->data);
}

cuda::QaqSide CudaBackend::QaqSideOf(const QaqStore& store, int kv_heads) {
  if (store.params == nullptr) return {};
  return {.planes = store.planes,
          .cells = store.cells,
          .plane_capacity = store.plane_capacity,
          .cell_capacity = store.cell_capacity,
          .most_planes = store.most_planes,
          .most_cells = store.most_cells,
          .params = QaqOfHeads(store.params, kv_heads)};
}

// Whether a row is among the last of its page, which V's importance comes from.
bool CudaBackend::Weighs(std::span<const KvSegment> segments) const {
  return std::any_of(segments.begin(), segments.end(), [this](const KvSegment& s) {
    return s.pages > 0 && s.position % kv::kPageTokens + s.rows > kv::kPageTokens - qaq_window_;
  });
}

void CudaBackend::Requantize(const AttendArgs& a, const cuda::PagedKv& kv) {
  const KvView& view = a.kv;
  int rows = 0, pages = 0;
  for (const KvSegment& s : view.segments) rows = std::max(rows, s.rows), pages = std::max(pages, s.pages);
  cuda::QaqArgs args{.kv = kv,
                     .k = QaqSideOf(view.k_qaq, view.kv_heads),
                     .v = QaqSideOf(view.v_qaq, view.kv_heads),
                     .norms = view.qaq_state,
                     .q = a.q.as<const float>(),
                     .q_stride = a.q.stride[0],
                     .heads = a.heads,
                     .scale = a.scale,
                     .window = a.window,
                     .most_rows = std::min(rows, qaq_window_),
                     .max_pages = (pages + kPagesStep - 1) / kPagesStep * kPagesStep,
                     .workspace = nullptr,
                     .usage = qaq_usage_,
                     .bytes_read = &device_counters_->select.bytes};
  const bool weighs = Weighs(view.segments);
  if (weighs) {
    const auto bytes = size_t(cuda::QaqWorkspaceBytes(args));
    if (bytes > qaq_work_.bytes) {
      Free(qaq_work_);
      const auto work = Alloc(2 * bytes);
      NIBBLE_CHECK(work.ok(), "no memory for the statistics of attention");
      qaq_work_ = *work;
    }
    args.workspace = qaq_work_.data;
  }
  CheckCuda(cuda::QaqGather(args, weighs, stream_));
  const auto completed = [](const KvSegment& s) { return s.seal_page >= 0; };
  if (std::any_of(view.segments.begin(), view.segments.end(), completed))
    CheckCuda(cuda::QaqRequantize(args, stream_));
}

// The segments of a step by waves. Those of a decode step are one wave, as they are.
void CudaBackend::AttendInWaves(const AttendArgs& a) {
  for (int head = 0; a.kv.v_qaq.params != nullptr && head < a.kv.kv_heads; ++head)
    qaq_window_ = std::max(qaq_window_, a.kv.v_qaq.params[head].window);
  const bool cores = AttendsOnTensorCores(a.kv, a.heads);
  if (cores) {
    RoundQueries(a);
  } else {
    Begin();
  }
  ForWaves(a.kv.segments, &wave_, [&] {
    AttendArgs part = a;
    part.kv.segments = wave_;
    const cuda::PagedKv kv = PagedOf(part.kv);
    if (cores) {
      AttendEntries(part, kv, DecodeEntries::Rows::kAll);
    } else {
      AttendPages(part, kv, Prompts::kAsAll);
    }
    Requantize(part, kv);
  });
  if (cores) WidenOutputs(a);
}

KvUsage CudaBackend::Usage(KvSide side) const {
  cuda::QaqUsage usage{};
  CheckCuda(cudaMemcpyAsync(&usage, qaq_usage_ + size_t(side), sizeof usage, cudaMemcpyDeviceToHost, stream_),
            "usage of pages");
  CheckCuda(cudaStreamSynchronize(stream_), "usage of pages");
  return {.values = int64_t(usage.values),
          .bits = int64_t(usage.bits),
          .paper_bits = int64_t(usage.paper_bits),
          .narrowings = int64_t(usage.narrowings),
          .widenings = int64_t(usage.widenings),
          .starved = int64_t(usage.starved)};
}

}  // namespace nibble
