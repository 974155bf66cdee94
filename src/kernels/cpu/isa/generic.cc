// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/table.h"
#include "quant/kv/all.h"
#include "quant/kv/code_pages.h"
#include "quant/kv/int8_tail.h"
#define NIBBLE_ISA generic
#define NIBBLE_RUNS_HERE true
namespace nibble::cpu::NIBBLE_ISA {
#include "kernels/cpu/dot_generic.h"
#include "kernels/cpu/vec_generic.h"
}  // namespace nibble::cpu::NIBBLE_ISA
#include "kernels/cpu/all.inl"
