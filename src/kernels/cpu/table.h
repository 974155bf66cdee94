// SPDX-License-Identifier: Apache-2.0
// Floor 4. The CPU kernels of one ISA as a table of functions (isa/*.cc each export one).
#pragma once
#include "kernels/args.h"
#include "kernels/key_copy.h"

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
  void (*tail_append)(const TailAppendArgs&);
  void (*tail_seal)(const TailSealArgs&);
  void (*attention)(const AttentionArgs&);
  // Block number `block` of the sealed pages alone, into `state`. REQUIRES AttendsInBlocks.
  void (*attention_block)(const AttentionArgs&, int block, float* state);
  void (*key_copy)(const KeyCopyArgs&);
  void (*value_sum)(const ValueSumArgs&);
  void (*window)(const WindowArgs&);
  void (*sparq)(const SparqArgs&);
  void (*h2o)(const H2oArgs&);
  // Raises QaqHeader::fresh of V pages that are records of QAQ to what the call's queries gave them.
  void (*qaq_weigh)(const AttentionArgs&, std::byte* const* v_pages);
  void (*log_sum_exp)(const LogSumExpArgs&);
  // The name of the kernel that linear() runs for a layout, e.g. "i4-group/vpdpbusd", for --explain.
  const char* (*linear_name)(weight::Layout, MatmulArith);
  const char* (*attention_name)(kv::CodecId k, kv::CodecId v);
  const char* s8_dot_name;  // what integer products of attention use, e.g. "vpdpbusd"
};

}  // namespace nibble::cpu
