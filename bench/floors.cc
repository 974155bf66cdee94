// SPDX-License-Identifier: Apache-2.0
// Rates of register-only loops, in assembler: a compiler folds what has no effect.
#include "bench/floors.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/check.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int kRepeats = 40, kReadRepeats = 10;
constexpr int64_t kLoops = 1 << 18;        // a millisecond or so a call
constexpr size_t kReadBytes = 512u << 20;  // many times any cache in use

// Runs `loop` on every thread at once; `operations` are those of one thread. The best of kRepeats: whatever
// disturbs a floor makes it lower.
double Rate(ThreadPool& pool, double operations, void (*loop)()) {
  if (loop == nullptr) return 0;
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = Clock::now();
    pool.Run(pool.threads(), [&](int64_t, int) { loop(); });
    best = std::max(best, operations * pool.threads() / Since(start));
  }
  return best;
}

struct Loop {
  void (*run)() = nullptr;
  double operations = 0;
};
struct Loops {
  Loop u4_dot, s8_dot, bf16, f32;
};

#if defined(__x86_64__)
// Twelve chains, each an accumulator register of its own, which hides the latency of every instruction here;
// the products of 16-bit sums go through six registers more. Registers 0 and 1 hold the factors, whose values
// do not matter: none of these instructions is slower for any integer, and the floats start at 0.
#define NIBBLE_CHAINS(one) \
  one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11) one(12) one(13)
#define NIBBLE_CHAIN_PAIRS(one) one(2, 8) one(3, 9) one(4, 10) one(5, 11) one(6, 12) one(7, 13)
constexpr int kChains = 12;

#define NIBBLE_U4(product, sum)               \
  "vpmaddubsw %%ymm0, %%ymm1, %%ymm" #product \
  "\n\t"                                      \
  "vpaddw %%ymm" #product ", %%ymm" #sum ", %%ymm" #sum "\n\t"
#define NIBBLE_S8(product, sum)                        \
  "vpmaddubsw %%ymm0, %%ymm1, %%ymm" #product          \
  "\n\t"                                               \
  "vpmaddwd %%ymm0, %%ymm" #product ", %%ymm" #product \
  "\n\t"                                               \
  "vpaddd %%ymm" #product ", %%ymm" #sum ", %%ymm" #sum "\n\t"
#define NIBBLE_FMA_YMM(sum) "vfmadd231ps %%ymm0, %%ymm1, %%ymm" #sum "\n\t"
#define NIBBLE_DOT_ZMM(sum) "vpdpbusd %%zmm0, %%zmm1, %%zmm" #sum "\n\t"
#define NIBBLE_BF16_ZMM(sum) "vdpbf16ps %%zmm0, %%zmm1, %%zmm" #sum "\n\t"
#define NIBBLE_FMA_ZMM(sum) "vfmadd231ps %%zmm0, %%zmm1, %%zmm" #sum "\n\t"

#define NIBBLE_LOOP(name, text)                                                                          \
  void name() {                                                                                          \
    asm volatile("vzeroall" ::: "memory");                                                               \
    for (int64_t i = 0; i < kLoops; ++i)                                                                 \
      asm volatile(text ::                                                                               \
                       : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                         "xmm10", "xmm11", "xmm12", "xmm13");                                            \
    asm volatile("vzeroupper");                                                                          \
  }
NIBBLE_LOOP(U4Ymm, NIBBLE_CHAIN_PAIRS(NIBBLE_U4))
NIBBLE_LOOP(S8Ymm, NIBBLE_CHAIN_PAIRS(NIBBLE_S8))
NIBBLE_LOOP(FmaYmm, NIBBLE_CHAINS(NIBBLE_FMA_YMM))
NIBBLE_LOOP(DotZmm, NIBBLE_CHAINS(NIBBLE_DOT_ZMM))
NIBBLE_LOOP(Bf16Zmm, NIBBLE_CHAINS(NIBBLE_BF16_ZMM))
NIBBLE_LOOP(FmaZmm, NIBBLE_CHAINS(NIBBLE_FMA_ZMM))

Loops LoopsOf(const std::string& isa) {
  constexpr double kEach = 2.0 * kChains * kLoops;  // a multiplication and an addition
  if (isa == "avx2")
    return {{U4Ymm, 16 * kEach}, {S8Ymm, 16 * kEach}, {FmaYmm, 8 * kEach}, {FmaYmm, 8 * kEach}};
  if (isa == "avx512")
    return {{DotZmm, 64 * kEach}, {DotZmm, 64 * kEach}, {Bf16Zmm, 32 * kEach}, {FmaZmm, 16 * kEach}};
  return {};
}
#else
Loops LoopsOf(const std::string&) { return {}; }
#endif

