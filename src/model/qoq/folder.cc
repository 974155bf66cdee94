// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/folder.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "base/folder_writer.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "io/manifest.h"
#include "model/folder_output.h"
#include "model/qoq/resume.h"

namespace nibble::qoq {
namespace {

struct NamedPass {
  const char* name;
  bool Passes::*flag;
};
constexpr std::array<NamedPass, 7> kPasses = {{{"fold", &Passes::fold},
                                               {"rotate", &Passes::rotate},
                                               {"reorder", &Passes::reorder},
                                               {"smooth-attention", &Passes::smooth_attention},
                                               {"smooth-output", &Passes::smooth_output},
                                               {"clip", &Passes::clip},
                                               {"gptq", &Passes::gptq}}};

// Identifies everything that the result depends on.
class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Fingerprint() { XXH3_freeState(state_); }
  Fingerprint(const Fingerprint&) = delete;
  Fingerprint& operator=(const Fingerprint&) = delete;
  void Add(std::string_view bytes) {
    const auto size = static_cast<uint64_t>(bytes.size());
    XXH3_128bits_update(state_, &size, sizeof(size));
    XXH3_128bits_update(state_, bytes.data(), bytes.size());
  }
  std::string Text() const {
    const XXH128_hash_t h = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}\n", h.high64, h.low64);
  }

 private:
  XXH3_state_t* state_;
};

// 16-bit floats for what stays unquantized; f16 keeps three more bits than bf16 and the range is checked.
Result<std::vector<uint16_t>> ToHalf(const Matrix& m, const std::string& name) {
  std::vector<uint16_t> half(m.v.size());
  for (size_t i = 0; i < half.size(); ++i) {
    if (std::fabs(m.v[i]) > kHalfMax) {
      return Error(Code::kInvalidArgument, "tensor \"{}\": {} in row {} exceeds what 16 bits hold", name,
                   m.v[i], static_cast<int64_t>(i) / m.cols);
    }
    half[i] = FloatToHalf(m.v[i]);
  }
  return half;
}

class FolderRun {
 public:
  FolderRun(const std::string& dir, const QuantizeOptions& options)
      : dir_(dir),
        options_(options),
        qoq_(*options.qoq),
        threads_(options.threads > 0 ? options.threads : AvailableCpus()) {}
  Result<QuantizeReport> Run(const std::string& out);

 private:
  Status Open();
  bool Cancelled() const { return options_.cancel && options_.cancel->load(std::memory_order_relaxed); }
  Status CheckShapes() const;
  std::string MakeFingerprint() const;
  Status QuantizeLayers(ResumeState* state);
  Result<Streams> FirstStreams() const;
  Status WriteWeights(const FolderWriter& folder, const ResumeState& state);
  // The embedding, and the head if it has a matrix of its own.
  struct Table {
    std::string name;
    const Matrix* values;
    bool changed;  // by a pass: otherwise it is copied as it was
  };
  std::vector<Table> Tables() const;
  Status DeclareEnds(std::vector<io::TensorSpec>* specs) const;
  Status PutEnds(io::SafetensorsWriter* writer) const;
  Status PutTable(const Table& table, io::SafetensorsWriter* writer) const;

  const std::string& dir_;
  const QuantizeOptions& options_;
  const QoqOptions& qoq_;
  int threads_;
  std::unique_ptr<Math> math_;
  ModelConfig config_;
  std::unique_ptr<io::Weights> weights_;
  Tokens tokens_;
  Ends ends_;
  std::unique_ptr<Hadamard> rotation_;
  QuantizeReport report_;
};

