// SPDX-License-Identifier: Apache-2.0
// One thin wrapper per Hopper (sm_90a) instruction. No policy lives here: the callers decide who waits for
// whom.
#pragma once
#include <cuda.h>  // CUtensorMap (types only, nothing of libcuda is linked)

#include <cstdint>

namespace nibble::hopper {

#define NIBBLE_DEVICE __device__ __forceinline__

// Shared-memory instructions take 32-bit shared-window addresses, not generic pointers.
NIBBLE_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A shared address that stays in a register: ptxas would rather compute it from special registers again in
// every round of a loop.
NIBBLE_DEVICE uint32_t kept(uint32_t address) { return __shfl_sync(~0u, address, threadIdx.x % 32); }
NIBBLE_DEVICE uint4 shared_load4(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
NIBBLE_DEVICE uint32_t shared_load(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

// ---- mbarrier: a phase ends when `count` arrivals came and every announced byte landed
NIBBLE_DEVICE void barrier_init(uint64_t* bar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// Makes barrier_init visible to the copy engine and to the other blocks of the cluster.
NIBBLE_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
NIBBLE_DEVICE void barrier_arrive(uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// Without a branch.
NIBBLE_DEVICE void barrier_arrive_if(uint32_t bar, bool condition) {
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %1, 0;\n @p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(bar),
      "r"(int(condition))
      : "memory");
}
NIBBLE_DEVICE void barrier_arrive_if(uint64_t* bar, bool condition) {
  barrier_arrive_if(shared_address(bar), condition);
}
// Arrives on the barrier at the same shared offset in block `rank` of this cluster (own rank allowed). It
// hands back memory that wgmma has finished reading, so it orders no writes: adding .release.cluster would
// put a device-wide memory barrier in front of every arrival (seen in the machine code; the version that had
// it ran at 942 TOP/s, the next, with a new epilogue too, at 1624).
NIBBLE_DEVICE void barrier_arrive_at(uint64_t* bar, uint32_t rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(bar)),
      "r"(rank)
      : "memory");
}
// Arrives once and announces `bytes` that copies will deliver in this phase.
NIBBLE_DEVICE void barrier_arrive_expect(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
// True once the phase of this parity is over; suspends the thread for a short while when it is not.
NIBBLE_DEVICE bool barrier_try_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}
NIBBLE_DEVICE bool barrier_try_wait(uint64_t* bar, uint32_t parity) {
  return barrier_try_wait(shared_address(bar), parity);
}
// A fresh barrier is in phase 0: waiting for parity 1 on it returns at once (a ring's producer starts so).
NIBBLE_DEVICE void barrier_wait(uint32_t bar, uint32_t parity) {
  while (!barrier_try_wait(bar, parity)) {
  }
}
NIBBLE_DEVICE void barrier_wait(uint64_t* bar, uint32_t parity) {
  while (!barrier_try_wait(bar, parity)) {
  }
}

// ---- copy engine (TMA)
NIBBLE_DEVICE void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Loads the box whose first element is (column, row), in elements; outside the tensor it writes zeros, and
// those count as delivered bytes. One thread issues it. `map` must be a __grid_constant__ kernel parameter.
NIBBLE_DEVICE void tma_load_2d(void* dst, const CUtensorMap* map, uint64_t* bar, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(shared_address(dst)),
      "l"(map), "r"(shared_address(bar)), "r"(column), "r"(row)
      : "memory");
}
// The same box to the same shared offset in every block of `mask`, counted on each block's own barrier.
NIBBLE_DEVICE void tma_load_2d_multicast(void* dst, const CUtensorMap* map, uint64_t* bar, int column,
                                         int row, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(dst)),
      "l"(map), "r"(shared_address(bar)), "h"(mask), "r"(column), "r"(row)
      : "memory");
}
// Contiguous bytes, a multiple of 16, both ends 16-byte aligned; no tensor map needed.
NIBBLE_DEVICE void bulk_load(void* dst, const void* src, uint32_t bytes, uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(dst)),
      "l"(src), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
