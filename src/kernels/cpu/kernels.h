// SPDX-License-Identifier: Apache-2.0
// Floor 4. Which CPU kernels this build has, and the choice at run time.
#pragma once
#include <span>

#include "base/result.h"
#include "kernels/cpu/table.h"

namespace nibble::cpu {

std::span<const CpuKernels* const> AllIsas();  // best first

// The best ISA this machine runs, or the one NIBBLE_CPU=generic|avx2|avx512 forces. An unknown or unsupported
// name is kInvalidArgument / kUnsupported.
Result<const CpuKernels*> ChooseIsa();

}  // namespace nibble::cpu
