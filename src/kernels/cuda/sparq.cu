// SPDX-License-Identifier: Apache-2.0
// The two kernels of SparQ decode, checks of the arguments and the launches.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sparq_attend.cuh"
#include "kernels/cuda/sparq_rank_f16.cuh"

namespace nibble::cuda {
namespace {

using namespace sparq;

__device__ __forceinline__ void LoadQueries(const DecodeArgs& a, const Plan& plan, const Row& row,
                                            float* to) {
  const auto* q =
      reinterpret_cast<const __nv_bfloat16*>(a.q) + row.at * a.q_stride + row.head * row.group * row.dim;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < plan.heads * row.dim; i += kThreads)
    to[i] = i < row.group * row.dim ? __bfloat162float(q[i]) : 0.0f;
}

// What all that ranks a tile begins with. Returns the number of channels; 0: nothing is left to do.
__device__ __forceinline__ int PrepareTile(const SparqDecodeArgs& a, const Plan& plan, const Row& row,
                                           RankShared* s, char* memory) {
  const int page = int(blockIdx.x) * kTilePages;
  if (!row.present || page > row.own || page + kTilePages <= row.first_page) return 0;
  LetSelectionStart();
  if (a.chosen != nullptr) ClearChosen(a, row);
  if (row.all) return 0;
  Carve(s, memory, plan.heads, row.dim);
  LoadQueries(a.cache, plan, row, s->q);
  __syncthreads();
  OrderChannels(row, *s);
  const int r = AdaptiveR(row, *s, a.sparq);
  ChooseQueries(row, *s, plan, r);
  if (row.own < page + kTilePages) RankOpen(a.cache, row, *s, plan.heads, r);
  return r;
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    RankKernelF16(const __grid_constant__ SparqDecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char memory[];
  const Row row(a);
  const int lane = int(threadIdx.x % 32);
  const int page = int(blockIdx.x) * kTilePages + int(threadIdx.x / 32) * kPagesOfWarp + lane;
  int table = 0;  // of lane l: the place of the warp's page l, read before the length is known
  if (lane < kPagesOfWarp && page < a.cache.max_pages)
    table = a.cache.page_table[int64_t{row.entry} * a.cache.max_pages + page];
  RankShared s;
  const int r = PrepareTile(a, plan, row, &s, memory);
  if (r == 0) return;
  MakeOperand(row, s, r);
  RankTileF16<kWide>(a, plan, row, s, table, r);
  KeepLevels(plan, row, s);
}

__global__ void __launch_bounds__(kThreads, 2)
    RankKernel(const __grid_constant__ SparqDecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char memory[];
  const Row row(a);
  RankShared s;
  const int r = PrepareTile(a, plan, row, &s, memory);
  if (r == 0) return;
  const LaneTokens tokens(a, row);
  if (a.sparq.copy == KeyCopy::kInt8) RankTile<KeyCopy::kInt8>(a, plan, row, s, tokens, r);
  if (a.sparq.copy == KeyCopy::kInt4) RankTile<KeyCopy::kInt4>(a, plan, row, s, tokens, r);
  KeepLevels(plan, row, s);
}

template <int kChunks>
__global__ void __launch_bounds__(kThreads, kChunks == 1 ? 3 : 2)
    SelectKernel(const __grid_constant__ SparqDecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) char memory[];
  const Row row(a);
  if (!row.present) return;  // as do the other blocks of the cluster
  const Share share(row);
  Shared s;
  Carve(&s, memory, plan, row.dim);
  if (plan.keys != nullptr) s.keys = plan.keys + (row.index * share.blocks + share.rank) * plan.share;
  LoadQueries(a.cache, plan, row, s.q);
  ClearCounts(s.counts);
  if (threadIdx.x == 0) s.scalars[0] = 0;
  const bool mean = plan.mean && !row.all;
  if (mean) SumValues(a, row, share, s);
  WaitForRanking();
  uint64_t least = 0;
  if (!row.all) {
    FindLevels(plan, row, s);
    __syncthreads();
    const Bins bins(a.sparq);
    MakeKeys(plan, row, share, s, a.sparq, bins);
    least = FindThreshold(share, s, bins, a.sparq.k);
  }
  const int count = ListTokens(row, share, s, least);
  if (mean) WeighList(plan, row, s, count);
  if (a.chosen != nullptr) WriteChosen(a, row, s, count);
  __syncthreads();
#pragma unroll 1
  for (int h0 = 0; h0 < row.group; h0 += kHeads) AttendList<kChunks>(a.cache, plan, row, s, h0, count);
  ClusterSync();
  WriteOutputs(a.cache, plan, row, share, s);
  ClusterSync();  // no block leaves while another reads from it
}

constexpr int kMostKeys = 12 * 1024;  // of a block in shared memory

int Blocks(const SparqDecodeArgs& a) { return a.blocks != 0 ? a.blocks : HasClusters() ? 8 : 1; }

// Bytes of the parts of the workspace, one after the other.
struct Workspace {
  int64_t logits, levels, keys;
};

Plan MakePlan(const SparqDecodeArgs& a, Workspace* space) {
  const DecodeArgs& c = a.cache;
  const int group = c.heads / c.kv_heads, dealt = kDealt * kMostBlocks;
  Plan plan{};
  plan.heads = (group + kHeads - 1) / kHeads * kHeads;
  plan.tokens = (c.max_pages + 1) * kPage;
  plan.tiles = (c.max_pages + kTilePages) / kTilePages;
  plan.share = ((plan.tokens + dealt - 1) / dealt + 1) * dealt / Blocks(a);
  plan.list = min(a.sparq.k, plan.share);
  plan.mean = a.sparq.mean == Reallocation::kMean || (a.sparq.mean == Reallocation::kAuto && group == 1);
  plan.scale = c.scale * kLog2e;
  const int64_t rows = int64_t{c.batch} * c.rows * c.kv_heads;
  const auto aligned = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
  space->logits = aligned(rows * group * plan.tokens * 4);
  space->levels = aligned(rows * group * plan.tiles * 8);
  space->keys = plan.share > kMostKeys ? rows * Blocks(a) * plan.share * 4 : 0;
  char* at = static_cast<char*>(c.workspace);
  plan.logits = reinterpret_cast<float*>(at);
  plan.levels = reinterpret_cast<float2*>(at + space->logits);
  if (space->keys > 0) plan.keys = reinterpret_cast<uint32_t*>(at + space->logits + space->levels);
  return plan;
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

Launch RunRank(const SparqDecodeArgs& a, const Plan& plan, Stream stream) {
  RankShared s;
  const int bytes = Carve(&s, nullptr, plan.heads, a.cache.head_dim);
  const auto kernel = a.sparq.copy != KeyCopy::kF16 ? RankKernel
                      : plan.heads > 8              ? RankKernelF16<true>
                                                    : RankKernelF16<false>;
  kernel<<<dim3(unsigned(plan.tiles), unsigned(a.cache.kv_heads), unsigned(a.cache.batch * a.cache.rows)),
           kThreads, size_t(bytes), stream>>>(a, plan);
  return Launched("sparq: ranking");
}

template <int kChunks>
Launch RunSelect(const SparqDecodeArgs& a, const Plan& plan, Stream stream) {
  const auto kernel = SelectKernel<kChunks>;
  Shared s;
  const int bytes = Carve(&s, nullptr, plan, a.cache.head_dim);
  static const cudaError_t allowed = [&] {
    const cudaError_t e = AllowShared(kernel, HasClusters() ? 227 * 1024 : 99 * 1024);
    if (e != cudaSuccess || !HasClusters()) return e;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }();
  if (allowed != cudaSuccess) return {int(allowed), "sparq: this GPU has too little shared memory"};
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(Blocks(a)), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(unsigned(Blocks(a)), unsigned(a.cache.kv_heads), unsigned(a.cache.batch * a.cache.rows));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !HasClusters() ? 0 : Blocks(a) > 1 ? 2 : 1;
  if (const cudaError_t e = cudaLaunchKernelEx(&config, kernel, a, plan))
    return {int(e), "sparq: the launch"};
  return Launched("sparq: selection");
}

}  // namespace

int64_t SparqWorkspaceBytes(const SparqDecodeArgs& a) {
  Workspace space;
  MakePlan(a, &space);
  return space.logits + space.levels + space.keys;
}

Launch SparqDecode(const SparqDecodeArgs& a, Stream stream) {
  if (const char* rule = BrokenRule(a); rule != nullptr) return Refused(rule);
  Workspace space;
  const Plan plan = MakePlan(a, &space);
  if (const Launch ranking = RunRank(a, plan, stream); !ranking.ok()) return ranking;
  return a.cache.head_dim > 128 ? RunSelect<2>(a, plan, stream) : RunSelect<1>(a, plan, stream);
}

}  // namespace nibble::cuda
