// SPDX-License-Identifier: Apache-2.0
// Floor 4. Selecting rows: who does which, a window's list, and H2O, which remembers.
#include "kernels/cuda/select_sparq.cuh"

namespace nibble::cuda {
namespace select {
namespace {

// StreamingLLM's window: the first positions (where the row still sees them) and the newest.
__device__ void WindowRow(const Row& r) {
  const WindowParams& p = r.a.keep;
  int n;
  if (r.position - r.first < p.k) {
    n = ListAll(r);
  } else {
    const int sinks = max(0, p.sinks - int(r.first));
    n = p.k;
    for (int i = int(threadIdx.x); i < n; i += kThreads)
      r.lists.tokens[i] = i < sinks ? int(r.first) + i : int(r.position) - (n - i) + 1;
    __syncthreads();
  }
  Gather(r, n);
  CopyToOut(r);
  Count(r, &SelectCounters::rows, 1);
  CountList(r, n);
}

// Tokens that have received little weight are dropped for good. A token's weight is the sum over the rows so
// far of the mean over the group, prefill included; negative: evicted.
__device__ void H2oRow(const Row& r, bool prefill) {
  constexpr float kEvicted = -1;
  const H2oParams& p = r.a.h2o;
  const int own = r.OwnPage(), first = int(r.first), position = int(r.position);
  const auto weight = [&](int t) -> float& {
    const int page = t / kv::kPageTokens;
    std::byte* record = page == own && r.s.seal_page < 0
                            ? OpenRecord(r.a.kv, r.s.seq, r.head)
                            : PageRecord(r.a.kv, PageAt(r.a.kv, r.s, page), r.head);
    return reinterpret_cast<float*>(record + r.a.h2o_weights)[t % kv::kPageTokens];
  };
  if (threadIdx.x == 0) weight(position) = 0;
  __syncthreads();
  int n = Compact(
      r.shared, position - first + 1, [&](int i) { return !(weight(first + i) < 0); },
      [&](int i, int place) { r.lists.tokens[place] = first + i; });
  const int wanted = p.local < 0 ? p.k / 4 : p.local, local = wanted < 1 ? 1 : wanted;
  if (!prefill && n > p.k) {
    int* list = reinterpret_cast<int*>(r.lists.weights);
    for (int i = int(threadIdx.x); i < n; i += kThreads) {
      const int t = list[i] = r.lists.tokens[i];
      r.lists.keys[i] = t > position - local ? kForcedKey : OrderKey(weight(t));
    }
    __syncthreads();
    TopK(r, n, p.k, 0);  // lists.tokens are places in `list` now, and what goes has a lesser key
    const uint32_t least = r.shared.key;
    for (int i = int(threadIdx.x); i < n; i += kThreads)
      if (r.lists.keys[i] < least) weight(list[i]) = kEvicted;
    n = p.k;
    for (int i = int(threadIdx.x); i < n; i += kThreads) r.lists.tokens[i] = list[r.lists.tokens[i]];
    __syncthreads();
  }
  GatherScores(r, n);
  for (int g = 0; g < r.group; ++g) SoftmaxInPlace(r.shared, r.lists.weights + g * r.lists.capacity, n);
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    float sum = 0;
    for (int g = 0; g < r.group; ++g) sum += r.lists.weights[g * r.lists.capacity + i];
    weight(r.lists.tokens[i]) += sum / float(r.group);
  }
  __syncthreads();
  if (prefill) return;
  GatherValues(r, n);
  CopyToOut(r);
  Count(r, &SelectCounters::rows, 1);
  CountList(r, n);
  const int64_t seen = r.position - r.first + 1;  // weights: read to list what lives, and written
  Count(r, &SelectCounters::scalars, 2 * seen);
  Count(r, &SelectCounters::bytes, (seen + n) * int64_t{sizeof(float)});
}

struct Block {
  const SelectArgs& a;
  Shared& shared;
  float* acc;

