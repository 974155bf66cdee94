// SPDX-License-Identifier: Apache-2.0
// Floor 4. Every CPU kernel, once an ISA. The includer names NIBBLE_ISA and NIBBLE_RUNS_HERE and has included
// its vec_*.h and dot_*.h inside namespace nibble::cpu::NIBBLE_ISA. Nothing here may leave a symbol outside
// that namespace: no std templates, no non-inlined shared functions (tools/check_isa.sh).
namespace nibble::cpu::NIBBLE_ISA {
// clang-format off
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/linear_dense.h"
#include "kernels/cpu/linear_int.h"
#include "kernels/cpu/linear_unpacked.h"
#include "kernels/cpu/embed.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/log_sum_exp.h"
#include "kernels/cpu/qaq.h"
#include "kernels/cpu/kv_tiles.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/tail.h"
#include "kernels/cpu/page_rows.h"
#include "kernels/cpu/attention_work.h"
#include "kernels/cpu/attention_codes.h"
#include "kernels/cpu/attention_keys.h"
#include "kernels/cpu/attention_values.h"
#include "kernels/cpu/sas.h"
#include "kernels/cpu/attention_qk.h"
#include "kernels/cpu/attention_pv.h"
#include "kernels/cpu/attention_sealed.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/top_k.h"
#include "kernels/cpu/gather.h"
#include "kernels/cpu/key_copy.h"
#include "kernels/cpu/sparq_rank.h"
#include "kernels/cpu/sparq.h"
#include "kernels/cpu/h2o.h"
#include "kernels/cpu/qaq_weigh.h"
// clang-format on

static void Linear(const LinearArgs& a) {
  if (!weight::IsInteger(a.w.layout)) {
    LinearDense(a);
  } else if (Unpacks(a)) {
    LinearUnpacked(a);
  } else {
    LinearInt(a);
  }
}
static const char* LinearName(weight::Layout layout, MatmulArith arith) {
  return weight::IsInteger(layout) ? LinearIntName(layout) : LinearDenseName(layout, arith);
}
static bool RunsHere() { return NIBBLE_RUNS_HERE; }

#define NIBBLE_STR2(x) #x
#define NIBBLE_STR(x) NIBBLE_STR2(x)
extern const CpuKernels kKernels;
const CpuKernels kKernels{
    .isa = NIBBLE_STR(NIBBLE_ISA),
    .runs_here = &RunsHere,
    .linear = &Linear,
    .quantize_rows = &QuantizeRows,
    .embed = &Embed,
    .rms_norm = &RmsNorm,
    .rope_table = &RopeTable,
    .rope = &Rope,
    .glu = &Glu,
    .kv_write = &KvWrite,
    .kv_seal = &KvSeal,
    .tail_append = &TailAppend,
    .tail_seal = &TailSeal,
    .attention = &Attention,
    .attention_block = &AttentionBlock,
    .key_copy = &MakeKeyCopy,
    .value_sum = &ValueSum,
    .window = &WindowRow,
    .sparq = &Sparq,
    .h2o = &H2o,
    .qaq_weigh = &QaqWeigh,
    .log_sum_exp = &LogSumExp,
    .linear_name = &LinearName,
    .attention_name = &AttentionName,
    .s8_dot_name = kS8DotName,
};
}  // namespace nibble::cpu::NIBBLE_ISA
