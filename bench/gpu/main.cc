// SPDX-License-Identifier: Apache-2.0
// nibble_gpu check|time [FILTER] [-o FILE.json]: every CUDA kernel against kernels/ref, or its time beside
// the floor.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>

#include "bench/gpu/support.h"

namespace nibble::gpu {
namespace {

int Check(const std::string& filter) {
  Checks checks(filter);
  CheckLinear(&checks);
  CheckDecode(&checks);
  CheckSparq(&checks);
  CheckPrefill(&checks);
  CheckPrefillExact(&checks);
  CheckPrefillTurbo(&checks);
  fmt::print("{} cases, {} failed\n", checks.cases(), checks.failed());
  return checks.failed() == 0 && checks.cases() > 0 ? 0 : 1;
}

int Time(const std::string& filter, const std::string& output) {
  Times times(filter);
  TimeLinear(&times);
  TimeDecode(&times);
  TimeSparq(&times);
  TimePrefill(&times);
  TimePrefillExact(&times);
  TimePrefillTurbo(&times);
  if (output.empty()) return 0;
  cudaDeviceProp device{};
  Require(cudaGetDeviceProperties(&device, 0), "device");
  std::ofstream file(output);
  file << nlohmann::ordered_json{{"device", device.name}, {"rows", times.rows()}}.dump(1) << "\n";
  return file ? 0 : 1;
}

int Run(int argc, char** argv) {
  std::string command, filter, output;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "-o") == 0 && i + 1 < argc)
      output = argv[++i];
    else
      (command.empty() ? command : filter) = argv[i];
  }
  if (command == "check") return Check(filter);
  if (command == "time") return Time(filter, output);
  fmt::print(stderr, "usage: nibble_gpu check|time [FILTER] [-o FILE.json]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::gpu

int main(int argc, char** argv) {
  try {
    return nibble::gpu::Run(argc, argv);
  } catch (const std::exception& e) {
    std::fputs(e.what(), stderr);
    return 1;
  }
}
