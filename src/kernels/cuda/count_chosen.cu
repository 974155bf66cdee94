// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/count_chosen.h"
#include "kernels/cuda/programmatic.cuh"

namespace nibble::cuda {
namespace {

constexpr int kPage = kv::kPageTokens;

// Of a row and KV head: chosen tokens of sealed pages, pages that have some, chosen tokens of the open page.
struct Chosen {
  int sealed, pages, raw;
};

__device__ Chosen Read(const uint32_t* bits, int first_page, int own) {
  Chosen c{0, 0, 0};
  for (int page = first_page + int(threadIdx.x); page <= own; page += 32) {
    const int count = __popc(bits[2 * page]) + __popc(bits[2 * page + 1]);
    if (page == own) c.raw = count;
    if (page < own) c.sealed += count, c.pages += count > 0;
  }
  return {int(__reduce_add_sync(~0u, unsigned(c.sealed))), int(__reduce_add_sync(~0u, unsigned(c.pages))),
          int(__reduce_add_sync(~0u, unsigned(c.raw)))};
}

__device__ void Add(unsigned long long* to, int64_t n) { atomicAdd(to, static_cast<unsigned long long>(n)); }

// One warp a row and KV head.
__global__ void CountChosenKernel(const __grid_constant__ CountChosenArgs a) {
  ReleaseNext();
  AwaitPrevious();
  const DecodeArgs& cache = a.call.cache;
  const SparqParams& p = a.call.sparq;
  const int entry = int(blockIdx.x) / cache.rows, index = int(blockIdx.x) % cache.rows, dim = cache.head_dim;
  const int begin = cache.row_begin[entry], rows = cache.row_begin[entry + 1] - begin;
  if (index >= rows || cache.lengths[entry] == 0) return;
  const int position = cache.lengths[entry] - rows + index, own = position / kPage;
  const int first = cache.window > 0 ? max(0, position - cache.window + 1) : 0, first_page = first / kPage;
  const int hidden = first - first_page * kPage, seen = position - first + 1;
  const int sealed = (own - first_page) * kPage, raw = position - max(own * kPage, first) + 1;
  const uint32_t* bits =
      a.call.chosen + (int64_t{begin + index} * cache.kv_heads + blockIdx.y) * a.call.chosen_words;
  const Chosen c = Read(bits, first_page, own);
  if (threadIdx.x != 0) return;
  const int n = c.sealed + c.raw;
  int64_t scalars = (2 * int64_t{n} + 2) * dim, bytes = c.sealed * (a.k_bytes.token + a.v_bytes.token) +
                                                        c.pages * (a.k_bytes.shared + a.v_bytes.shared) +
                                                        c.raw * (a.k_bytes.raw + a.v_bytes.raw);
  const bool alone = cache.heads == cache.kv_heads,
             mean = p.mean == Reallocation::kMean || (p.mean == Reallocation::kAuto && alone);
  if (seen > p.k) {
    const int64_t copy_bits = p.copy == KeyCopy::kF16 ? 16 : p.copy == KeyCopy::kInt8 ? 8 : 4;
    scalars += int64_t{p.r} * seen;
    bytes += p.r * (sealed * copy_bits / 8 + (p.copy == KeyCopy::kF16 ? 0 : sealed / 32 * 2) +
                    raw * a.k_bytes.raw / dim);
    if (mean) {
      const int sums = (sealed > 0) + (sealed > 0 && first_page > 0);
      scalars += 2 * dim;
      bytes += int64_t{sums} * dim * 4 + (raw - c.raw) * a.v_bytes.raw +
               (sealed > 0 ? hidden : 0) * a.v_bytes.token;
    }
  }
  Add(&a.counters->rows, 1), Add(&a.counters->tokens, n);
  Add(&a.counters->scalars, scalars), Add(&a.counters->bytes, bytes);
}

}  // namespace

Launch CountChosen(const CountChosenArgs& a, Stream stream) {
  const DecodeArgs& cache = a.call.cache;
  return LaunchEarly("count of chosen tokens", CountChosenKernel,
                     dim3(unsigned(cache.batch * cache.rows), unsigned(cache.kv_heads)), 32, 1, stream, 0, a);
}

}  // namespace nibble::cuda
