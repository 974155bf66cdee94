// SPDX-License-Identifier: Apache-2.0
// Floor 7. Quantizing a model folder by rounding to nearest: plan the tensors, write the weights, copy the
// rest.
#include "model/quantize_folder.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/folder_writer.h"
#include "base/half.h"
#include "base/printable.h"
#include "base/thread_pool.h"
#include "io/manifest.h"
#include "io/safetensors_writer.h"
#include "io/weights.h"
#include "model/config.h"
#include "model/folder_output.h"
#include "model/qoq/folder.h"
#include "quant/weight/quantize.h"

namespace nibble {
namespace {

using weight::Storage;

constexpr int kRowsPerItem = 16;  // rows of one unit of parallel work

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
  bool Cancelled() const { return options_.cancel && options_.cancel->load(std::memory_order_relaxed); }

  const std::string& dir_;
  const QuantizeOptions& options_;
  ThreadPool pool_;
  std::vector<std::vector<float>> rows_;  // one buffer a worker
  std::unique_ptr<io::Weights> weights_;
  std::vector<Job> jobs_;
  QuantizeReport report_;
};

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
  const Status declared = DeclareQuantized(t.name, t.shape[0], t.shape[1], job.storage, specs);
  if (declared.ok()) return {};
  return Error(declared.code(), "{}: tensor \"{}\": {}", dir_, Printable(t.name), declared.message());
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
  return PutQuantized(t.name, q, writer);
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

Result<QuantizeReport> Quantizer::Run(const std::string& out) {
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_RETURN_IF_ERROR(Plan());
  NIBBLE_ASSIGN(FolderWriter folder, FolderWriter::Create(out));
  NIBBLE_RETURN_IF_ERROR(WriteTensors(folder));
  NIBBLE_RETURN_IF_ERROR(CopyOtherFiles(dir_, folder));
  NIBBLE_RETURN_IF_ERROR(WriteQuantizedConfig(dir_, folder,
                                              {.storage = options_.storage,
                                               .int8_embedding = options_.int8_embedding,
                                               .method = "rtn",
                                               .passes = {}}));
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
  return options.qoq ? qoq::QuantizeFolder(dir, out, options) : Quantizer(dir, options).Run(out);
}

}  // namespace nibble
