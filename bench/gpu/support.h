// SPDX-License-Identifier: Apache-2.0
// What the GPU benchmarks share: device buffers, random data, comparison with the reference, timing, rows of
// results.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/gpu/random.h"
#include "kernels/cuda/stream.h"

namespace nibble::gpu {

// Ends the program: a benchmark that cannot run has nothing to report.
void Require(cudaError_t, const char* what);
void Require(cuda::Launch);

// Device memory; poisoned with 0xFF (NaN), so that what a kernel reads without anyone having written shows.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    Require(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
    Require(cudaMemset(data_, 0xFF, count * sizeof(T)), "cudaMemset");
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) { Set(host); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  void Set(const std::vector<T>& host) {
    Require(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> Host() const {
    std::vector<T> host(count_);
    Require(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// One case of a check: what was compared and how far it was off, relative to the largest true value.
class Checks {
 public:
  explicit Checks(std::string filter) : filter_(std::move(filter)) {}
  bool Wanted(const std::string& name) const { return name.find(filter_) != name.npos; }
  // The case fails when any |got - want| exceeds tolerance * (greatest |want|), or a value is not finite
  // where the other is.
  void Compare(const std::string& name, const std::vector<float>& got, const std::vector<double>& want,
               double tolerance);
  void Equal(const std::string& name, bool equal);  // e.g. bitwise repeatable
  void AtMost(const std::string& name, double value, double limit);
  int cases() const { return cases_; }
  int failed() const { return failed_; }

 private:
  std::string filter_;
  int cases_ = 0, failed_ = 0;
};

// Median seconds of one launch, from a CUDA graph of `launches` launches replayed `replays` times. `launch`
// is given 0 .. launches - 1, to rotate over buffers that together exceed the 60 MB L2 ("cold").
double Seconds(int launches, const std::function<void(int, cudaStream_t)>& launch, int replays = 15);

// How many copies of `bytes` exceed the L2 three times.
int ColdCopies(size_t bytes);

// Collects rows for a JSON file and prints them as they come.
class Times {
 public:
  Times(std::string filter) : filter_(std::move(filter)) {}
  bool Wanted(const std::string& name) const { return name.find(filter_) != name.npos; }
  // `floor` is the least possible seconds and `unit` what it counts, e.g. "4.64 TB/s".
  void Add(const std::string& op, const std::string& shape, double seconds, double floor,
           const std::string& unit);
  // The same for work counted in operations: also prints operations a second.
  void AddOps(const std::string& op, const std::string& shape, double seconds, double operations,
              double rate);
  const nlohmann::ordered_json& rows() const { return rows_; }

 private:
  std::string filter_;
  nlohmann::ordered_json rows_ = nlohmann::ordered_json::array();
};

inline constexpr double kReadBandwidth = 4.64e12;  // bytes a second, H200: pure read, measured

// Each kernel family: its cases against kernels/ref, and its timings.
void CheckLinear(Checks*);
void TimeLinear(Times*);
void CheckDecode(Checks*);
void TimeDecode(Times*);
void CheckSparq(Checks*);
void TimeSparq(Times*);
void CheckPrefill(Checks*);
void TimePrefill(Times*);
void CheckPrefillTurbo(Checks*);
void TimePrefillTurbo(Times*);
void CheckPrefillExact(Checks*);
void TimePrefillExact(Times*);

}  // namespace nibble::gpu