Status FolderRun::Open() {
  NIBBLE_ASSIGN(config_, ReadModelConfig(dir_));
  if (!config_.weights.format.empty()) {
    return Error(Code::kInvalidArgument, "{}: the weights are {} already", dir_, config_.weights.format);
  }
  NIBBLE_RETURN_IF_ERROR(CheckShapes());
  NIBBLE_ASSIGN(weights_, io::Weights::Open(dir_));
  NIBBLE_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(dir_));
  const int window = static_cast<int>(std::min<int64_t>(qoq_.window, config_.max_position));
  auto tokens = CutCalibration(*tokenizer, config_, qoq_.text, window, qoq_.tokens);
  if (!tokens.ok()) return Error(tokens.status().code(), "{}: {}", qoq_.text_name, tokens.status().message());
  tokens_ = *std::move(tokens);
  NIBBLE_ASSIGN(math_, Math::Make(threads_));
  auto ends = ReadEnds(*weights_, config_);
  if (!ends.ok()) return Error(ends.status().code(), "{}: {}", dir_, ends.status().message());
  ends_ = *std::move(ends);
  if (qoq_.passes.fold) FoldFinalNorm(&ends_);
  if (qoq_.passes.rotate) {
    rotation_ = std::make_unique<Hadamard>(config_.hidden);
    RotateEnds(*rotation_, *math_, &ends_);
  }
  return {};
}

Status FolderRun::CheckShapes() const {
  const int q = config_.heads * config_.head_dim;
  for (const auto& [name, n, k] : {std::tuple{"q_proj", q, config_.hidden},
                                   {"o_proj", config_.hidden, q},
                                   {"gate_proj", config_.intermediate, config_.hidden},
                                   {"down_proj", config_.hidden, config_.intermediate}}) {
    const Status s = weight::CheckShape(options_.storage, n, k);
    if (!s.ok()) return Error(s.code(), "{}: {}: {}", dir_, name, s.message());
  }
  return {};
}

std::string FolderRun::MakeFingerprint() const {
  Fingerprint f;
  f.Add(fmt::format("1 {} {} {} {} {} {} {}", weight::Name(options_.storage), options_.int8_embedding,
                    fmt::join(PassNames(qoq_.passes), ","), qoq_.attention_alpha.value_or(-1), qoq_.damping,
                    ToString(qoq_.recipe), tokens_.window));
  f.Add({reinterpret_cast<const char*>(tokens_.ids.data()), tokens_.ids.size() * sizeof(int32_t)});
  const auto config = ReadWholeFile(dir_ + "/config.json", uint64_t{16} << 20);
  if (config.ok()) f.Add(*config);
  for (const io::TensorInfo& t : weights_->tensors()) {
    f.Add(fmt::format("{} {} {}", t.name, t.dtype, fmt::join(t.shape, ",")));
    f.Add({reinterpret_cast<const char*>(t.data), t.bytes});
    weights_->Release(t);
  }
  return f.Text();
}

// The quantized stream starts from the embedding as it will be stored.
Result<Streams> FolderRun::FirstStreams() const {
  Streams streams;
  streams.exact = EmbedTokens(ends_.embedding, tokens_.ids);
  streams.quantized = streams.exact;
  if (options_.int8_embedding) {
    Matrix rounded = ends_.embedding;
    RoundToNearest(weight::Storage::kW8A8, *math_, &rounded);
    streams.quantized = EmbedTokens(rounded, tokens_.ids);
  } else if (qoq_.passes.rotate) {
    for (float& x : streams.quantized.v) x = HalfToFloat(FloatToHalf(x));
  }
  return streams;
}

