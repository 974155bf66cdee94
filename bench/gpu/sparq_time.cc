// SPDX-License-Identifier: Apache-2.0
// Times of SparQ decode beside dense decode over the same f16 pages: 32/8 heads of 128, cold pages in random
// order.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "bench/gpu/decode_case.h"
#include "kernels/cuda/sparq.h"

namespace nibble::gpu {
namespace {

constexpr int kHeads = 32, kKvHeads = 8, kDim = 128, kValues = kDim * kv::kPageTokens;

struct Pools {
  int batch, length, sealed, copies;
  int64_t pages;
  Buffer<std::byte> k, v, tails, records;
  Buffer<int32_t> table, lengths;
  Buffer<uint16_t> q, out;

  static constexpr int64_t kPageBytes = kValues * 2, kRecordBytes = kDim * 4 + kValues * 2;

  Pools(int b, int n)
      : batch(b),
        length(n),
        sealed((n - 1) / kv::kPageTokens),
        copies(ColdCopies(size_t(b) * size_t(n) * kKvHeads * 32 * 2)),
        pages(int64_t{b} * sealed * copies),
        k(size_t(pages * kKvHeads * kPageBytes)),
        v(k.size()),
        tails(size_t(int64_t{2} * b * copies * kKvHeads * kPageBytes)),
        records(size_t(pages * kKvHeads * kRecordBytes)),
        table(ShuffledTable(pages)),
        lengths(std::vector<int32_t>(size_t(b), n)),
        q(size_t(b) * kHeads * kDim),
        out(q.size()) {
    uint32_t seed = 0;
    for (const Buffer<std::byte>* x : {&k, &v, &tails, &records})
      FillNormal(x->data(), x->size(), false, seed += 2);
    std::vector<uint16_t> host;
    for (size_t i = 0; i < q.size(); ++i) host.push_back(FloatToBf16(Normal(uint32_t(i), 4)));
    q.Set(host);
  }
  cuda::DecodeArgs Dense(int copy) const {
    constexpr int64_t kAll = kPageBytes * kKvHeads;
    const std::byte* open = tails.data() + int64_t{2} * copy * batch * kAll;
    return {.q = q.data(),
            .out = out.data(),
            .k = {kv::CodecId::kF16, k.data(), kAll, kPageBytes, open, kAll, kPageBytes},
            .v = {kv::CodecId::kF16, v.data(), kAll, kPageBytes, open + batch * kAll, kAll, kPageBytes},
            .page_table = table.data() + int64_t{copy} * batch * sealed,
            .lengths = lengths.data(),
            .q_stride = kHeads * kDim,
            .out_stride = kHeads * kDim,
            .batch = batch,
            .max_pages = sealed,
            .rows = 1,
            .heads = kHeads,
            .kv_heads = kKvHeads,
            .head_dim = kDim,
            .scale = 1.0f / std::sqrt(float(kDim))};
  }
};

void TimeDense(Times* times, const Pools& p, const std::string& shape) {
  cuda::DecodeArgs args = p.Dense(0);
  const Buffer<std::byte> workspace{size_t(cuda::DecodeWorkspaceBytes(args))};
  Require(cudaMemset(workspace.data(), 0, workspace.size()), "cudaMemset");
  const auto launch = [&](int i, cudaStream_t stream) {
    cuda::DecodeArgs a = p.Dense(i % p.copies);
    a.workspace = workspace.data();
    Require(cuda::AttentionDecode(a, stream));
  };
  const double floor = 4.0 * p.batch * p.length * kKvHeads * kDim / kReadBandwidth;
  times->Add("dense f16", shape, Seconds(std::max(20, p.copies), launch), floor, "4.64 TB/s");
}

void TimeOne(Times* times, const Pools& p, const std::string& shape, KeyCopy copy, int blocks) {
  constexpr const char* kNames[] = {"f16", "int8", "int4"};
  constexpr double kBytes[] = {2, 1 + 2.0 / 32, 0.5 + 2.0 / 32};
  const std::string name = fmt::format("sparq copy {} blocks {}", kNames[int(copy)], blocks);
  if (!times->Wanted(name + " " + shape)) return;
  const auto args = [&](int i) {
    return cuda::SparqDecodeArgs{.cache = p.Dense(i % p.copies),
                                 .records = p.records.data(),
                                 .record_stride = Pools::kRecordBytes * kKvHeads,
                                 .record_head_stride = Pools::kRecordBytes,
                                 .v_sum = 0,
                                 .k_copy = kDim * 4,
                                 .sparq = {.r = 32, .k = 128, .copy = copy},
                                 .blocks = blocks};
  };
  const Buffer<std::byte> workspace{size_t(cuda::SparqWorkspaceBytes(args(0)))};
  const auto launch = [&](int i, cudaStream_t stream) {
    cuda::SparqDecodeArgs a = args(i);
    a.cache.workspace = workspace.data();
    Require(cuda::SparqDecode(a, stream));
  };
  const double bytes = double(p.batch) * kKvHeads * (32.0 * p.length * kBytes[int(copy)] + 128 * 4.0 * kDim);
  times->Add(name, shape, Seconds(std::max(20, p.copies), launch), bytes / kReadBandwidth, "4.64 TB/s");
}

}  // namespace

void TimeSparq(Times* times) {
  for (const auto& [batch, length] : {std::pair{1, 32768}, {4, 32768}, {16, 32768}, {16, 8192}}) {
    const std::string shape =
        fmt::format("{} x {} {}/{} d{} r32 k128", batch, length, kHeads, kKvHeads, kDim);
    if (!times->Wanted("sparq " + shape)) continue;
    const Pools pools(batch, length);
    TimeDense(times, pools, shape);
    for (const KeyCopy copy : {KeyCopy::kF16, KeyCopy::kInt8, KeyCopy::kInt4}) {
      TimeOne(times, pools, shape, copy, 16);
      TimeOne(times, pools, shape, copy, 8);
    }
  }
}

}  // namespace nibble::gpu
