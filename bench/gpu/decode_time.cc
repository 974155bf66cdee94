// SPDX-License-Identifier: Apache-2.0
// Times of decode attention: cold pages in random order, one row a sequence.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "bench/gpu/decode_case.h"

namespace nibble::gpu {
namespace {

struct TimedShape {
  kv::CodecId codec;
  int batch, length, heads, kv_heads, head_dim = 128, chunk_pages = cuda::kDecodeChunkPages;
  int width = 0;          // planes of every page of QAQ
  bool outliers = false;  // of QAQ: two a token
};

// What is read of a page.
int64_t PageBytes(const TimedShape& s) {
  const kv::PageShape shape{s.head_dim, kv::kPageTokens};
  if (s.codec != kv::CodecId::kQaq) return kv::Get(s.codec).page_bytes(shape);
  const int outliers = s.outliers ? 2 * kv::Qaq::OutliersEach(shape) * shape.tokens : 0;
  return kv::QaqRecordBytes(shape) + int64_t{s.width} * kv::QaqPlaneBytes(shape) +
         kv::QaqCells(outliers) * kv::kQaqCellBytes;
}

// Pages begin at multiples of 32 bytes, the sectors of the L2: at odd multiples of 16 it sends twice the
// bytes.
int64_t StrideOf(int64_t page_bytes) { return (page_bytes + 31) / 32 * 32; }

// A pool of pages that repeat a few hundred encoded ones.
constexpr int kDistinct = 128;
std::vector<std::byte> EncodedPages(kv::CodecId codec, int head_dim, uint32_t seed) {
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
  }
  return host;
}
void Repeat(std::byte* to, size_t bytes, const std::vector<std::byte>& host) {
  for (size_t at = 0; at < bytes; at += host.size())
    Require(cudaMemcpy(to + at, host.data(), std::min(host.size(), bytes - at), cudaMemcpyHostToDevice),
            "upload");
}
Buffer<std::byte> MakePool(kv::CodecId codec, int head_dim, int64_t pages, uint32_t seed) {
  const std::vector<std::byte> host = EncodedPages(codec, head_dim, seed);
  Buffer<std::byte> pool(size_t(pages) * (host.size() / kDistinct));
  Repeat(pool.data(), pool.size(), host);
  return pool;
}

// QAQ's as a cache has them: records, then all pages' planes, then all pages' cells.
Buffer<std::byte> MakeQaqPool(const TimedShape& s, int64_t pages, uint32_t seed) {
  const kv::PageShape shape{s.head_dim, kv::kPageTokens};
  const std::vector<std::byte> encoded = EncodedPages(kv::CodecId::kQaq, s.head_dim, seed);
  const int64_t stride = int64_t(encoded.size()) / kDistinct, record = kv::QaqRecordBytes(shape);
  const int64_t planes = kv::kQaqPlanes * kv::QaqPlaneBytes(shape);
  const int cells = kv::QaqCells(kv::LoadQaqHeader(encoded.data()).outliers);
  const int64_t planes_at = (pages * record + 255) / 256 * 256, cells_at = planes_at + pages * planes;
  std::vector<std::byte> records(size_t(pages * record)), of_planes, of_cells;
  for (int p = 0; p < kDistinct; ++p) {
    const std::byte* page = &encoded[size_t(p * stride)];
    of_planes.insert(of_planes.end(), page + record, page + record + planes);
    of_cells.insert(of_cells.end(), page + record + planes,
                    page + record + planes + cells * kv::kQaqCellBytes);
  }
  for (int64_t p = 0; p < pages; ++p) {
    std::byte* page = &records[size_t(p * record)];
    std::memcpy(page, &encoded[size_t(p % kDistinct * stride)], size_t(record));
    SetQaqPage(page, s.width, s.outliers);
    kv::QaqHeader h = kv::LoadQaqHeader(page);
    h.planes_at = planes_at - p * record, h.cells_at = cells_at - p * record;
    for (int b = 0; b < kv::kQaqPlanes; ++b) h.plane[b] = uint32_t(p * kv::kQaqPlanes + b);
    h.first_cell = uint32_t(p * cells);
    kv::StoreQaqHeader(page, h);
  }
  Buffer<std::byte> pool(size_t(cells_at + pages * cells * kv::kQaqCellBytes));
  Repeat(pool.data(), records.size(), records);
  Repeat(pool.data() + planes_at, size_t(pages * planes), of_planes);
  Repeat(pool.data() + cells_at, size_t(pages * cells * kv::kQaqCellBytes), of_cells);
  return pool;
}

void TimeOne(Times* times, const TimedShape& s) {
  const kv::CodecInfo& codec = kv::Get(s.codec);
  const std::string name = fmt::format("decode {}", codec.name);
  std::string shape = fmt::format("{} x {} {}/{} d{}", s.batch, s.length, s.heads, s.kv_heads, s.head_dim);
  if (s.chunk_pages != cuda::kDecodeChunkPages) shape += fmt::format(" chunks of {} pages", s.chunk_pages);
  const bool qaq = s.codec == kv::CodecId::kQaq;
  if (qaq) shape += fmt::format(" {} planes{}", s.width, s.outliers ? " outliers" : "");
  if (!times->Wanted(name + " " + shape)) return;
  const int sealed = (s.length - 1) / kv::kPageTokens, open = s.length - sealed * kv::kPageTokens;
  const kv::PageShape page_shape{s.head_dim, kv::kPageTokens};
  const int64_t page = PageBytes(s),
                stride = qaq ? kv::QaqRecordBytes(page_shape) : StrideOf(codec.page_bytes(page_shape));
  const int64_t bytes = int64_t{2} * s.batch * s.kv_heads * (sealed * page + int64_t{open} * s.head_dim * 2);
  const int copies = ColdCopies(size_t(bytes));
  const int64_t pages = int64_t{s.batch} * sealed;
  const auto pool = [&](uint32_t seed) {
    const int64_t count = pages * copies * s.kv_heads;
    return qaq ? MakeQaqPool(s, count, seed) : MakePool(s.codec, s.head_dim, count, seed);
  };
  const Buffer<std::byte> k = pool(1), v = pool(2);
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
      for (const bool outliers : {false, true})
        if (!outliers || width == 4)
          TimeOne(times,
                  {CodecId::kQaq, batch, length, 32, 8, 128, cuda::kDecodeChunkPages, width, outliers});
  TimeOne(times, {CodecId::kQaq, 64, 4096, 32, 8, 64, cuda::kDecodeChunkPages, 4});
  for (const int chunk_pages : {4, 8})
    for (const auto& [batch, length] : {std::pair{1, 1024}, {1, 4096}, {1, 32768}, {16, 4096}, {64, 4096}})
      TimeOne(times, {CodecId::kInt4Token, batch, length, 32, 8, 128, chunk_pages});
  TimeOne(times, {CodecId::kInt4Token, 1, 1024, 32, 8});
  TimeOne(times, {CodecId::kInt4Token, 64, 4096 + 32, 32, 8});  // an open page as full as it is on average
}

}  // namespace nibble::gpu
