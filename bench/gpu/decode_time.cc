// SPDX-License-Identifier: Apache-2.0
// Times of decode attention: cold pages in random order, one row a sequence.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "bench/gpu/decode_case.h"

namespace nibble::gpu {
namespace {

struct TimedShape {
  kv::CodecId codec;
  int batch, length, heads, kv_heads, head_dim = 128, chunk_pages = cuda::kDecodeChunkPages;
  int width = 0;  // planes of every page of QAQ, without outliers
};

// What is read of a page.
int64_t PageBytes(const TimedShape& s) {
  const kv::PageShape shape{s.head_dim, kv::kPageTokens};
  if (s.codec != kv::CodecId::kQaq) return kv::Get(s.codec).page_bytes(shape);
  return kv::QaqRecordBytes(shape) + int64_t{s.width} * kv::QaqPlaneBytes(shape);
}

// Pages begin at multiples of 32 bytes, the sectors of the L2: at odd multiples of 16 it sends twice the
// bytes.
int64_t StrideOf(int64_t page_bytes) { return (page_bytes + 31) / 32 * 32; }

// A pool of pages that repeat a few hundred encoded ones.
Buffer<std::byte> MakePool(kv::CodecId codec, int head_dim, int64_t pages, uint32_t seed, int width = 0) {
  constexpr int kDistinct = 128;
  const kv::CodecInfo& info = kv::Get(codec);
  const kv::PageShape shape{head_dim, kv::kPageTokens};
  const size_t stride = size_t(StrideOf(info.page_bytes(shape)));
  std::vector<std::byte> host(kDistinct * stride);
  std::vector<float> rows(size_t(kv::kPageTokens * head_dim));
  for (int p = 0; p < kDistinct; ++p) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const float x = Normal(uint32_t(p) * 65536 + uint32_t(i), seed);
      rows[i] = info.raw == DType::kF16 ? HalfToFloat(FloatToHalf(x)) : Bf16ToFloat(FloatToBf16(x));
    }
    info.encode_page(shape, rows.data(), &host[size_t(p) * stride]);
    if (codec == kv::CodecId::kQaq) SetQaqPage(&host[size_t(p) * stride], width, false);
  }
  Buffer<std::byte> pool(size_t(pages) * stride);
  for (size_t at = 0; at < pool.size(); at += host.size())
    Require(cudaMemcpy(pool.data() + at, host.data(), std::min(host.size(), pool.size() - at),
                       cudaMemcpyHostToDevice),
            "upload");
  return pool;
}