Status FolderRun::QuantizeLayers(ResumeState* state) {
  LayerOptions options;
  options.storage = options_.storage;
  options.passes = qoq_.passes;
  options.attention_alpha = qoq_.attention_alpha;
  options.damping = qoq_.damping;
  options.recipe = qoq_.recipe;
  options.window = tokens_.window;
  options.threads = threads_;
  report_.resumed_layers = state->layers_done();
  if (options_.on_progress && state->layers_done() > 0)
    options_.on_progress(state->layers_done() * kLayerParts, config_.layers * kLayerParts);
  auto streams = state->layers_done() > 0 ? state->ReadStreams() : FirstStreams();
  if (!streams.ok()) return streams.status();
  for (int i = state->layers_done(); i < config_.layers; ++i) {
    if (Cancelled()) return Status(Code::kCancelled, "cancelled");
    auto layer = ReadLayer(*weights_, config_, i);
    if (!layer.ok()) return Error(layer.status().code(), "{}: {}", dir_, layer.status().message());
    if (qoq_.passes.fold) FoldNorms(&*layer);
    if (rotation_) RotateLayer(*rotation_, *math_, &*layer);
    options.on_part = [&](int parts) -> Status {
      if (options_.on_progress) options_.on_progress(i * kLayerParts + parts, config_.layers * kLayerParts);
      // The last part's result is worth a file before the run ends.
      return Cancelled() && parts < kLayerParts ? Status(Code::kCancelled, "cancelled") : Status{};
    };
    auto done = QuantizeLayer(config_, *std::move(layer), i, options, *math_, &*streams);
    if (done.status().code() == Code::kCancelled) return done.status();
    if (!done.ok()) return Error(done.status().code(), "{}: {}", dir_, done.status().message());
    NIBBLE_RETURN_IF_ERROR(state->Save(*done, *streams));
  }
  return {};
}

std::vector<FolderRun::Table> FolderRun::Tables() const {
  std::vector<Table> tables = {{"model.embed_tokens.weight", &ends_.embedding, qoq_.passes.rotate}};
  if (ends_.head.rows > 0) tables.push_back({"lm_head.weight", &ends_.head, qoq_.passes.fold});
  return tables;
}

Status FolderRun::DeclareEnds(std::vector<io::TensorSpec>* specs) const {
  for (const Table& table : Tables()) {
    const Matrix& m = *table.values;
    if (options_.int8_embedding) {
      NIBBLE_RETURN_IF_ERROR(DeclareQuantized(table.name, m.rows, m.cols, weight::Storage::kW8A8, specs));
      continue;
    }
    specs->push_back(
        {table.name, table.changed ? "F16" : weights_->Find(table.name)->dtype, {m.rows, m.cols}});
  }
  specs->push_back({"model.norm.weight", "F32", {config_.hidden}});
  return {};
}

Status FolderRun::PutTable(const Table& table, io::SafetensorsWriter* writer) const {
  const Matrix& m = *table.values;
  if (options_.int8_embedding) {
    auto q = weight::Quantize(m.v.data(), m.rows, m.cols, weight::Storage::kW8A8);
    if (!q.ok())
      return Error(q.status().code(), "{}: tensor \"{}\": {}", dir_, table.name, q.status().message());
    return PutQuantized(table.name, *q, writer);
  }
  if (!table.changed) {
    const io::TensorInfo* t = weights_->Find(table.name);
    NIBBLE_RETURN_IF_ERROR(weights_->CheckUnchanged());
    return writer->Put(t->name, {t->data, static_cast<size_t>(t->bytes)});
  }
  NIBBLE_ASSIGN(const std::vector<uint16_t> half, ToHalf(m, table.name));
  return writer->Put(table.name, std::as_bytes(std::span(half)));
}

Status FolderRun::PutEnds(io::SafetensorsWriter* writer) const {
  for (const Table& table : Tables()) NIBBLE_RETURN_IF_ERROR(PutTable(table, writer));
  return writer->Put("model.norm.weight", std::as_bytes(std::span(ends_.final_norm)));
}

