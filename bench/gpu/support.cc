// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu/support.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace nibble::gpu {
void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fmt::print(stderr, "nibble_gpu: {}: {}\n", what, cudaGetErrorString(error));
  std::exit(1);
}

void Require(cuda::Launch launch) { Require(cudaError_t(launch.error), launch.what); }

void Checks::Compare(const std::string& name, const std::vector<float>& got, const std::vector<double>& want,
                     double tolerance) {
  ++cases_;
  double greatest = 0, error = 0;
  for (double x : want)
    if (std::isfinite(x)) greatest = std::max(greatest, std::fabs(x));
  bool bad = got.size() != want.size();
  size_t worst = 0;
  for (size_t i = 0; i < want.size() && !bad; ++i) {
    if (std::isfinite(want[i]) != std::isfinite(double(got[i]))) {
      bad = true;
      worst = i;
    } else if (std::isfinite(want[i]) && std::fabs(got[i] - want[i]) > error) {
      error = std::fabs(got[i] - want[i]);
      worst = i;
    }
  }
  bad = bad || error > tolerance * greatest;
  failed_ += bad;
  if (bad)
    fmt::print("FAIL {}: error {:.3g} of {:.3g} allowed, at {} of {}: {} for {}\n", name, error,
               tolerance * greatest, worst, want.size(), worst < got.size() ? got[worst] : 0.0f,
               worst < want.size() ? want[worst] : 0.0);
}

void Checks::Equal(const std::string& name, bool equal) {
  ++cases_;
  failed_ += !equal;
  if (!equal) fmt::print("FAIL {}\n", name);
}

void Checks::AtMost(const std::string& name, double value, double limit) {
  ++cases_;
  const bool good = value <= limit;  // NaN is not
  failed_ += !good;
  if (!good) fmt::print("FAIL {}: {:.6g}, at most {:.6g}\n", name, value, limit);
}

int ColdCopies(size_t bytes) {
  return int(std::clamp<size_t>(size_t{180} * 1000 * 1000 / std::max<size_t>(bytes, 1) + 1, 2, 64));
}

double Seconds(int launches, const std::function<void(int, cudaStream_t)>& launch, int replays) {
  cudaStream_t stream = nullptr;
  Require(cudaStreamCreate(&stream), "stream");
  for (int i = 0; i < launches; ++i) launch(i, stream);  // sets attributes, which a capture cannot
  Require(cudaStreamSynchronize(stream), "warm-up");
  cudaGraph_t graph = nullptr;
  Require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) launch(i, stream);
  Require(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  Require(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  Require(cudaEventCreate(&begin), "event");
  Require(cudaEventCreate(&end), "event");
  Require(cudaGraphLaunch(exec, stream), "replay");
  std::vector<double> seconds;
  for (int replay = 0; replay < replays; ++replay) {
    Require(cudaEventRecord(begin, stream), "event");
    Require(cudaGraphLaunch(exec, stream), "replay");
    Require(cudaEventRecord(end, stream), "event");
    Require(cudaEventSynchronize(end), "replay");
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end), "time");
    seconds.push_back(double(ms) * 1e-3 / launches);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

void Times::Add(const std::string& op, const std::string& shape, double seconds, double floor,
                const std::string& unit) {
  fmt::print("{:28} {:34} {:9.2f} us  {:5.1f}% of the floor {:.2f} us ({})\n", op, shape, seconds * 1e6,
             100 * floor / seconds, floor * 1e6, unit);
  rows_.push_back(
      {{"op", op}, {"shape", shape}, {"seconds", seconds}, {"floor_seconds", floor}, {"floor", unit}});
}

void Times::AddOps(const std::string& op, const std::string& shape, double seconds, double operations,
                   double rate) {
  fmt::print("{:28} {:34} {:9.2f} us  {:6.0f} TOP/s  {:5.1f}% of {:.0f}\n", op, shape, seconds * 1e6,
             operations / seconds * 1e-12, 100 * operations / seconds / rate, rate * 1e-12);
  rows_.push_back(
      {{"op", op}, {"shape", shape}, {"seconds", seconds}, {"operations", operations}, {"rate", rate}});
}

}  // namespace nibble::gpu
