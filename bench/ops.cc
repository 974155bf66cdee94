// SPDX-License-Identifier: Apache-2.0
// Times the CPU backend's ops at the shapes of a 1B Llama beside what the machine can do at most:
//   ops_bench [-t N] [--filter TEXT] [--rows LIST] [--json FILE]
// Weights rotate among copies that no cache holds together, as the layers of a model do.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "backend/backend.h"
#include "bench/attention_ops.h"
#include "bench/floors.h"
#include "bench/timing.h"
#include "kernels/cpu/kernels.h"
#include "quant/weight/quantize.h"

namespace nibble::bench {
namespace {

using weight::Storage;

constexpr size_t kColdBytes = 256u << 20;  // of weights in rotation

class Ops {
 public:
  Ops(int threads, std::vector<int> rows, std::string filter)
      : rows_(std::move(rows)), filter_(std::move(filter)), backend_(Must(MakeCpuBackend(threads))) {
    const int most = *std::max_element(rows_.begin(), rows_.end());
    const Status status = backend_->Reserve(most, kMaxWidth, 32, 8, 64);
    NIBBLE_CHECK(status.ok(), status.message().c_str());
    x_ = Random(int64_t{most} * kMaxWidth);
    y_ = Random(int64_t{most} * kMaxWidth);
    ThreadPool pool(backend_->Info().threads);
    floors_ = MeasureFloors(pool, Must(cpu::ChooseIsa())->isa);
  }

  void Run();
  void Print() const;
  nlohmann::ordered_json ToJson() const;

 private:
  static constexpr int kMaxWidth = 32000;
  bool Wanted(const std::string& op) const { return op.find(filter_) != std::string::npos; }
  Tensor Random(int64_t values);
  Tensor Slice(const Tensor& t, int rows, int width) const {
    return Tensor::Dense(t.data, DType::kF32, Device::kCpu, {rows, width});
  }
  void Linear(Storage storage, int n, int k);
  void RowOp(const std::string& op, int width, double bytes_a_value, const std::function<void(int)>& f);
  double DotRate(Storage s) const {
    if (s == Storage::kW8A8) return floors_.s8_dot;
    if (s == Storage::kBF16) return floors_.bf16;
    return floors_.u4_dot;
  }

