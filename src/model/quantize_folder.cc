// SPDX-License-Identifier: Apache-2.0
// Floor 7. Quantizing a model folder: plan the tensors, write the weights, copy the rest.
#include "model/quantize_folder.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/folder_writer.h"
#include "base/half.h"
#include "base/printable.h"
#include "base/thread_pool.h"
#include "io/manifest.h"
#include "io/model_path.h"
#include "io/safetensors_writer.h"
#include "io/weights.h"
#include "model/config.h"
#include "quant/weight/quantize.h"

namespace nibble {
namespace {

using weight::Storage;

constexpr int kRowsPerItem = 16;  // rows of one unit of parallel work
constexpr uint64_t kMaxCopy = uint64_t{256} << 20;

constexpr std::array<std::string_view, 7> kLinears = {".self_attn.q_proj.weight", ".self_attn.k_proj.weight",
                                                      ".self_attn.v_proj.weight", ".self_attn.o_proj.weight",
                                                      ".mlp.gate_proj.weight",    ".mlp.up_proj.weight",
                                                      ".mlp.down_proj.weight"};

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool IsLayerLinear(std::string_view name) {
  if (name.substr(0, 13) != "model.layers.") return false;
  for (const std::string_view end : kLinears) {
    if (EndsWith(name, end)) return true;
  }
  return false;
}

bool IsEmbedding(std::string_view name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

// Not carried over: weights in any format, what describes them, and what this run writes itself.
bool IsReplaced(std::string_view name) {
  for (const char* end : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
                          ".gguf", ".onnx", ".h5", ".msgpack"}) {
    if (EndsWith(name, end)) return true;
  }
  return name == "config.json" || name == io::kManifestName;
}

// One input tensor and the tensors it becomes.
struct Job {
  const io::TensorInfo* tensor = nullptr;
  Storage storage = Storage::kF32;  // kF32: copied as it is
  bool quantized() const { return storage != Storage::kF32; }
};

class Quantizer {
 public:
  Quantizer(const std::string& dir, const QuantizeOptions& options)
      : dir_(dir),
        options_(options),
        pool_(options.threads > 0 ? options.threads : AvailableCpus()),
        rows_(static_cast<size_t>(pool_.threads())) {}

  Result<QuantizeReport> Run(const std::string& out);

 private:
  Status Plan();
  Status Declare(const Job& job, std::vector<io::TensorSpec>* specs) const;
  Status WriteTensors(const FolderWriter& folder);
  Status QuantizeTensor(const Job& job, io::SafetensorsWriter* writer);
  Status CopyFiles(const FolderWriter& folder);
  Status WriteConfig(const FolderWriter& folder);
  bool Cancelled() const { return options_.cancel && options_.cancel->load(std::memory_order_relaxed); }