  __device__ Row MakeRow(const KvSegment& s, int head, int row) const {
    const int64_t capacity = CapacityOf(a.tokens), position = int64_t{s.position} + row;
    const int group = a.heads / a.kv.kv_heads;
    std::byte* work = a.work + blockIdx.x * ListBytes(capacity, group);
    float* floats = reinterpret_cast<float*>(work);
    const Lists lists{floats, floats + group * capacity,
                      reinterpret_cast<uint32_t*>(floats + 2 * group * capacity),
                      reinterpret_cast<int32_t*>(floats + (2 * group + 1) * capacity), capacity};
    const int64_t first = a.window > 0 && position - a.window + 1 > 0 ? position - a.window + 1 : 0;
    return {a, s, head, row, group, a.kv.page.head_dim, position, first, lists, shared, acc};
  }
};

// A row of the step and KV head an item.
__device__ void RunRows(const Block& b) {
  const SelectArgs& a = b.a;
  for (int64_t item = blockIdx.x; item < int64_t{a.rows} * a.kv.kv_heads; item += gridDim.x) {
    const int at = int(item / a.kv.kv_heads);
    int low = 0, high = a.kv.segment_count;  // the segment of the row
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (a.kv.segments[middle].row <= at ? low : high) = middle;
    }
    const KvSegment s = a.kv.segments[low];
    if (at - s.row < s.dense_rows) continue;
    const Row r = b.MakeRow(s, int(item % a.kv.kv_heads), at - s.row);
    a.kind == SelectKind::kWindow ? WindowRow(r) : SparqRow(r);
    __syncthreads();
  }
}

// A sequence and KV head an item: its rows come one after the other.
__device__ void RunSequences(const Block& b) {
  const SelectArgs& a = b.a;
  for (int item = int(blockIdx.x); item < a.kv.segment_count * a.kv.kv_heads; item += int(gridDim.x)) {
    const int first = item / a.kv.kv_heads, head = item % a.kv.kv_heads, end = SequenceEnd(a.kv, first);
    for (int i = first; i < end; ++i) {
      const KvSegment s = a.kv.segments[i];
      if (s.seal_page >= 0) {  // its record takes over what the open page has gathered
        const float* open = reinterpret_cast<const float*>(OpenRecord(a.kv, s.seq, head) + a.h2o_weights);
        float* page = reinterpret_cast<float*>(PageRecord(a.kv, s.seal_page, head) + a.h2o_weights);
        for (int t = int(threadIdx.x); t < s.position % kv::kPageTokens; t += kThreads) page[t] = open[t];
        __syncthreads();
      }
      for (int row = 0; row < s.rows; ++row) {
        H2oRow(b.MakeRow(s, head, row), row < s.dense_rows);
        __syncthreads();
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) SelectKernel(const __grid_constant__ SelectArgs a) {
  extern __shared__ float tile[];  // [group, head_dim]
  __shared__ Shared shared;
  const Block b{a, shared, tile};
  a.kind == SelectKind::kH2o ? RunSequences(b) : RunRows(b);
}

// One block a sequence and KV head: a page's running sum needs that of the page before.
__global__ void RecordsKernel(PagedKv kv, KeyCopy format, int v_sum, int k_copy) {
  extern __shared__ float tile[];  // [page_tokens, head_dim]
  const int first = int(blockIdx.x), head = int(blockIdx.y), end = SequenceEnd(kv, first),
            dim = kv.page.head_dim;
  for (int n = first; n < end; ++n) {
    const KvSegment s = kv.segments[n];
    if (s.seal_page < 0) continue;
    std::byte* record = PageRecord(kv, s.seal_page, head);
    const std::byte* raw = OpenPage(kv, kv.k, s.raw_slot, head);
    for (int i = int(threadIdx.x); i < dim * (kv::kPageTokens / kCopyGroup); i += int(blockDim.x)) {
      const int d = i % dim, t = i / dim * kCopyGroup;
      float x[kCopyGroup];
      for (int j = 0; j < kCopyGroup; ++j) x[j] = OpenElement(kv, kv.k.raw, raw, t + j, d);
      StoreKeyGroup(format, kv.page, d, t, x, record + k_copy);
    }
    float* sum = reinterpret_cast<float*>(record + v_sum);
    const float* before =
        s.pages > 0 ? reinterpret_cast<const float*>(PageRecord(kv, PageAt(kv, s, s.pages - 1), head) + v_sum)
                    : nullptr;
    const SealedPages v = SealedPagesOf(kv, kv.v, s.seq, head);
    LoadSealed(v.codec, kv.page, v.At(s.seal_page), tile, dim);
    __syncthreads();
    for (int d = int(threadIdx.x); d < dim; d += int(blockDim.x)) {
      float total = before != nullptr ? before[d] : 0.0f;
      for (int t = 0; t < kv::kPageTokens; ++t) total += tile[t * dim + d];
      sum[d] = total;
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace select

int64_t SelectWorkBytes(int64_t tokens, int group) {
  return select::kSlots * select::ListBytes(select::CapacityOf(tokens), group);
}

Launch SelectAttention(const SelectArgs& a, Stream stream) {
  const int group = a.heads / a.kv.kv_heads, shared = group * a.kv.page.head_dim * 4;
  if (a.kv.page.head_dim > select::kMaxDim || group > select::kMaxGroup)
    return Refused("selection: head_dim must be at most 256, heads at most 64 times kv_heads");
  if (const cudaError_t error = AllowShared(&select::SelectKernel, shared); error != cudaSuccess)
    return {int(error), "selection: shared memory"};
  select::SelectKernel<<<select::kSlots, select::kThreads, size_t(shared), stream>>>(a);
  return Launched("selection");
}

Launch SealRecords(const PagedKv& kv, KeyCopy format, int v_sum, int k_copy, Stream stream) {
  const dim3 grid(unsigned(kv.segment_count), unsigned(kv.kv_heads));
  const int shared = kv::kPageTokens * kv.page.head_dim * 4;
  if (const cudaError_t error = AllowShared(&select::RecordsKernel, shared); error != cudaSuccess)
    return {int(error), "records of pages: shared memory"};
  select::RecordsKernel<<<grid, 128, size_t(shared), stream>>>(kv, format, v_sum, k_copy);
  return Launched("records of pages");
}

}  // namespace nibble::cuda
