// SPDX-License-Identifier: Apache-2.0
// Integer matmuls on the GPU against kernels/ref: to the bit, for f32 and bf16 results.
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "base/half.h"
#include "bench/gpu/linear_problem.h"
#include "kernels/ref/linear_int.h"
#include "kernels/ref/quantize_rows.h"
#include "quant/weight/storage.h"

namespace nibble::gpu {
namespace {

using cuda::Real;
using weight::Storage;

struct Case {
  Storage storage;
  int n, k, rows;
  Real type = Real::kF32;
  bool bias = false, accumulate = false, extreme = false;
  cuda::LinearPlan plan = {};
  uint32_t seed = 1;
};

std::string NameOf(const Case& c) {
  return fmt::format("linear/{} {}x{}x{} {}{}{}{} tile {} split {} depth {} seed {}", weight::Name(c.storage),
                     c.n, c.k, c.rows, c.type == Real::kF32 ? "f32" : "bf16", c.bias ? " bias" : "",
                     c.accumulate ? " accumulate" : "", c.extreme ? " extreme" : "", c.plan.tokens,
                     c.plan.split, c.plan.depth, c.seed);
}

// As ref::LinearInt, with the weights decoded once.
void FastReference(const LinearArgs& a) {
  std::vector<int32_t> w(size_t(a.w.k));
  for (int n = 0; n < a.w.n; ++n) {
    for (int k = 0; k < a.w.k; ++k) w[size_t(k)] = ref::IntWeight(a.w, n, k);
    for (int m = 0; m < a.rows; ++m) {
      int32_t sum = 0;
      for (int k = 0; k < a.w.k; ++k) sum += w[size_t(k)] * a.xq[int64_t{m} * a.w.k + k];
      float* y = a.y + m * a.y_stride + n;
      float value = float(sum) * (a.w.scale[n] * a.x_scale[m]);
      if (a.bias != nullptr) value += a.bias[n];
      *y = a.accumulate ? value + *y : value;
    }
  }
}

void RunCase(Checks* checks, const Case& c, bool definition) {
  if (!checks->Wanted(NameOf(c))) return;
  const StoredWeight stored(c.storage, c.n, c.k, c.seed, c.extreme);
  const DeviceWeight weight(stored);
  std::vector<std::byte> host(cuda::LinearBytes(c.storage, c.n, c.k));
  cuda::PackLinearHost(stored.view, host.data());
  checks->Equal(NameOf(c) + ": packed", host == weight.memory().Host());

  const int stride = c.n + 8;
  std::vector<int8_t> x(size_t(c.rows) * c.k);
  std::vector<float> scale(size_t(c.rows)), bias(size_t(c.n)), y(size_t(c.rows) * stride);
  std::vector<int32_t> row_sum(size_t(c.rows));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = int8_t(c.extreme ? (Mix(uint32_t(i), 7) & 1 ? 127 : -127) : int(Mix(uint32_t(i), 7) % 255) - 127);
    row_sum[i / size_t(c.k)] += x[i];
  }
  for (size_t i = 0; i < scale.size(); ++i) scale[i] = 0.01f + 0.001f * float(Mix(uint32_t(i), 8) & 255);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 100 * Normal(uint32_t(i), 9);
  for (size_t i = 0; i < y.size(); ++i) y[i] = Bf16ToFloat(FloatToBf16(300 * Normal(uint32_t(i), 10)));

  // The row before and the one after must stay as they are: y has a margin of NaN on both sides.
  const size_t margin = size_t(stride), width = c.type == Real::kF32 ? 4 : 2;
  std::vector<std::byte> old((y.size() + 2 * margin) * width, std::byte{0xFF});
  for (size_t i = 0; i < y.size(); ++i) {
    const uint16_t b = FloatToBf16(y[i]);
    memcpy(old.data() + (margin + i) * width, width == 4 ? static_cast<const void*>(&y[i]) : &b, width);
  }
  const Buffer<int8_t> dx(x);
  const Buffer<float> dscale(scale), dbias(bias);
  const Buffer<int32_t> dsum(row_sum);
  Buffer<std::byte> dy(old);
  cuda::LinearIntArgs args{weight.packed(),
                           dx.data(),
                           dscale.data(),
                           dsum.data(),
                           c.bias ? dbias.data() : nullptr,
                           dy.data() + margin * width,
                           c.type,
                           stride,
                           c.rows,
                           c.accumulate,
                           c.seed % 2 == 0,
                           c.plan};
  Require(cuda::LinearInt(args, nullptr));
  Require(cudaDeviceSynchronize(), NameOf(c).c_str());
  const auto got = dy.Host();
  for (int repeat = 0; repeat < 2; ++repeat) {
    dy.Set(old);
    Require(cuda::LinearInt(args, nullptr));
    checks->Equal(NameOf(c) + ": repeats", got == dy.Host());
  }