  std::vector<int> rows_;
  std::string filter_;
  std::unique_ptr<Backend> backend_;
  Floors floors_;
  Tensor x_, y_;
  std::vector<Timing> timings_;
};

Tensor Ops::Random(int64_t values) {
  const Buffer b = Must(backend_->Alloc(size_t(values) * sizeof(float)));
  const Tensor t = Tensor::Dense(b.data, DType::kF32, Device::kCpu, {values});
  std::mt19937 random(1);
  for (int64_t i = 0; i < values; ++i) t.as<float>()[i] = float(random() >> 8) * 0x1p-23f - 1;
  return t;
}

// A random weight of the storage; bf16 from halves of the same bytes would hold NaN, so it takes floats.
weight::QuantizedWeight MakeWeight(Storage storage, int n, int k) {
  std::mt19937 random(2);
  if (storage == Storage::kBF16) {
    weight::QuantizedWeight w{.storage = storage, .n = n, .k = k};
    w.codes.resize(size_t(n) * size_t(k) * 2);
    for (size_t i = 0; i < w.codes.size(); i += 2) {
      const uint16_t bits = FloatToBf16(float(random() >> 8) * 0x1p-23f - 1);
      memcpy(&w.codes[i], &bits, 2);
    }
    return w;
  }
  auto w = Must(weight::AllocateQuantized(n, k, storage));
  for (uint8_t& c : w.codes) c = uint8_t(random());
  for (uint16_t& s : w.scale) s = FloatToHalf(0.01f);
  for (uint8_t& s : w.group_scale) s = uint8_t(1 + random() % 12);
  for (uint8_t& z : w.zero) z = uint8_t(6 + random() % 4);
  return w;
}

void Ops::Linear(Storage storage, int n, int k) {
  const std::string op = fmt::format("linear {}", weight::Name(storage));
  if (!Wanted(op)) return;
  const weight::QuantizedWeight stored = MakeWeight(storage, n, k);
  const MatmulArith arith = storage == Storage::kBF16 ? MatmulArith::kBF16 : MatmulArith::kF32;
  std::vector<weight::PackedWeight> copies;
  for (size_t bytes = 0; bytes < kColdBytes; bytes += copies.back().bytes)
    copies.push_back(Must(backend_->Pack(stored.View(), arith)));
  for (int rows : rows_) {
    Timing t{.op = op, .shape = fmt::format("{} x {}", n, k), .rows = rows};
    t.seconds = Median([&](int run) {
      const LinearOut out{&copies[size_t(run) % copies.size()], nullptr, Slice(y_, rows, n)};
      backend_->Linear(Slice(x_, rows, k), {&out, 1}, arith);
    });
    t.bytes = double(copies[0].bytes) + 4.0 * rows * (n + k);
    t.operations = 2.0 * rows * n * k;
    t.floor = t.bytes / floors_.read;
    if (DotRate(storage) > 0) t.floor = std::max(t.floor, t.operations / DotRate(storage));
    timings_.push_back(t);
  }
}

void Ops::RowOp(const std::string& op, int width, double bytes_a_value, const std::function<void(int)>& f) {
  if (!Wanted(op)) return;
  for (int rows : rows_) {
    Timing t{.op = op, .shape = fmt::format("{}", width), .rows = rows};
    t.seconds = Median([&](int) { f(rows); });
    t.bytes = bytes_a_value * rows * width;
    timings_.push_back(t);  // such data are in a cache: no floor
  }
}

void Ops::Run() {
  for (Storage s : {Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8, Storage::kBF16})
    for (auto [n, k] : {std::pair(2048, 2048), {8192, 2048}, {2048, 8192}}) Linear(s, n, k);
  Linear(Storage::kW8A8, 32000, 2048);  // a head
  RowOp("rms_norm", 2048, 8, [&](int rows) {
    backend_->Norm(Slice(x_, rows, 2048), x_.as<const float>(), 1e-5f, Slice(y_, rows, 2048));
  });
  RowOp("glu silu", 8192, 12, [&](int rows) {
    backend_->Glu(Slice(x_, rows, 8192), Slice(x_, rows, 8192), Activation::kSilu, Slice(y_, rows, 8192));
  });
  for (const AttentionCase& c : AttentionCases())
    if (Wanted((c.rows > 1 ? "prefill " : "decode ") + c.recipe))
      timings_.push_back(TimeAttention(*backend_, floors_, c));
}

void Ops::Print() const {
  std::printf("%s: %.0f GB/s read", backend_->Info().name.c_str(), floors_.read * 1e-9);
  if (floors_.u4_dot > 0)
    std::printf(", GOP/s %.0f u4 x s8, %.0f s8 x s8, %.0f bf16, %.0f f32", floors_.u4_dot * 1e-9,
                floors_.s8_dot * 1e-9, floors_.bf16 * 1e-9, floors_.f32 * 1e-9);
  std::printf("; %.2f us to hand out and gather work\n\n", floors_.barrier * 1e6);
  std::printf("%-34s %-20s %5s %11s %8s %8s %9s\n", "op", "shape", "rows", "us", "GB/s", "GOP/s", "of floor");
  for (const Timing& t : timings_) {
    std::printf("%-34s %-20s %5d %11.1f %8.1f %8.1f", t.op.c_str(), t.shape.c_str(), t.rows, t.seconds * 1e6,
                t.bytes / t.seconds * 1e-9, t.operations / t.seconds * 1e-9);
    if (t.floor > 0) std::printf(" %8.0f%%", 100 * t.floor / t.seconds);
    std::printf("\n");
  }
}

nlohmann::ordered_json Ops::ToJson() const {
  nlohmann::ordered_json json;
  json["device"] = backend_->Info().name;
  json["floors"] = {{"read_bytes", floors_.read}, {"u4_dot", floors_.u4_dot},
                    {"s8_dot", floors_.s8_dot},   {"bf16", floors_.bf16},
                    {"f32", floors_.f32},         {"barrier_seconds", floors_.barrier}};
  json["rows"] = nlohmann::ordered_json::array();
  for (const Timing& t : timings_)
    json["rows"].push_back({{"op", t.op},
                            {"shape", t.shape},
                            {"rows", t.rows},
                            {"seconds", t.seconds},
                            {"bytes", t.bytes},
                            {"operations", t.operations},
                            {"floor_seconds", t.floor}});
  return json;
}

int Main(int argc, char** argv) {
  CLI::App app{"Times the ops of the CPU backend beside what the machine can do at most."};
  int threads = 0;
  std::vector<int> rows{1, 4, 8, 64, 512};
  std::string filter, file;
  app.add_option("-t,--threads", threads, "Threads; 0: all")->check(CLI::Range(0, 1024));
  app.add_option("--rows", rows, "Rows of the input")->delimiter(',')->check(CLI::Range(1, 4096));
  app.add_option("--filter", filter, "Only ops whose name holds this text");
  app.add_option("--json", file, "Write the figures to a file, too");
  CLI11_PARSE(app, argc, argv);
  Ops ops(threads, rows, filter);
  ops.Run();
  ops.Print();
  if (file.empty()) return 0;
  std::ofstream out(file);
  if (out << ops.ToJson().dump(1) << "\n" << std::flush) return 0;
  fmt::print(stderr, "ops_bench: {}: cannot be written\n", file);
  return 1;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  try {
    return nibble::bench::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fputs(e.what(), stderr);
    return 1;
  }
}
