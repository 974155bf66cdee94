// SPDX-License-Identifier: Apache-2.0
// What a machine can do at most, measured: rates of register-only loops and the bandwidth of reading.
#pragma once
#include <string>

#include "base/thread_pool.h"

namespace nibble::bench {

// Of all threads of the pool together; operations count multiplications and additions. 0: not known for this
// instruction set.
struct Floors {
  double u4_dot = 0;   // products of 4-bit weights and 8-bit inputs, operations a second
  double s8_dot = 0;   // of 8-bit weights
  double bf16 = 0;     // bf16 products summed in f32
  double f32 = 0;      // fused multiply-adds
  double read = 0;     // bytes a second, from a buffer that no cache holds
  double barrier = 0;  // seconds that handing an empty item to every thread takes
};

// `isa` as in CpuKernels::isa. About two seconds.
Floors MeasureFloors(ThreadPool& pool, const std::string& isa);

}  // namespace nibble::bench