// The sum of a part of the buffer, asking for what lies kAhead words ahead or leaving that to the processor.
template <size_t kAhead>
uint64_t SumWords(const uint64_t* from, size_t words) {
  uint64_t sum[8] = {};
  for (size_t w = 0; w + 8 <= words; w += 8) {
    if constexpr (kAhead > 0) __builtin_prefetch(from + w + kAhead);
    for (size_t lane = 0; lane < 8; ++lane) sum[lane] += from[w + lane];
  }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

using Reader = uint64_t (*)(const uint64_t*, size_t);

#if defined(__x86_64__)
// Loads of 32 bytes, eight at a time, that nothing waits for.
uint64_t LoadWords(const uint64_t* from, size_t words) {
  for (size_t w = 0; w + 32 <= words; w += 32)
    asm volatile(
        "vmovdqu (%0), %%ymm0\n\tvmovdqu 32(%0), %%ymm1\n\tvmovdqu 64(%0), %%ymm2\n\tvmovdqu 96(%0), "
        "%%ymm3\n\t"
        "vmovdqu 128(%0), %%ymm4\n\tvmovdqu 160(%0), %%ymm5\n\tvmovdqu 192(%0), %%ymm6\n\tvmovdqu 224(%0), "
        "%%ymm7"
        :
        : "r"(from + w)
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "memory");
  asm volatile("vzeroupper");
  return from[0];
}
#endif

std::vector<Reader> Readers(const std::string& isa) {
  std::vector<Reader> readers{&SumWords<0>, &SumWords<256>};
#if defined(__x86_64__)
  if (isa != "generic") readers.push_back(&LoadWords);
#endif
  return readers;
}

// Each thread reads a part of the buffer. The best of several ways: without the prefetches a virtual Xeon
// core got 5 GB/s and with them 14, a Zen 4 core 37 and 34; a Zen 5 core 22 with words and 38 with wide
// loads.
double ReadBandwidth(ThreadPool& pool, const std::string& isa) {
  const size_t words = kReadBytes / sizeof(uint64_t), part = words / size_t(pool.threads());
  // In huge pages, as the backend keeps weights.
  void* const memory = mmap(nullptr, kReadBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  NIBBLE_CHECK(memory != MAP_FAILED, "no memory to read");
  (void)madvise(memory, kReadBytes, MADV_HUGEPAGE);
  auto* const buffer = static_cast<uint64_t*>(memory);
  std::vector<uint64_t> sums(size_t(pool.threads()) * 8);  // a cache line each
  pool.Run(pool.threads(),
           [&](int64_t i, int) { std::fill_n(&buffer[size_t(i) * part], part, uint64_t(i)); });
  double best = 0;
  for (int i = 0; i < kReadRepeats; ++i) {
    for (const Reader sum_words : Readers(isa)) {
      const auto start = Clock::now();
      pool.Run(pool.threads(), [&](int64_t item, int) {
        sums[size_t(item) * 8] += sum_words(&buffer[size_t(item) * part], part);
      });
      best = std::max(best, double(part * size_t(pool.threads()) * sizeof(uint64_t)) / Since(start));
    }
  }
  asm volatile("" : : "r"(sums.data()) : "memory");
  munmap(memory, kReadBytes);
  return best;
}

double Barrier(ThreadPool& pool) {
  constexpr int kRuns = 20000;
  double best = 1;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = Clock::now();
    for (int run = 0; run < kRuns; ++run) pool.Run(pool.threads(), [](int64_t, int) {});
    best = std::min(best, Since(start) / kRuns);
  }
  return best;
}

}  // namespace

Floors MeasureFloors(ThreadPool& pool, const std::string& isa) {
  const Loops loops = LoopsOf(isa);
  return {.u4_dot = Rate(pool, loops.u4_dot.operations, loops.u4_dot.run),
          .s8_dot = Rate(pool, loops.s8_dot.operations, loops.s8_dot.run),
          .bf16 = Rate(pool, loops.bf16.operations, loops.bf16.run),
          .f32 = Rate(pool, loops.f32.operations, loops.f32.run),
          .read = ReadBandwidth(pool, isa),
          .barrier = Barrier(pool)};
}

}  // namespace nibble::bench
