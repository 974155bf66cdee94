// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: steps as graphs. A decode step of a batch launches the same kernels with the same
// addresses every time; what changes lies in arrays that are sent before. The first step of a form runs op by
// op, the second is recorded, later ones replay: one launch a step.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "backend/kv_view.h"
#include "base/check.h"

namespace nibble {
namespace {

constexpr size_t kMostForms = 8;
// A step is a few graphs: launching one takes the host as long as it has kernels, and the device works from
// the end of the first launch on. Attention ends the first graph in the first layer, and then every so many.
constexpr size_t kLayersAGraph = 8;

// Steps of one row a sequence: no host decision but the shape, and whether some page is full.
bool Repeats(const StepInputs& in) {
  return !in.observed && !in.segments.empty() &&
         std::all_of(in.segments.begin(), in.segments.end(), [](const KvSegment& s) {
           return s.rows == 1 && s.raw_slot >= 0 && s.copy_from < 0 && s.dense_rows == 0;
         });
}
bool Seals(const StepInputs& in) {
  return std::any_of(in.segments.begin(), in.segments.end(),
                     [](const KvSegment& s) { return s.seal_page >= 0; });
}

}  // namespace

std::vector<int64_t> CudaBackend::FormOf(const StepInputs& in) const {
  std::vector<int64_t> form = (in.selects ? selected_ : entries_)->Form();
  form.push_back(int64_t(in.tokens.size()));
  form.push_back(Seals(in));
  form.push_back(Weighs(in.segments));
  form.insert(form.end(), in.logit_rows.begin(), in.logit_rows.end());
  for (const void* p :
       {in.model, in.cache, static_cast<const void*>(tokens_.device()),
        static_cast<const void*>(positions_.device()), static_cast<const void*>(segments_.device()),
        static_cast<const void*>(page_table_.device())})
    form.push_back(reinterpret_cast<int64_t>(p));
  return form;
}

void CudaBackend::RunStep(const StepInputs& in, const std::function<void()>& ops) {
  Begin();
  if (!Repeats(in)) return ops();
  deferring_ = true;
  RunRepeating(in, ops);
  deferring_ = false;
}

void CudaBackend::RunRepeating(const StepInputs& in, const std::function<void()>& ops) {
  ring_->Gather();
  tokens_.Send(in.tokens, *ring_), positions_.Send(in.positions, *ring_);
  segments_.Send(in.segments, *ring_), page_table_.Send(in.page_table, *ring_);
  (in.selects ? selected_ : entries_)->Prepare(in.segments, in.page_table, DecodeEntries::Rows::kAll, *ring_);
  ring_->SendGathered();
  const std::vector<int64_t> form = FormOf(in);
  const auto known =
      std::find_if(recorded_.begin(), recorded_.end(), [&form](const Recorded& r) { return r.form == form; });
  if (known == recorded_.end()) {
    ops();
    SealDeferred();
    if (recorded_.size() == kMostForms) ForgetSteps();
    recorded_.push_back({.form = FormOf(in)});
    return;
  }
  if (known->graphs.empty()) {
    Record(*known, ops);
  } else {
    for (auto& [view, window] : known->attends) {
      view.segments = in.segments;
      CountDense(view, window);
    }
    counters_.tail_values += known->tail_values;
  }
  for (const cudaGraphExec_t graph : known->graphs)
    CheckCuda(cudaGraphLaunch(graph, stream_), "a recorded step");
}

void CudaBackend::Record(Recorded& step, const std::function<void()>& ops) {
  ring_->Pause(true);
  recording_ = &step;
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a step");
  ops();
  SealDeferred();
  Begin();  // what is left behind a step is not there after a replay
  EndGraph();
  recording_ = nullptr;
  ring_->Pause(false);
}

void CudaBackend::EndGraph() {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "recording a step");
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "recording a step");
  CheckCuda(cudaGraphDestroy(graph), "recording a step");
  recording_->graphs.push_back(executable);
}

void CudaBackend::AfterLayer() {
  if (recording_ == nullptr || recording_->attends.size() % kLayersAGraph != 1) return;
  EndGraph();
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a step");
}

void CudaBackend::ForgetSteps() {
  NIBBLE_CHECK(recording_ == nullptr, "memory freed while a step was recorded");
  const bool any =
      std::any_of(recorded_.begin(), recorded_.end(), [](const Recorded& r) { return !r.graphs.empty(); });
  if (any) CheckCuda(cudaStreamSynchronize(stream_), "recorded steps");
  for (const Recorded& step : recorded_)
    for (const cudaGraphExec_t graph : step.graphs) CheckCuda(cudaGraphExecDestroy(graph), "a recorded step");
  recorded_.clear();
}

}  // namespace nibble