  const std::string& dir_;
  const QuantizeOptions& options_;
  ThreadPool pool_;
  std::vector<std::vector<float>> rows_;  // one buffer a worker
  std::unique_ptr<io::Weights> weights_;
  std::vector<Job> jobs_;
  QuantizeReport report_;
};

// The name of a part beside X.weight: "X.weight" + "_scale".
std::string Part(const io::TensorInfo& t, std::string_view suffix) { return t.name + std::string(suffix); }

Status Quantizer::Plan() {
  NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(dir_));
  if (!config.weights.format.empty()) {
    return Error(Code::kInvalidArgument, "{}: the weights are {} already", dir_, config.weights.format);
  }
  NIBBLE_ASSIGN(weights_, io::Weights::Open(dir_));
  int linears = 0;
  for (const io::TensorInfo& t : weights_->tensors()) {
    Job job{&t, Storage::kF32};
    if (IsLayerLinear(t.name)) {
      job.storage = options_.storage;
      ++linears;
    } else if (options_.int8_embedding && IsEmbedding(t.name)) {
      job.storage = Storage::kW8A8;
    }
    jobs_.push_back(job);
  }
  const int expected = config.layers * static_cast<int>(kLinears.size());
  if (linears == expected) return {};
  return Error(Code::kCorrupt, "{}: {} weights of decoder layers, expected {} for {} layers", dir_, linears,
               expected, config.layers);
}

Status Quantizer::Declare(const Job& job, std::vector<io::TensorSpec>* specs) const {
  const io::TensorInfo& t = *job.tensor;
  if (!job.quantized()) {
    specs->push_back({t.name, t.dtype, t.shape});
    return {};
  }
  const bool is_float =
      t.element == io::Element::kF32 || t.element == io::Element::kF16 || t.element == io::Element::kBF16;
  if (!is_float || t.shape.size() != 2 || t.shape[0] > INT32_MAX || t.shape[1] > INT32_MAX) {
    return Error(Code::kCorrupt, "{}: tensor \"{}\": {} of shape [{}], expected a matrix of F32, F16 or BF16",
                 dir_, Printable(t.name), t.dtype, fmt::join(t.shape, ","));
  }
  if (const Status s = weight::CheckShape(job.storage, t.shape[0], t.shape[1]); !s.ok()) {
    return Error(s.code(), "{}: tensor \"{}\": {}", dir_, Printable(t.name), s.message());
  }
  const int64_t n = t.shape[0], k = t.shape[1];
  specs->push_back({Part(t, "_scale"), "F16", {n}});
  if (job.storage == Storage::kW8A8) {
    specs->push_back({t.name, "I8", {n, k}});
    return {};
  }
  specs->push_back({Part(t, "_packed"), "U8", {n, k / 2}});
  if (job.storage == Storage::kW4A8Channel) {
    specs->push_back({Part(t, "_zero"), "U8", {n}});
    return {};
  }
  specs->push_back({Part(t, "_group_scale"), "U8", {n, k / weight::kGroup}});
  specs->push_back({Part(t, "_group_zero"), "U8", {n, k / weight::kGroup}});
  return {};
}

// Elements [begin, begin + count) as f32, from data that may lie at an odd address.
void ReadFloats(const io::TensorInfo& t, int64_t begin, std::span<float> out) {
  if (t.element == io::Element::kF32) {
    memcpy(out.data(), t.data + begin * 4, out.size() * 4);
    return;
  }
  const bool half = t.element == io::Element::kF16;
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    memcpy(&bits, t.data + (begin + static_cast<int64_t>(i)) * 2, 2);
    out[i] = half ? HalfToFloat(bits) : BitsToFloat(uint32_t{bits} << 16);
  }
}

Status Quantizer::QuantizeTensor(const Job& job, io::SafetensorsWriter* writer) {
  const io::TensorInfo& t = *job.tensor;
  const int n = static_cast<int>(t.shape[0]), k = static_cast<int>(t.shape[1]);
  NIBBLE_ASSIGN(weight::QuantizedWeight q, weight::AllocateQuantized(n, k, job.storage));
  std::mutex mutex;
  Status failure;
  int64_t failed_item = INT64_MAX;
  pool_.Run((n + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int worker) {
    const int begin = static_cast<int>(item) * kRowsPerItem, end = std::min(n, begin + kRowsPerItem);
    std::vector<float>& rows = rows_[static_cast<size_t>(worker)];
    rows.resize(static_cast<size_t>(end - begin) * static_cast<size_t>(k));
    ReadFloats(t, int64_t{begin} * k, rows);
    const Status status = weight::QuantizeRows(rows.data(), begin, end, &q);
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (item < failed_item) failure = status;  // the first in the tensor, whichever thread was first
    failed_item = std::min(failed_item, item);
  });
  NIBBLE_RETURN_IF_ERROR(weights_->CheckUnchanged());
  if (!failure.ok()) {
    return Error(failure.code(), "{}: tensor \"{}\": {}", dir_, Printable(t.name), failure.message());
  }
  const auto put = [&](const std::string& name, const auto& values) {
    return values.empty() ? Status{} : writer->Put(name, std::as_bytes(std::span(values)));
  };
  const bool group = job.storage == Storage::kW4A8Group;
  NIBBLE_RETURN_IF_ERROR(put(job.storage == Storage::kW8A8 ? t.name : Part(t, "_packed"), q.codes));
  NIBBLE_RETURN_IF_ERROR(put(Part(t, "_scale"), q.scale));
  NIBBLE_RETURN_IF_ERROR(put(Part(t, "_group_scale"), q.group_scale));
  return put(Part(t, group ? "_group_zero" : "_zero"), q.zero);
}

