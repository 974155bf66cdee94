// SPDX-License-Identifier: Apache-2.0
// One problem of decode attention: its pages on host and device, and what the definition says of it.
#pragma once
#include <string>
#include <vector>

#include "bench/gpu/support.h"
#include "kernels/cuda/attention_decode.h"
#include "quant/kv/qaq.h"
#include "quant/kv/registry.h"

namespace nibble::gpu {

struct DecodeShape {
  kv::CodecId codec;
  int head_dim = 128, kv_heads = 2, group = 4, rows = 1, window = 0, chunk_pages = cuda::kDecodeChunkPages;
  std::vector<int> lengths;
  uint32_t seed = 1;
  std::string Name() const;
};

// K or V of all entries. Pages lie in the pool in an order of their own; pages and rows nobody wrote are NaN.
struct DecodeCache {
  std::vector<std::byte> pool, open;
  int64_t head_stride = 0, open_head_stride = 0;
};

struct DecodeProblem {
  explicit DecodeProblem(const DecodeShape&);
  int RowsOf(int entry) const { return row_begin[size_t(entry) + 1] - row_begin[size_t(entry)]; }
  int Sealed(int entry) const { return (shape.lengths[size_t(entry)] - 1) / kv::kPageTokens; }
  // out [rows, heads, head_dim] and ln of the sum of exp(score) [rows, heads], in double.
  void Reference(std::vector<double>& out, std::vector<double>& lse) const;

  DecodeShape shape;
  DecodeCache k, v;
  std::vector<int32_t> table, open_index, row_begin;
  std::vector<uint16_t> q;
  int max_pages = 0;
  float scale = 0;

 private:
  void Fill(DecodeCache&, uint32_t seed);
  void ReferenceOf(int entry, int head, double* out, double* lse) const;
};

// A problem on the device.
class DecodeOnDevice {
 public:
  explicit DecodeOnDevice(const DecodeProblem&);
  cuda::Launch Run(cudaStream_t stream = nullptr) { return cuda::AttentionDecode(args_, stream); }
  std::vector<float> Out() const;
  std::vector<float> Lse() const { return lse_.Host(); }
  const cuda::DecodeArgs& args() const { return args_; }
  std::vector<uint16_t> Bytes() const { return out_.Host(); }

 private:
  Buffer<std::byte> k_, v_, k_open_, v_open_;
  Buffer<int32_t> table_, open_index_, lengths_, row_begin_;
  Buffer<uint16_t> q_, out_;
  Buffer<float> lse_;
  cuda::DecodeArgs args_{};
  Buffer<std::byte> workspace_;
};

// A page that QAQ's EncodePage made: reads so many planes, and outliers or none.
void SetQaqPage(std::byte* page, int width, bool outliers);

// 0 .. pages - 1 in random order.
std::vector<int32_t> ShuffledTable(int64_t pages);

constexpr int64_t RoundUp16(int64_t x) { return (x + 15) / 16 * 16; }

}  // namespace nibble::gpu
