// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu/decode_case.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstring>
#include <thread>

#include "base/half.h"
#include "kernels/ref/attention.h"
#include "kernels/ref/attention_tile.h"

namespace nibble::gpu {
namespace {

constexpr int kPage = kv::kPageTokens;

uint16_t ToRaw(DType raw, float x) { return raw == DType::kF16 ? FloatToHalf(x) : FloatToBf16(x); }
float FromRaw(DType raw, uint16_t x) { return raw == DType::kF16 ? HalfToFloat(x) : Bf16ToFloat(x); }

// Channels of unlike size and offset, as keys have them.
float Value(uint32_t token, uint32_t channel, uint32_t seed) {
  const float spread = channel % 16 == 3 ? 3.0f : 1.0f, offset = channel % 16 == 5 ? 2.0f : 0.0f;
  return Normal(token * 1024 + channel, seed) * spread + offset;
}

// Pages of QAQ have all widths, and every third has no outliers.
void EncodePage(const kv::CodecInfo& codec, kv::PageShape shape, const float* rows, uint32_t which,
                std::byte* page) {
  codec.encode_page(shape, rows, page);
  if (codec.id != kv::CodecId::kQaq) return;
  SetQaqPage(page, int(which % 9), which % 3 != 0);
}

}  // namespace

void SetQaqPage(std::byte* page, int width, bool outliers) {
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  h.width = uint8_t(width);
  if (!outliers) h.outliers = 0;
  kv::StoreQaqHeader(page, h);
}

std::vector<int32_t> ShuffledTable(int64_t pages) {
  std::vector<int32_t> table(size_t(pages), 0);
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = int32_t(i);
    std::swap(table[i], table[Mix(uint32_t(i), 9) % (i + 1)]);
  }
  return table;
}

std::string DecodeShape::Name() const {
  return fmt::format("decode {} d{} {}x{} rows {} window {} chunk {} lengths {}", kv::Get(codec).name,
                     head_dim, kv_heads, group, rows, window, chunk_pages, fmt::join(lengths, ","));
}

DecodeProblem::DecodeProblem(const DecodeShape& s) : shape(s), row_begin{0} {
  const int batch = int(s.lengths.size());
  scale = 1.0f / std::sqrt(float(s.head_dim));
  for (int b = 0; b < batch; ++b) {
    max_pages = std::max(max_pages, Sealed(b) + 1);
    row_begin.push_back(row_begin.back() + std::min(s.rows, (s.lengths[size_t(b)] - 1) % kPage + 1));
    open_index.push_back((b + 1) % batch);
  }
  table.assign(size_t(batch * max_pages), -1);
  int page = batch * max_pages;
  for (int b = 0; b < batch; ++b) {
    const int first = s.window > 0 ? std::max(0, s.lengths[size_t(b)] - RowsOf(b) - s.window + 1) / kPage : 0;
    for (int p = first; p < Sealed(b); ++p) table[size_t(b * max_pages + p)] = --page;
  }
  for (size_t i = 0; i < size_t(row_begin.back()) * size_t(s.kv_heads * s.group * s.head_dim); ++i)
    q.push_back(FloatToBf16(1.5f * Normal(uint32_t(i), s.seed * 31 + 5)));
  Fill(k, s.seed * 31 + 1);
  Fill(v, s.seed * 31 + 2);
}

void DecodeProblem::Fill(DecodeCache& side, uint32_t seed) {
  const kv::CodecInfo& codec = kv::Get(shape.codec);
  const kv::PageShape page{shape.head_dim, kPage};
  const int batch = int(shape.lengths.size()), dim = shape.head_dim;
  side.head_stride = RoundUp16(codec.page_bytes(page));
  side.open_head_stride = RoundUp16(int64_t{kPage} * dim * 2);
  side.pool.assign(size_t(batch * max_pages * shape.kv_heads) * size_t(side.head_stride), std::byte{0xFF});
  side.open.assign(size_t(batch * shape.kv_heads) * size_t(side.open_head_stride), std::byte{0xFF});
  std::vector<float> rows(size_t(kPage * dim));
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < shape.kv_heads; ++h)
      for (int p = 0; p <= Sealed(b); ++p) {
        const int tokens = std::min(kPage, shape.lengths[size_t(b)] - p * kPage);
        std::byte* open =
            &side.open[size_t(open_index[size_t(b)] * shape.kv_heads + h) * size_t(side.open_head_stride)];
        for (int i = 0; i < tokens * dim; ++i) {
          const uint32_t token = uint32_t(((b * 8 + h) * 512 + p) * kPage + i / dim);
          const uint16_t raw = ToRaw(codec.raw, Value(token, uint32_t(i % dim), seed));
          rows[size_t(i)] = FromRaw(codec.raw, raw);
          if (p == Sealed(b)) std::memcpy(open + 2 * i, &raw, 2);
        }
        const int32_t at = table[size_t(b * max_pages + p)];
        if (p < Sealed(b) && at >= 0)
          EncodePage(codec, page, rows.data(), uint32_t(p * 5 + h),
                     &side.pool[size_t(at * shape.kv_heads + h) * size_t(side.head_stride)]);
      }
}