Status Quantizer::WriteTensors(const FolderWriter& folder) {
  std::vector<io::TensorSpec> specs;
  int64_t total = 0, done = 0;
  for (const Job& job : jobs_) {
    NIBBLE_RETURN_IF_ERROR(Declare(job, &specs));
    if (job.quantized()) total += job.tensor->shape[0] * job.tensor->shape[1];
  }
  NIBBLE_ASSIGN(FileWriter file, folder.Add("model.safetensors"));
  NIBBLE_ASSIGN(io::SafetensorsWriter writer,
                io::SafetensorsWriter::Create(std::move(file), std::move(specs)));
  for (const Job& job : jobs_) {
    if (Cancelled()) return Status(Code::kCancelled, "cancelled");
    const io::TensorInfo& t = *job.tensor;
    if (job.quantized()) {
      NIBBLE_RETURN_IF_ERROR(QuantizeTensor(job, &writer));
      ++report_.tensors;
      done += t.shape[0] * t.shape[1];
      if (options_.on_progress) options_.on_progress(done, total);
    } else {
      NIBBLE_RETURN_IF_ERROR(writer.Put(t.name, {t.data, static_cast<size_t>(t.bytes)}));
      NIBBLE_RETURN_IF_ERROR(weights_->CheckUnchanged());
    }
    weights_->Release(t);
  }
  return writer.Commit();
}

Status Quantizer::CopyFiles(const FolderWriter& folder) {
  NIBBLE_ASSIGN(const auto names, NamesIn(dir_));
  for (const std::string& name : names) {
    if (IsReplaced(name)) continue;
    const auto path = io::ResolveInModel(dir_, name);
    if (!path.ok()) continue;  // a link to elsewhere is no part of the model
    const auto file = File::Open(*path, File::Links::kRefuse);
    if (!file.ok()) continue;  // a sub-folder, or nothing that can be copied
    if (file->size() > kMaxCopy) {
      return Error(Code::kInvalidArgument, "{}/{}: {} bytes, files beside the weights have at most {}", dir_,
                   name, file->size(), kMaxCopy);
    }
    NIBBLE_ASSIGN(const std::string text, ReadWholeFile(*path, kMaxCopy));
    NIBBLE_ASSIGN(FileWriter copy, folder.Add(name));
    NIBBLE_RETURN_IF_ERROR(copy.Write(text));
    NIBBLE_RETURN_IF_ERROR(copy.Commit());
  }
  return {};
}

// config.json with its keys in their order and quantization_config at the end.
Status Quantizer::WriteConfig(const FolderWriter& folder) {
  NIBBLE_ASSIGN(const std::string path, io::ResolveInModel(dir_, "config.json"));
  NIBBLE_ASSIGN(const std::string text, ReadWholeFile(path, kMaxCopy));
  auto config = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return Error(Code::kCorrupt, "{}: changed while it was read", path);
  nlohmann::ordered_json q = {{"quant_method", "nibble"}, {"format", weight::Name(options_.storage)}};
  if (options_.storage == Storage::kW4A8Group) q["group_size"] = weight::kGroup;
  q["embedding"] = options_.int8_embedding ? "int8" : "none";
  config.erase("quantization_config");  // null, or the plan would have refused it
  config["quantization_config"] = std::move(q);
  NIBBLE_ASSIGN(FileWriter file, folder.Add("config.json"));
  NIBBLE_RETURN_IF_ERROR(
      file.Write(config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"));
  return file.Commit();
}

Result<QuantizeReport> Quantizer::Run(const std::string& out) {
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_RETURN_IF_ERROR(Plan());
  NIBBLE_ASSIGN(FolderWriter folder, FolderWriter::Create(out));
  NIBBLE_RETURN_IF_ERROR(WriteTensors(folder));
  NIBBLE_RETURN_IF_ERROR(CopyFiles(folder));
  NIBBLE_RETURN_IF_ERROR(WriteConfig(folder));
  NIBBLE_RETURN_IF_ERROR(io::WriteManifest(folder));
  NIBBLE_ASSIGN(const File written, File::Open(folder.temporary() + "/model.safetensors"));
  report_.bytes_before = weights_->total_bytes();
  report_.bytes_after = written.size();
  NIBBLE_RETURN_IF_ERROR(folder.Commit());
  report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report_;
}

}  // namespace

Result<QuantizeReport> QuantizeFolder(const std::string& dir, const std::string& out,
                                      const QuantizeOptions& options) {
  if (!weight::IsQuantized(options.storage)) {
    return Error(Code::kInvalidArgument, "weights {}: expected w4a8-g128, w4a8-chn or w8a8",
                 weight::Name(options.storage));
  }
  return Quantizer(dir, options).Run(out);
}

}  // namespace nibble