  std::vector<std::byte> memory(weight::PackedBytes(stored.view, weight::LayoutFor(c.storage, false)) + 64);
  std::byte* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  LinearArgs ref{};
  ref.w = weight::Pack(stored.view, weight::LayoutFor(c.storage, false), aligned);
  ref.xq = x.data();
  ref.x_scale = scale.data();
  ref.bias = c.bias ? bias.data() : nullptr;
  ref.y = y.data();
  ref.y_stride = stride;
  ref.rows = c.rows;
  ref.panel_end = (c.n + weight::kPanel - 1) / weight::kPanel;
  ref.accumulate = c.accumulate;
  definition ? ref::LinearInt(ref) : FastReference(ref);
  std::vector<std::byte> want = old;
  for (size_t i = 0; i < y.size(); ++i) {
    const uint16_t b = FloatToBf16(y[i]);
    memcpy(want.data() + (margin + i) * width, width == 4 ? static_cast<const void*>(&y[i]) : &b, width);
  }
  checks->Equal(NameOf(c), got == want);
  if (got == want) return;
  int shown = 0;
  for (size_t i = 0; i < y.size() && shown < 4; ++i) {
    if (memcmp(&got[(margin + i) * width], &want[(margin + i) * width], width) == 0) continue;
    float g = 0;
    uint16_t b = 0;
    memcpy(width == 4 ? static_cast<void*>(&g) : &b, &got[(margin + i) * width], width);
    fmt::print("  row {} output {}: {} for {}\n", i / size_t(stride), i % size_t(stride),
               width == 4 ? g : Bf16ToFloat(b), y[i]);
    ++shown;
  }
}

void CheckRows(Checks* checks, int rows, int k, Real type, uint32_t seed) {
  const std::string name =
      fmt::format("linear/quantize {}x{} {}", rows, k, type == Real::kF32 ? "f32" : "bf16");
  if (!checks->Wanted(name)) return;
  std::vector<float> x(size_t(rows) * k);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = Normal(uint32_t(i), seed);
    const size_t row = i / size_t(k);
    if (row == 1) x[i] = 0;
    if (row == 2 && i % size_t(k) == 5) x[i] = INFINITY;
    if (row == 3) x[i] *= 1e-37f;
    if (row == 4) x[i] *= 1e37f;
    if (type == Real::kBF16) x[i] = Bf16ToFloat(FloatToBf16(x[i]));
  }
  std::vector<uint16_t> half(x.size());
  for (size_t i = 0; i < x.size(); ++i) half[i] = FloatToBf16(x[i]);
  const Buffer<float> dx(x);
  const Buffer<uint16_t> dhalf(half);
  const Buffer<int8_t> q(x.size());
  const Buffer<float> scale(static_cast<size_t>(rows));
  const Buffer<int32_t> sum(static_cast<size_t>(rows));
  Require(cuda::QuantizeRows({type == Real::kF32 ? static_cast<const void*>(dx.data()) : dhalf.data(), type,
                              q.data(), scale.data(), sum.data(), k, rows, k},
                             nullptr));
  Require(cudaDeviceSynchronize(), name.c_str());
  const int groups = (k + weight::kGroup - 1) / weight::kGroup;
  std::vector<int8_t> want(x.size());
  std::vector<float> want_scale(size_t(rows), 0.0f);
  std::vector<int32_t> group_sum(size_t(rows) * groups), want_sum(size_t(rows), 0);
  ref::QuantizeRows({x.data(), want.data(), want_scale.data(), group_sum.data(), k, rows, k});
  for (size_t i = 0; i < group_sum.size(); ++i) want_sum[i / size_t(groups)] += group_sum[i];
  checks->Equal(name, q.Host() == want);
  checks->Equal(name + ": sums", sum.Host() == want_sum);
  const auto got_scale = scale.Host();
  bool same = true;
  for (size_t i = 0; i < got_scale.size(); ++i)
    same = same && (std::isnan(want_scale[i]) ? std::isnan(got_scale[i])
                                              : FloatToBits(got_scale[i]) == FloatToBits(want_scale[i]));
  checks->Equal(name + ": scales", same);
}

