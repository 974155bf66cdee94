// SPDX-License-Identifier: Apache-2.0
// Checks of decode attention: every codec, head size, group, number of rows, window and page remainder
// against kernels/ref; the same bytes again, alone, in a batch and with other rows; NaN in unused memory.
#include <fmt/format.h>

#include <cmath>

#include "base/half.h"
#include "bench/gpu/decode_case.h"

namespace nibble::gpu {
namespace {

using kv::CodecId;
constexpr CodecId kCodecs[] = {CodecId::kF16,           CodecId::kBF16,    CodecId::kInt8Token,
                               CodecId::kInt4Token,     CodecId::kFlashQ4, CodecId::kFlashQ2,
                               CodecId::kFlashQ2Search, CodecId::kQaq};

// Of the greatest output: half a unit of bf16 in the last place (2^-8 of the value) and 6e-4 for f16 weights
// and queries.
constexpr double kTolerance = 4.5e-3;
// Of the greatest |lse| (about 8): scores are exact products in f32 sums, except that flashq rounds query x
// step to f16.
constexpr double kLseTolerance = 1e-3;

struct Error {  // relative, in the L2 norm
  double ours = 0, rounding = 0, norm = 0;
  void Add(const std::vector<float>& got, const std::vector<double>& want) {
    for (size_t i = 0; i < want.size(); ++i) {
      const double rounded = double(Bf16ToFloat(FloatToBf16(float(want[i]))));
      ours += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
      rounding += (rounded - want[i]) * (rounded - want[i]);
      norm += want[i] * want[i];
    }
  }
};

void CheckOne(Checks* checks, const DecodeShape& shape, Error* error = nullptr) {
  const std::string name = shape.Name();
  if (!checks->Wanted(name)) return;
  const DecodeProblem problem(shape);
  DecodeOnDevice device(problem);
  Require(device.Run());
  Require(cudaDeviceSynchronize(), name.c_str());
  std::vector<double> out, lse;
  problem.Reference(out, lse);
  checks->Compare(name, device.Out(), out, kTolerance);
  checks->Compare(name + " lse", device.Lse(), lse, kLseTolerance);
  const std::vector<uint16_t> bytes = device.Bytes();
  Require(device.Run());
  checks->Equal(name + " repeated", device.Bytes() == bytes);
  if (error != nullptr) error->Add(device.Out(), out);
}

// Every remainder of a page, lengths 1 .. 700, five at a time.
void CheckLengths(Checks* checks, CodecId codec) {
  Error error;
  std::vector<int> lengths;
  for (int r = 0; r < 70; ++r) {
    lengths.push_back(r % 64 + 1 + 64 * (r * 7 % 10));
    if (lengths.size() < 5) continue;
    CheckOne(checks, {.codec = codec, .kv_heads = 1, .lengths = lengths, .seed = uint32_t(r)}, &error);
    lengths.clear();
  }
  if (error.norm > 0)
    fmt::print("{}: relative error {:.2e}, of which rounding to bf16 {:.2e}\n", kv::Get(codec).name,
               std::sqrt(error.ours / error.norm), std::sqrt(error.rounding / error.norm));
}

void CheckShapes(Checks* checks, CodecId codec) {
  for (const int dim : {64, 80, 96, 128, 256}) {
    for (const int group : {1, 2, 4, 7, 8, 16})
      CheckOne(checks,
               {.codec = codec, .head_dim = dim, .group = group, .chunk_pages = 2, .lengths = {1, 64, 330}});
    for (const int rows : {2, 3, 4, 8})
      CheckOne(checks,
               {.codec = codec, .head_dim = dim, .rows = rows, .chunk_pages = 3, .lengths = {5, 129, 700}});
    for (const int window : {1, 17, 64, 100, 257})
      CheckOne(checks, {.codec = codec,
                        .head_dim = dim,
                        .rows = 3,
                        .window = window,
                        .chunk_pages = 2,
                        .lengths = {3, 131, 192, 519}});
  }
  CheckOne(checks,
           {.codec = codec, .kv_heads = 1, .group = 16, .rows = 8, .chunk_pages = 1, .lengths = {72, 700}});
  CheckOne(checks, {.codec = codec, .kv_heads = 1, .lengths = {4500}});
}

// A sequence's bytes alone, in a batch, and row by row (as far as a page goes).
void CheckIndependence(Checks* checks, CodecId codec) {
  const std::string name = fmt::format("decode {} independence", kv::Get(codec).name);
  if (!checks->Wanted(name)) return;
  // The data of an entry depends on its index, so the others change: lengths, rows, number.
  const auto bytes = [&](std::vector<int> lengths, int rows) {
    const DecodeProblem problem(
        {.codec = codec, .rows = rows, .chunk_pages = 3, .lengths = std::move(lengths)});
    DecodeOnDevice device(problem);
    Require(device.Run());
    const std::vector<uint16_t> all = device.Bytes();
    const size_t row = size_t(problem.shape.kv_heads * problem.shape.group * problem.shape.head_dim);
    return std::vector<uint16_t>(all.begin(), all.begin() + long(row));  // the first row of entry 0
  };
  const std::vector<uint16_t> alone = bytes({500}, 1);
  checks->Equal(name + ": batch", bytes({500, 1, 699, 64}, 1) == alone);
  checks->Equal(name + ": longer table", bytes({500, 3000}, 1) == alone);
  checks->Equal(name + ": rows", bytes({503}, 4) == alone);
  checks->Equal(name + ": another length differs", bytes({499}, 1) != alone);
}

}  // namespace

void CheckDecode(Checks* checks) {
  for (const CodecId codec : kCodecs) {
    CheckLengths(checks, codec);
    CheckShapes(checks, codec);
    CheckIndependence(checks, codec);
  }
}

}  // namespace nibble::gpu
