// SPDX-License-Identifier: Apache-2.0
// Floor 4. The CPU kernels of one ISA as a table of functions (isa/*.cc each export one).
#pragma once
#include "kernels/args.h"

namespace nibble::cpu {

struct CpuKernels {
  const char* isa;  // "generic", "avx2", "avx512"
  bool (*runs_here)();
  void (*linear)(const LinearArgs&);
  void (*quantize_rows)(const QuantizeRowsArgs&);
  void (*embed)(const EmbedArgs&);
  void (*rms_norm)(const NormArgs&);
  void (*rope_table)(const RopeTableArgs&);
  void (*rope)(const RopeArgs&);
  void (*glu)(const GluArgs&);
  void (*kv_write)(const KvWriteArgs&);
  void (*kv_seal)(const KvSealArgs&);
  void (*attention)(const AttentionArgs&);
  void (*log_sum_exp)(const LogSumExpArgs&);
  // The name of the kernel that linear() runs for a layout, e.g. "i4-group/vpdpbusd", for --explain.
  const char* (*linear_name)(weight::Layout, MatmulArith);
  const char* (*attention_name)(kv::CodecId k, kv::CodecId v);
};

}  // namespace nibble::cpu
