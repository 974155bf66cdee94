// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/kernels.h"

#include <cstdlib>
#include <string>

namespace nibble::cpu {
namespace avx512 {
extern const CpuKernels kKernels;
}
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace generic {
extern const CpuKernels kKernels;
}
namespace {
constexpr const CpuKernels* kIsas[] = {&avx512::kKernels, &avx2::kKernels, &generic::kKernels};
}

std::span<const CpuKernels* const> AllIsas() { return kIsas; }

Result<const CpuKernels*> ChooseIsa() {
  const char* forced = std::getenv("NIBBLE_CPU");
  for (const CpuKernels* k : kIsas) {
    if (forced != nullptr && *forced != '\0' && std::string_view(forced) != k->isa) continue;
    if (k->runs_here()) return k;
    if (forced != nullptr && *forced != '\0')
      return Error(Code::kUnsupported, "NIBBLE_CPU={}: this processor lacks the instructions", forced);
  }
  return Error(Code::kInvalidArgument, "NIBBLE_CPU={}: unknown; use generic, avx2 or avx512",
               forced == nullptr ? "" : forced);
}

}  // namespace nibble::cpu
