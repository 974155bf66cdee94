// SPDX-License-Identifier: Apache-2.0
// The kernel of SparQ decode, checks of its arguments and its launch. Nearly all of this code runs once a
// block, so loops over tokens stay rolled.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sparq_attend.cuh"

namespace nibble::cuda {
namespace {

using namespace sparq;

__device__ void LoadRow(const DecodeArgs& a, const Plan& plan, const Row& row, const Shared& s) {
  const auto* q =
      reinterpret_cast<const __nv_bfloat16*>(a.q) + row.at * a.q_stride + row.head * row.group * row.dim;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < plan.heads * row.dim; i += kThreads) {
    s.q[i] = i < row.group * row.dim ? __bfloat162float(q[i]) : 0.0f;
    s.ranker[i] = 0;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < row.slots - row.opens; i += kThreads)
    s.table[i] = a.page_table[int64_t{row.entry} * a.max_pages + row.first_own + i * row.blocks];
  __syncthreads();
}

// Logits, levels and keys of all tokens, and the threshold of those to read.
__device__ Threshold Rank(const SparqDecodeArgs& a, const Plan& plan, const Row& row, const Shared& s) {
  OrderChannels(row, s);
  const int r = AdaptiveR(row, s, a.sparq);
  ChooseQueries(row, s, plan, r);
  RankOpen(a.cache, row, s, plan.heads, r);
  if (a.sparq.copy == KeyCopy::kF16) RankSealed<KeyCopy::kF16>(a, row, s, plan.heads, r);
  if (a.sparq.copy == KeyCopy::kInt8) RankSealed<KeyCopy::kInt8>(a, row, s, plan.heads, r);
  if (a.sparq.copy == KeyCopy::kInt4) RankSealed<KeyCopy::kInt4>(a, row, s, plan.heads, r);
  __syncthreads();
  FindLevels(row, s);
  MakeKeys(row, s, a.sparq);
  return FindThreshold(row, s, a.sparq.k);
}

template <int kChunks>
__global__ void __launch_bounds__(kThreads, kChunks == 1 ? 2 : 1)
    SparqKernel(const __grid_constant__ SparqDecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char memory[];
  const Row row(a);
  if (!row.present) return;  // as do the other blocks of the cluster
  Shared s;
  Carve(&s, memory, plan, row.group, row.dim);
  if (plan.outside != nullptr) {
    const int64_t block = (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    s.logits = plan.outside + block * LogitFloats(row.group, plan.slots);
  }
  s.keys = reinterpret_cast<uint32_t*>(s.logits + row.group * row.Tokens());
  LoadRow(a.cache, plan, row, s);
  if (plan.mean && !row.all) SumValues(a, row, s);
  Threshold threshold;
  if (!row.all) threshold = Rank(a, plan, row, s);
  const int count = ListTokens(row, s, threshold);
  if (plan.mean && !row.all) WeighList(row, s, count);
  if (a.chosen != nullptr) WriteChosen(a, row, s, count);
  __syncthreads();
#pragma unroll 1
  for (int h0 = 0; h0 < row.group; h0 += kHeads) AttendList<kChunks>(a.cache, plan, row, s, h0, count);
  ClusterSync();
  WriteOutputs(a.cache, plan, row, s);
  ClusterSync();  // no block leaves while another reads from it
}

constexpr int kMostShared = 160 * 1024;  // beyond it logits lie outside; what remains of the memory is cache

int Blocks(const SparqDecodeArgs& a) { return a.blocks != 0 ? a.blocks : HasClusters() ? 16 : 1; }

Plan MakePlan(const SparqDecodeArgs& a) {
  const int group = a.cache.heads / a.cache.kv_heads;
  Plan plan{};
  plan.heads = (group + kHeads - 1) / kHeads * kHeads;
  plan.slots = a.cache.max_pages / Blocks(a) + 1;
  plan.list = min(a.sparq.k, plan.slots * kPage);
  plan.mean = a.sparq.mean == Reallocation::kMean || (a.sparq.mean == Reallocation::kAuto && group == 1);
  plan.scale = a.cache.scale * kLog2e;
  plan.outside = static_cast<float*>(a.cache.workspace);
  return plan;
}

// Bytes of a block with the logits inside.
int BytesInside(const SparqDecodeArgs& a, Plan plan) {
  Shared s;
  plan.outside = nullptr;
  return Carve(&s, nullptr, plan, a.cache.heads / a.cache.kv_heads, a.cache.head_dim);
}

bool TakesCodec(kv::CodecId codec) {
  using kv::CodecId;
  return codec == CodecId::kF16 || codec == CodecId::kBF16 || codec == CodecId::kInt8Token ||
         codec == CodecId::kInt4Token || codec == CodecId::kFlashQ4 || codec == CodecId::kFlashQ2 ||
         codec == CodecId::kFlashQ2Search;
}

const char* BrokenCacheRule(const DecodeArgs& a) {
  if (a.batch < 1 || a.rows < 1 || a.rows > 8 || a.batch * int64_t{a.rows} > 65535)
    return "sparq: rows must be 1 .. 8, and batch times rows 1 .. 65535";
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0 || a.heads / a.kv_heads < 1 ||
      a.heads / a.kv_heads > kMostHeads)
    return "sparq: heads must be 1 .. 16 times kv_heads";
  if (a.head_dim < 16 || a.head_dim > 256 || a.head_dim % 16 != 0)
    return "sparq: head_dim must be a multiple of 16 up to 256";
  if (a.max_pages < 0 || a.max_pages >= 1 << 16) return "sparq: max_pages must be below 65536";
  if (a.window < 0) return "sparq: window must not be negative";
  if (!TakesCodec(a.k.codec))
    return "sparq: codecs must be f16, bf16, int8-token, int4-token, flashq4, flashq2 or flashq2-search";
  if (a.k.codec != a.v.codec) return "sparq: K and V must have one codec";
  for (const DecodeSide* side : {&a.k, &a.v})
    if ((side->page_stride | side->head_stride | side->open_stride | side->open_head_stride) % 16 != 0 ||
        (reinterpret_cast<uintptr_t>(side->pool) | reinterpret_cast<uintptr_t>(side->open)) % 16 != 0)
      return "sparq: pages must start at multiples of 16 bytes";
  if (a.lse != nullptr) return "sparq: there is no log-sum-exp of a selection";
  return nullptr;
}

const char* BrokenRule(const SparqDecodeArgs& a) {
  const SparqParams& p = a.sparq;
  if (const char* rule = BrokenCacheRule(a.cache)) return rule;
  if (p.r < 1 || p.r > a.cache.head_dim) return "sparq: r must be 1 .. head_dim";
  if (p.k < 1 || p.k > 8192 || p.local > p.k || p.sinks < 0)
    return "sparq: k must be 1 .. 8192, local at most k";
  if (p.eps > 0) return "sparq: an adaptive k (eps) is not computed on the GPU";
  if (p.mean == Reallocation::kUnselected || p.mean == Reallocation::kBlocks)
    return "sparq: the mean must be off or that of all tokens";
  if ((a.record_stride | a.record_head_stride | a.v_sum | a.k_copy) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(a.records) % 16 != 0)
    return "sparq: records and their sections must start at multiples of 16 bytes";
  if (a.blocks > 1 && !HasClusters()) return "sparq: this GPU has no clusters";
  if (a.blocks != 0 && a.blocks != 1 && a.blocks != 2 && a.blocks != 4 && a.blocks != 8 && a.blocks != 16)
    return "sparq: blocks must be 0, 1, 2, 4, 8 or 16";
  return nullptr;
}

template <int kChunks>
Launch Run(const SparqDecodeArgs& a, const Plan& plan, Stream stream) {
  const auto kernel = SparqKernel<kChunks>;
  Shared s;
  const int bytes = Carve(&s, nullptr, plan, a.cache.heads / a.cache.kv_heads, a.cache.head_dim);
  static const cudaError_t allowed = [&] {
    const cudaError_t e = AllowShared(kernel, HasClusters() ? 227 * 1024 : 99 * 1024);
    if (e != cudaSuccess || !HasClusters()) return e;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }();
  if (allowed != cudaSuccess) return {int(allowed), "sparq: this GPU has too little shared memory"};
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(Blocks(a)), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(unsigned(Blocks(a)), unsigned(a.cache.kv_heads), unsigned(a.cache.batch * a.cache.rows));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = Blocks(a) > 1 ? 1 : 0;
  if (const cudaError_t e = cudaLaunchKernelEx(&config, kernel, a, plan))
    return {int(e), "sparq: the launch"};
  return Launched("sparq");
}

}  // namespace

int64_t SparqWorkspaceBytes(const SparqDecodeArgs& a) {
  const Plan plan = MakePlan(a);
  if (BytesInside(a, plan) <= kMostShared) return 0;
  return int64_t{a.cache.batch} * a.cache.rows * a.cache.kv_heads * Blocks(a) *
         LogitFloats(a.cache.heads / a.cache.kv_heads, plan.slots) * 4;
}

Launch SparqDecode(const SparqDecodeArgs& a, Stream stream) {
  if (const char* rule = BrokenRule(a); rule != nullptr) return Refused(rule);
  Plan plan = MakePlan(a);
  if (SparqWorkspaceBytes(a) == 0) plan.outside = nullptr;
  return a.cache.head_dim > 128 ? Run<2>(a, plan, stream) : Run<1>(a, plan, stream);
}

}  // namespace nibble::cuda