Status FolderRun::WriteWeights(const FolderWriter& folder, const ResumeState& state) {
  std::vector<io::TensorSpec> specs;
  NIBBLE_RETURN_IF_ERROR(DeclareEnds(&specs));
  std::vector<std::unique_ptr<io::Weights>> layers;
  const auto is_report = [](const io::TensorInfo& t) { return t.name == "nibble.report"; };
  for (int i = 0; i < config_.layers; ++i) {
    NIBBLE_ASSIGN(std::unique_ptr<io::Weights> layer, state.ReadLayer(i));
    for (const io::TensorInfo& t : layer->tensors())
      if (!is_report(t)) specs.push_back({t.name, t.dtype, t.shape});
    layers.push_back(std::move(layer));
  }
  NIBBLE_ASSIGN(FileWriter file, folder.Add("model.safetensors"));
  NIBBLE_ASSIGN(io::SafetensorsWriter writer,
                io::SafetensorsWriter::Create(std::move(file), std::move(specs)));
  for (const auto& layer : layers) {
    for (const io::TensorInfo& t : layer->tensors()) {
      if (is_report(t)) continue;
      NIBBLE_RETURN_IF_ERROR(writer.Put(t.name, {t.data, static_cast<size_t>(t.bytes)}));
    }
    NIBBLE_RETURN_IF_ERROR(layer->CheckUnchanged());
  }
  NIBBLE_RETURN_IF_ERROR(PutEnds(&writer));
  return writer.Commit();
}

Result<QuantizeReport> FolderRun::Run(const std::string& out) {
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_RETURN_IF_ERROR(Open());
  NIBBLE_ASSIGN(FolderWriter folder, FolderWriter::Create(out));
  NIBBLE_ASSIGN(ResumeState state, ResumeState::Open(folder.target(), MakeFingerprint()));
  const Status status = QuantizeLayers(&state);
  if (!status.ok()) {
    // What cannot be helped by running again is not worth keeping.
    const bool keep = status.code() == Code::kCancelled || status.code() == Code::kIo;
    if (!keep || state.layers_done() == 0) state.Remove();
    return status;
  }
  NIBBLE_RETURN_IF_ERROR(WriteWeights(folder, state));
  NIBBLE_RETURN_IF_ERROR(CopyOtherFiles(dir_, folder));
  NIBBLE_RETURN_IF_ERROR(WriteQuantizedConfig(dir_, folder,
                                              {.storage = options_.storage,
                                               .int8_embedding = options_.int8_embedding,
                                               .untied_head = ends_.head.rows > 0,
                                               .method = "qoq",
                                               .passes = PassNames(qoq_.passes)}));
  NIBBLE_RETURN_IF_ERROR(io::WriteManifest(folder));
  NIBBLE_ASSIGN(const File written, File::Open(folder.temporary() + "/model.safetensors"));
  report_.bytes_before = weights_->total_bytes();
  report_.bytes_after = written.size();
  report_.tensors = config_.layers * kLinears + (options_.int8_embedding ? (ends_.head.rows > 0 ? 2 : 1) : 0);
  for (int i = 0; i < config_.layers; ++i) {
    NIBBLE_ASSIGN(LayerReport layer, state.ReadReport(i));
    report_.layers.push_back(layer);
  }
  NIBBLE_RETURN_IF_ERROR(folder.Commit());
  state.Remove();
  report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report_;
}

}  // namespace

std::vector<std::string> PassNames(const Passes& passes) {
  std::vector<std::string> names;
  for (const NamedPass& pass : kPasses)
    if (passes.*pass.flag) names.emplace_back(pass.name);
  return names;
}

Result<Passes> ParsePasses(std::span<const std::string> names) {
  Passes passes;
  for (const NamedPass& pass : kPasses) passes.*pass.flag = false;
  for (const std::string& name : names) {
    const auto found = std::find_if(kPasses.begin(), kPasses.end(),
                                    [&](const NamedPass& pass) { return name == pass.name; });
    if (found == kPasses.end()) {
      return Error(Code::kInvalidArgument, "unknown pass \"{}\"; there are {}", name,
                   fmt::join(PassNames(Passes{}), ", "));
    }
    passes.*found->flag = true;
  }
  if (passes.rotate && !passes.fold) {
    return Error(Code::kInvalidArgument,
                 "pass rotate needs fold: norm weights do not commute with a rotation");
  }
  return passes;
}

Result<QuantizeReport> QuantizeFolder(const std::string& dir, const std::string& out,
                                      const QuantizeOptions& options) {
  return FolderRun(dir, options).Run(out);
}

}  // namespace nibble::qoq
