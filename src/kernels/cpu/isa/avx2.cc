// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/cpu/table.h"
#include "quant/kv/all.h"
#include "quant/kv/code_pages.h"
#include "quant/kv/int8_tail.h"
#define NIBBLE_ISA avx2
// F16C is older than AVX2 in every family of processors, and clang 14 cannot ask for it.
#define NIBBLE_RUNS_HERE (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
namespace nibble::cpu::NIBBLE_ISA {
#include "kernels/cpu/dot_avx2.h"
#include "kernels/cpu/transpose_x86.h"
#include "kernels/cpu/vec_avx2.h"
}  // namespace nibble::cpu::NIBBLE_ISA
#include "kernels/cpu/all.inl"