void TimeOne(Times* times, const TimedShape& s) {
  const kv::CodecInfo& codec = kv::Get(s.codec);
  const std::string name = fmt::format("decode {}", codec.name);
  std::string shape = fmt::format("{} x {} {}/{} d{}", s.batch, s.length, s.heads, s.kv_heads, s.head_dim);
  if (s.chunk_pages != cuda::kDecodeChunkPages) shape += fmt::format(" chunks of {} pages", s.chunk_pages);
  if (s.codec == kv::CodecId::kQaq) shape += fmt::format(" {} planes", s.width);
  if (!times->Wanted(name + " " + shape)) return;
  const int sealed = (s.length - 1) / kv::kPageTokens, open = s.length - sealed * kv::kPageTokens;
  const int64_t page = PageBytes(s), stride = StrideOf(codec.page_bytes({s.head_dim, kv::kPageTokens}));
  const int64_t bytes = int64_t{2} * s.batch * s.kv_heads * (sealed * page + int64_t{open} * s.head_dim * 2);
  const int copies = ColdCopies(size_t(bytes));
  const int64_t pages = int64_t{s.batch} * sealed;
  const Buffer<std::byte> k = MakePool(s.codec, s.head_dim, pages * copies * s.kv_heads, 1, s.width);
  const Buffer<std::byte> v = MakePool(s.codec, s.head_dim, pages * copies * s.kv_heads, 2, s.width);
  const kv::CodecId raw = codec.raw == DType::kF16 ? kv::CodecId::kF16 : kv::CodecId::kBF16;
  const Buffer<std::byte> tails = MakePool(raw, s.head_dim, int64_t{2} * s.batch * copies * s.kv_heads, 3);
  const Buffer<int32_t> table(ShuffledTable(pages * copies)),
      lengths(std::vector<int32_t>(size_t(s.batch), s.length));
  std::vector<uint16_t> q_host;
  for (int i = 0; i < s.batch * s.heads * s.head_dim; ++i)
    q_host.push_back(FloatToBf16(Normal(uint32_t(i), 4)));
  const Buffer<uint16_t> q(q_host), out(q_host.size());
  const int64_t tail = int64_t{kv::kPageTokens} * s.head_dim * 2;
  cuda::DecodeArgs args{
      .q = q.data(),
      .out = out.data(),
      .k = {s.codec, k.data(), stride * s.kv_heads, stride, tails.data(), tail * s.kv_heads, tail},
      .v = {s.codec, v.data(), stride * s.kv_heads, stride, nullptr, tail * s.kv_heads, tail},
      .page_table = table.data(),
      .lengths = lengths.data(),
      .q_stride = int64_t{s.heads} * s.head_dim,
      .out_stride = int64_t{s.heads} * s.head_dim,
      .batch = s.batch,
      .max_pages = sealed,
      .rows = 1,
      .heads = s.heads,
      .kv_heads = s.kv_heads,
      .head_dim = s.head_dim,
      .scale = 1.0f / std::sqrt(float(s.head_dim)),
      .chunk_pages = s.chunk_pages};
  const Buffer<std::byte> workspace{size_t(cuda::DecodeWorkspaceBytes(args))};
  Require(cudaMemset(workspace.data(), 0, workspace.size()), "cudaMemset");
  args.workspace = workspace.data();
  const auto launch = [&](int i, cudaStream_t stream) {
    cuda::DecodeArgs a = args;
    const int copy = i % copies;
    a.page_table += pages * copy;
    a.k.open = tails.data() + int64_t{2} * copy * s.batch * s.kv_heads * tail;
    a.v.open = a.k.open + int64_t{s.batch} * s.kv_heads * tail;
    Require(cuda::AttentionDecode(a, stream));
  };
  const double seconds = Seconds(std::max(20, copies), launch);
  times->Add(name, shape, seconds, double(bytes) / kReadBandwidth, "4.64 TB/s");
}

}  // namespace

void TimeDecode(Times* times) {
  using kv::CodecId;
  for (const CodecId codec : {CodecId::kInt4Token, CodecId::kFlashQ4, CodecId::kFlashQ2, CodecId::kInt8Token,
                              CodecId::kF16, CodecId::kBF16}) {
    TimeOne(times, {codec, 64, 4096, 32, 8});
    TimeOne(times, {codec, 16, 16384, 32, 8});
    TimeOne(times, {codec, 1, 32768, 32, 8});
    if (codec == CodecId::kBF16) break;
    TimeOne(times, {codec, 64, 1024, 32, 8});
    TimeOne(times, {codec, 16, 4096, 32, 8});
    TimeOne(times, {codec, 1, 4096, 32, 8});
    TimeOne(times, {codec, 16, 4096, 32, 32});
    TimeOne(times, {codec, 64, 4096, 32, 8, 64});
    TimeOne(times, {codec, 64, 4096, 64, 4});  // 16 query heads a KV head
  }
  for (const int width : {2, 3, 4, 6})
    for (const auto& [batch, length] : {std::pair{64, 4096}, {16, 16384}})
      TimeOne(times, {CodecId::kQaq, batch, length, 32, 8, 128, cuda::kDecodeChunkPages, width});
  for (const int chunk_pages : {4, 8})
    for (const auto& [batch, length] : {std::pair{1, 1024}, {1, 4096}, {1, 32768}, {16, 4096}, {64, 4096}})
      TimeOne(times, {CodecId::kInt4Token, batch, length, 32, 8, 128, chunk_pages});
  TimeOne(times, {CodecId::kInt4Token, 1, 1024, 32, 8});
  TimeOne(times, {CodecId::kInt4Token, 64, 4096 + 32, 32, 8});  // an open page as full as it is on average
}

}  // namespace nibble::gpu
