// SPDX-License-Identifier: Apache-2.0
// Floor 5. The backend of a device choice.
#include "backend/backend.h"

namespace nibble {

Result<std::vector<weight::PackedWeight>> Backend::PackTogether(std::span<const weight::WeightView> views,
                                                                MatmulArith arith) {
  std::vector<weight::PackedWeight> packed;
  for (const weight::WeightView& view : views) {
    NIBBLE_ASSIGN(const weight::PackedWeight one, Pack(view, arith));
    packed.push_back(one);
  }
  return packed;
}

#if !defined(NIBBLE_CUDA)
Result<std::unique_ptr<Backend>> MakeCudaBackend() {
  return Error(Code::kUnsupported,
               "cuda: this build has no GPU support; build with -DNIBBLE_CUDA=ON where nvcc is found, or use "
               "--device cpu");
}
#endif

Result<std::unique_ptr<Backend>> MakeBackend(DeviceChoice choice, int threads, NumaMode numa) {
  if (choice == DeviceChoice::kCpu) return MakeCpuBackend(threads, numa);
  auto cuda = MakeCudaBackend();
  // kAuto takes the CPU where there is no device to use; one that is there and fails is an error.
  const bool absent = !cuda.ok() && cuda.status().code() == Code::kUnsupported;
  if (choice == DeviceChoice::kAuto && absent) return MakeCpuBackend(threads, numa);
  if (cuda.ok() && numa != NumaMode::kOff)
    return Error(Code::kUnsupported, "--numa {}: places threads and memory of the CPU, the device is {}",
                 ToString(numa), (*cuda)->Info().name);
  return cuda;
}

}  // namespace nibble
