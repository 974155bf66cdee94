// SPDX-License-Identifier: Apache-2.0
#if defined(__GNUC__) && !defined(__clang__)
// Until GCC 13 the intrinsics' own "undefined" operands are reported as uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "kernels/cpu/table.h"
#include "quant/kv/all.h"
#include "quant/kv/code_pages.h"
#include "quant/kv/int8_tail.h"
#define NIBBLE_ISA avx512
#define NIBBLE_RUNS_HERE                                                       \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&  \
   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && \
   __builtin_cpu_supports("avx512vnni"))
namespace nibble::cpu::NIBBLE_ISA {
#include "kernels/cpu/dot_avx512.h"
#include "kernels/cpu/vec_avx512.h"
}  // namespace nibble::cpu::NIBBLE_ISA
#include "kernels/cpu/all.inl"