void DecodeProblem::ReferenceOf(int entry, int head, double* out, double* lse) const {
  const int dim = shape.head_dim, group = shape.group, rows = RowsOf(entry);
  std::vector<const std::byte*> k_pages, v_pages;
  std::vector<int32_t> seen;
  seen.reserve(size_t(Sealed(entry)) + 1);  // an empty list is a list too: null would be all pages
  for (int p = 0; p < Sealed(entry); ++p) {
    const int32_t at = table[size_t(entry * max_pages + p)];
    if (at >= 0) seen.push_back(p);
    const size_t offset = size_t(std::max(at, 0) * shape.kv_heads + head) * size_t(k.head_stride);
    k_pages.push_back(&k.pool[offset]);
    v_pages.push_back(&v.pool[offset]);
  }
  std::vector<float> query;
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < group * dim; ++i)
      query.push_back(
          Bf16ToFloat(q[size_t((row_begin[size_t(entry)] + r) * shape.kv_heads + head) * size_t(group * dim) +
                        size_t(i)]));
  const size_t open = size_t(open_index[size_t(entry)] * shape.kv_heads + head) * size_t(k.open_head_stride);
  AttentionArgs a{};
  a.q = query.data(), a.q_stride = int64_t{group} * dim;
  a.k_pages = k_pages.data(), a.v_pages = v_pages.data();
  a.page_list = seen.data(), a.list_len = int(seen.size());
  a.k_raw = &k.open[open], a.v_raw = &v.open[open];
  a.position = shape.lengths[size_t(entry)] - rows;
  a.window = shape.window;
  a.rows = rows, a.group = group, a.pages = Sealed(entry);
  a.page = {dim, kPage};
  a.k_codec = a.v_codec = shape.codec;
  a.scale = scale;
  ref::Attention(a, out, nullptr, ref::CodePages::kDecoded);
  const std::vector<ref::Tile> tiles = ref::MakeTiles(a, ref::CodePages::kDecoded);
  for (int i = 0; i < rows * group; ++i) {
    const int64_t last = a.position + i / group, first = a.window > 0 ? last - a.window + 1 : 0;
    double sum = 0;  // scores of these problems are far from the range of exp
    for (const ref::Tile& tile : tiles) {
      const std::vector<double> scores = ref::TileScores(a, tile, a.q + int64_t{i} * dim, i % group);
      for (int t = 0; t < tile.tokens; ++t)
        if (tile.start + t >= first && tile.start + t <= last) sum += std::exp(scores[size_t(t)]);
    }
    lse[i] = std::log(sum);
  }
}

void DecodeProblem::Reference(std::vector<double>& out, std::vector<double>& lse) const {
  const int heads = shape.kv_heads * shape.group, batch = int(shape.lengths.size());
  out.assign(q.size(), 0);
  lse.assign(size_t(row_begin.back() * heads), 0);
  std::vector<std::thread> threads;
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < shape.kv_heads; ++h)
      threads.emplace_back([&, b, h] {
        const int rows = RowsOf(b), group = shape.group, dim = shape.head_dim;
        std::vector<double> o(size_t(rows * group * dim)), l(size_t(rows * group));
        ReferenceOf(b, h, o.data(), l.data());
        for (int i = 0; i < rows * group; ++i) {
          const size_t at =
              size_t(((row_begin[size_t(b)] + i / group) * shape.kv_heads + h) * group + i % group);
          lse[at] = l[size_t(i)];
          for (int d = 0; d < dim; ++d) out[at * size_t(dim) + size_t(d)] = o[size_t(i * dim + d)];
        }
      });
  for (std::thread& t : threads) t.join();
}

DecodeOnDevice::DecodeOnDevice(const DecodeProblem& p)
    : k_(p.k.pool),
      v_(p.v.pool),
      k_open_(p.k.open),
      v_open_(p.v.open),
      table_(p.table),
      open_index_(p.open_index),
      lengths_(std::vector<int32_t>(p.shape.lengths.begin(), p.shape.lengths.end())),
      row_begin_(p.row_begin),
      q_(p.q),
      out_(p.q.size()),
      lse_(p.q.size() / size_t(p.shape.head_dim)),
      args_{.q = q_.data(),
            .out = out_.data(),
            .lse = lse_.data(),
            .k = {p.shape.codec, k_.data(), p.k.head_stride * p.shape.kv_heads, p.k.head_stride,
                  k_open_.data(), p.k.open_head_stride * p.shape.kv_heads, p.k.open_head_stride},
            .v = {p.shape.codec, v_.data(), p.v.head_stride * p.shape.kv_heads, p.v.head_stride,
                  v_open_.data(), p.v.open_head_stride * p.shape.kv_heads, p.v.open_head_stride},
            .page_table = table_.data(),
            .open_index = open_index_.data(),
            .lengths = lengths_.data(),
            .row_begin = row_begin_.data(),
            .q_stride = int64_t{p.shape.kv_heads} * p.shape.group * p.shape.head_dim,
            .out_stride = int64_t{p.shape.kv_heads} * p.shape.group * p.shape.head_dim,
            .batch = int(p.shape.lengths.size()),
            .max_pages = p.max_pages,
            .rows = p.shape.rows,
            .heads = p.shape.kv_heads * p.shape.group,
            .kv_heads = p.shape.kv_heads,
            .head_dim = p.shape.head_dim,
            .window = p.shape.window,
            .scale = p.scale,
            .chunk_pages = p.shape.chunk_pages},
      workspace_(size_t(cuda::DecodeWorkspaceBytes(args_))) {
  Require(cudaMemset(workspace_.data(), 0, workspace_.size()), "cudaMemset");
  args_.workspace = workspace_.data();
}

std::vector<float> DecodeOnDevice::Out() const {
  std::vector<float> out;
  for (const uint16_t x : out_.Host()) out.push_back(Bf16ToFloat(x));
  return out;
}

}  // namespace nibble::gpu