void CheckRefusals(Checks* checks) {
  if (!checks->Wanted("linear/refused")) return;
  const auto refused = [&](const char* what, Storage storage, int n, int k, int rows, cuda::LinearPlan plan) {
    cuda::LinearIntArgs args{};
    args.w = cuda::LinearWeightAt(storage, n, k, nullptr);
    args.rows = rows;
    args.y_stride = n;
    args.plan = plan;
    checks->Equal(std::string("linear/refused: ") + what, !cuda::LinearInt(args, nullptr).ok());
  };
  refused("k", Storage::kW4A8Group, 64, 192, 1, {});
  refused("k of 16", Storage::kW8A8, 64, 136, 1, {});
  refused("n", Storage::kW8A8, 60, 128, 1, {});
  refused("rows", Storage::kW8A8, 64, 128, 0, {});
  refused("split", Storage::kW8A8, 64, 128, 1, {16, 2});
  using Plan = cuda::LinearPlan;
  refused("few of 8 bits", Storage::kW8A8, 64, 128, 1, {8, 1, Plan::kFew, 4});
  refused("few of 17", Storage::kW4A8Group, 64, 128, 17, {16, 1, Plan::kFew, 4});
  refused("few of depth 5", Storage::kW4A8Group, 64, 128, 1, {8, 1, Plan::kFew, 5});
  refused("storage", Storage::kF32, 64, 128, 1, {});
}

}  // namespace

void CheckLinear(Checks* checks) {
  CheckRefusals(checks);
  for (const Real type : {Real::kF32, Real::kBF16})
    for (const int k : {16, 48, 1024, 4096, 14336}) CheckRows(checks, 7, k, type, uint32_t(k));
  for (const Storage s : {Storage::kW4A8Group, Storage::kW4A8Channel})
    for (const int rows : {1, 2, 7, 8, 9, 15, 16})
      for (const int n : {8, 264, 2344})
        for (const int depth : {3, 4, 6, 8})
          RunCase(checks,
                  {s,
                   n,
                   n == 264 ? 2048
                   : n == 8 ? 128
                            : 384,
                   rows,
                   rows % 2 ? Real::kF32 : Real::kBF16,
                   rows % 3 == 0,
                   rows % 4 < 2,
                   rows == 7,
                   {rows <= 8 ? 8 : 16, 1, cuda::LinearPlan::kFew, depth},
                   uint32_t(rows + depth)},
                  false);
  for (const Storage s : kLinearStorages) {
    for (const int tokens : {16, 32, 64, 128})  // every tile with every number of parts
      for (int split = 1; split <= 8; ++split)
        RunCase(checks,
                {s,
                 320,
                 1024 + 128 * split,
                 tokens + split * 3,
                 split % 2 ? Real::kF32 : Real::kBF16,
                 split % 3 == 0,
                 split % 4 < 2,
                 split == 5,
                 {tokens, split},
                 uint32_t(split)},
                split == 3 && tokens == 16);
    RunCase(checks, {s, 64, 128, 1, Real::kF32, true, true, true}, true);
    RunCase(checks, {s, 34048, 512, 270, Real::kBF16, false, true, false, {128, 1}, 2},
            false);  // many rounds
    RunCase(checks, {s, 34048, 512, 260, Real::kF32, true, false, false, {64, 1}, 3}, false);
  }
  for (uint32_t i = 0; i < 210; ++i) {
    const Storage s = kLinearStorages[i % 3];
    const int step = s == Storage::kW4A8Group ? 128 : 16;
    RunCase(checks,
            {s,
             8 * int(1 + Mix(i, 1) % 80),
             step * int(1 + Mix(i, 2) % uint32_t(1536 / step)),
             i < 70 ? int(i) + 1 : int(1 + Mix(i, 3) % 300),
             Mix(i, 4) & 1 ? Real::kF32 : Real::kBF16,
             bool(Mix(i, 5) & 1),
             bool(Mix(i, 6) & 1),
             i % 16 == 0,
             {},
             i + 100},
            i % 30 == 0);
  }
}

}  // namespace nibble::gpu