// Each thread that wrote shared memory with ordinary stores runs this before the barrier after which wgmma or
// TMA reads.
NIBBLE_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- clusters, named barriers, registers
NIBBLE_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// 16 bytes at the shared offset of `p` in block `rank` of this cluster.
NIBBLE_DEVICE int4 cluster_load(const void* p, uint32_t rank) {
  int4 v;
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %4, %5;\n"
      " ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [remote];\n}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
  return v;
}
NIBBLE_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Ids 1..15 (0 is __syncthreads); `threads` counts both those that sync and those that only arrive.
NIBBLE_DEVICE void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
NIBBLE_DEVICE void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// All warps of a warpgroup run it; a multiple of 8 in 24..256. Needs __launch_bounds__(threads, 1).
template <int kRegisters>
NIBBLE_DEVICE void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
NIBBLE_DEVICE void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- programmatic dependent launch: a kernel launched so may start before the one ahead of it has ended
NIBBLE_DEVICE void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
NIBBLE_DEVICE void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- elementwise
NIBBLE_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
NIBBLE_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Four floats to four e4m3 bytes, a in the lowest; round to nearest even, saturating at +-448. (The
// instruction puts its first source in the high byte.)
NIBBLE_DEVICE uint32_t to_e4m3x4(float a, float b, float c, float d) {
  uint32_t packed;
  asm("{\n .reg .b16 lo, hi;\n cvt.rn.satfinite.e4m3x2.f32 lo, %2, %1;\n cvt.rn.satfinite.e4m3x2.f32 hi, %4, "
      "%3;\n"
      " mov.b32 %0, {lo, hi};\n}"
      : "=r"(packed)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return packed;
}

// Transposes an 8x8 matrix of 16-bit values held one register per lane: lane l gives row l/4, columns 2(l%4)
// and +1.
NIBBLE_DEVICE uint32_t transpose_8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// ---- wgmma: D[64][N] (+)= A[64][K] * B[N][K]^T, asynchronous, issued by the 128 threads of a warpgroup

// Before the first wgmma, and again after touching its registers.
NIBBLE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
NIBBLE_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending committed groups of this warp are unfinished.
template <int kPending>
NIBBLE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads or writes of these registers across this point (put it after
// wgmma_wait).
template <int kCount>
NIBBLE_DEVICE void pin(int32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int kRows, int kCount>
NIBBLE_DEVICE void pin(uint32_t (&d)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows * kCount; ++i) asm volatile("" : "+r"(d[i / kCount][i % kCount])::"memory");
}
template <int kCount>
NIBBLE_DEVICE void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Operand lists: %0.. are the accumulators, so the operands after them are numbered from their count.
#define NIBBLE_L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NIBBLE_L16 NIBBLE_L8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NIBBLE_L32 \
  NIBBLE_L8 ",%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NIBBLE_L64                                                                                     \
  NIBBLE_L32                                                                                           \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%" \
  "56,"                                                                                                \
  "%57,%58,%59,%60,%61,%62,%63"
#define NIBBLE_L128                                                                                     \
  NIBBLE_L64                                                                                            \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%"  \
  "88,"                                                                                                 \
  "%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110," \
  "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define NIBBLE_L36 NIBBLE_L32 ",%32,%33,%34,%35"
#define NIBBLE_L68 NIBBLE_L64 ",%64,%65,%66,%67"
#define NIBBLE_D8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define NIBBLE_D16(c, i) NIBBLE_D8(c, i), NIBBLE_D8(c, i + 8)
#define NIBBLE_D32(c, i) NIBBLE_D8(c, i), NIBBLE_D8(c, i + 8), NIBBLE_D8(c, i + 16), NIBBLE_D8(c, i + 24)
#define NIBBLE_D64(c, i) NIBBLE_D32(c, i), NIBBLE_D32(c, i + 32)
#define NIBBLE_D36(c, i) NIBBLE_D32(c, i), c(d[i + 32]), c(d[i + 33]), c(d[i + 34]), c(d[i + 35])
#define NIBBLE_D68(c, i) NIBBLE_D64(c, i), c(d[i + 64]), c(d[i + 65]), c(d[i + 66]), c(d[i + 67])
#define NIBBLE_D128(c, i) NIBBLE_D64(c, i), NIBBLE_D64(c, i + 64)

// SS: both operands by descriptor. RS: A in four registers per thread, B by descriptor. accumulate == 0
// overwrites D.
#define NIBBLE_WGMMA(name, type, c, count, shape, kinds, tail, pa, pa1, pa2, pa3, pb_rs, pk_ss, pk_rs) \
  NIBBLE_DEVICE void name##_ss(type(&d)[count], uint64_t a, uint64_t b, int accumulate) {              \
    asm volatile("{\n .reg .pred keep;\n setp.ne.b32 keep, %" #pk_ss                                   \
                 ", 0;\n wgmma.mma_async.sync.aligned." shape "." kinds " {" NIBBLE_L##count           \
                 "}, %" #pa ", %" #pa1 ", keep" tail##_SS ";\n}"                                       \
                 : NIBBLE_D##count(c, 0)                                                               \
                 : "l"(a), "l"(b), "r"(accumulate));                                                   \
  }                                                                                                    \
  NIBBLE_DEVICE void name##_rs(type(&d)[count], const uint32_t(&a)[4], uint64_t b, int accumulate) {   \
    asm volatile("{\n .reg .pred keep;\n setp.ne.b32 keep, %" #pk_rs                                   \
                 ", 0;\n wgmma.mma_async.sync.aligned." shape "." kinds " {" NIBBLE_L##count           \
                 "}, {%" #pa ",%" #pa1 ",%" #pa2 ",%" #pa3 "}, %" #pb_rs ", keep" tail##_RS ";\n}"     \
                 : NIBBLE_D##count(c, 0)                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));               \
  }
#define NIBBLE_S8_SS ""
#define NIBBLE_S8_RS ""
#define NIBBLE_E4_SS ", 1, 1"
#define NIBBLE_E4_RS ", 1, 1"
#define NIBBLE_BF_SS ", 1, 1, 0, 0"  // both K-major
#define NIBBLE_BF_RS ", 1, 1, 0"
#define NIBBLE_BT_SS ", 1, 1, 0, 1"  // B MN-major (its N dimension is contiguous in memory)
#define NIBBLE_BT_RS ", 1, 1, 1"
#define NIBBLE_INT(x) "+r"(x)
#define NIBBLE_FLT(x) "+f"(x)
// The accumulator array's length (N/2 registers per thread) picks the shape: 8 -> n16, 16 -> n32, 32 -> n64,
// 64 -> n128, 128 -> n256 (36 -> n72 and 68 -> n136 for e4m3: 64 or 128 channels and a column of ones, which
// adds up P).
#define NIBBLE_WGMMA_SHAPES(name, type, c, k, kinds, tail)                              \
  NIBBLE_WGMMA(name, type, c, 8, "m64n16" k, kinds, tail, 8, 9, 10, 11, 12, 10, 13)     \
  NIBBLE_WGMMA(name, type, c, 16, "m64n32" k, kinds, tail, 16, 17, 18, 19, 20, 18, 21)  \
  NIBBLE_WGMMA(name, type, c, 32, "m64n64" k, kinds, tail, 32, 33, 34, 35, 36, 34, 37)  \
  NIBBLE_WGMMA(name, type, c, 64, "m64n128" k, kinds, tail, 64, 65, 66, 67, 68, 66, 69) \
  NIBBLE_WGMMA(name, type, c, 128, "m64n256" k, kinds, tail, 128, 129, 130, 131, 132, 130, 133)
NIBBLE_WGMMA_SHAPES(wgmma_s8, int32_t, NIBBLE_INT, "k32", "s32.s8.s8", NIBBLE_S8)
NIBBLE_WGMMA_SHAPES(wgmma_u8s8, int32_t, NIBBLE_INT, "k32", "s32.u8.s8", NIBBLE_S8)
NIBBLE_WGMMA_SHAPES(wgmma_e4m3, float, NIBBLE_FLT, "k32", "f32.e4m3.e4m3", NIBBLE_E4)
NIBBLE_WGMMA(wgmma_e4m3, float, NIBBLE_FLT, 36, "m64n72k32", "f32.e4m3.e4m3", NIBBLE_E4, 36, 37, 38, 39, 40,
             38, 41)
NIBBLE_WGMMA(wgmma_e4m3, float, NIBBLE_FLT, 68, "m64n136k32", "f32.e4m3.e4m3", NIBBLE_E4, 68, 69, 70, 71, 72,
             70, 73)
NIBBLE_WGMMA_SHAPES(wgmma_bf16, float, NIBBLE_FLT, "k16", "f32.bf16.bf16", NIBBLE_BF)
NIBBLE_WGMMA_SHAPES(wgmma_bf16_bt, float, NIBBLE_FLT, "k16", "f32.bf16.bf16", NIBBLE_BT)

}  // namespace nibble::hopper
