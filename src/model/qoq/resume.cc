// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/resume.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/file.h"
#include "model/folder_output.h"

namespace nibble::qoq {
namespace {

constexpr char kStreams[] = "streams.safetensors";
constexpr char kReport[] = "nibble.report";  // a tensor beside those of the layer
constexpr uint64_t kMaxFingerprint = 4096;

// The figures of a report in a fixed order; `visit` reads or writes each.
template <class Report, class F>
void VisitReport(Report& r, F&& visit) {
  for (auto* x : {&r.key_alpha, &r.key_beta, &r.key_error_before, &r.key_error_after, &r.value_alpha,
                  &r.value_beta, &r.mlp_alpha, &r.mlp_beta, &r.stream_error})
    visit(*x);
  for (auto& linear : r.linear) visit(linear.nearest), visit(linear.error);
}

Status PutFloats(const std::string& name, const std::vector<float>& values, io::SafetensorsWriter* writer) {
  return values.empty() ? Status{} : writer->Put(name, std::as_bytes(std::span(values)));
}

// Norms and biases of a layer by name.
std::vector<std::pair<std::string, const std::vector<float>*>> Vectors(const Layer& layer, int index) {
  const std::string prefix = LayerPrefix(index);
  std::vector<std::pair<std::string, const std::vector<float>*>> all = {
      {"input_layernorm.weight", &layer.input_norm},
      {"post_attention_layernorm.weight", &layer.post_attention_norm},
      {"self_attn.q_norm.weight", &layer.q_norm},
      {"self_attn.k_norm.weight", &layer.k_norm}};
  for (int id = 0; id < kLinears; ++id)
    all.emplace_back(std::string(kLinearNames[id]) + ".bias", &layer.linear[id].bias);
  std::erase_if(all, [](const auto& item) { return item.second->empty(); });
  for (auto& item : all) item.first = prefix + item.first;
  return all;
}

Result<Matrix> ReadStream(const io::Weights& weights, const std::string& name) {
  const io::TensorInfo* t = weights.Find(name);
  if (t == nullptr || t->element != io::Element::kF32 || t->shape.size() != 2)
    return Error(Code::kCorrupt, "{}: no stream \"{}\"", weights.files()[0], name);
  Matrix m(static_cast<int>(t->shape[0]), static_cast<int>(t->shape[1]));
  std::memcpy(m.v.data(), t->data, t->bytes);
  return m;
}

}  // namespace

std::string StateFolder(std::string out) {
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  return out + ".qoq-state";
}

Result<ResumeState> ResumeState::Open(const std::string& out, const std::string& fingerprint) {
  const std::string dir = StateFolder(out);
  if (mkdir(dir.c_str(), 0777) != 0 && errno != EEXIST)
    return Error(Code::kIo, "{}: cannot create the folder: {}", dir, strerror(errno));
  const int lock = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (lock < 0) return Error(Code::kIo, "{}: cannot open the folder: {}", dir, strerror(errno));
  ResumeState state(dir, fingerprint, lock);
  if (flock(lock, LOCK_EX | LOCK_NB) != 0)
    return Error(Code::kInvalidArgument, "{}: another run is writing {}", dir, out);
  if (!state.FindDone()) {
    NIBBLE_ASSIGN(const auto names, NamesIn(dir));
    for (const std::string& name : names) unlink((dir + "/" + name).c_str());
    NIBBLE_ASSIGN(FileWriter file, FileWriter::Create(dir + "/fingerprint"));
    NIBBLE_RETURN_IF_ERROR(file.Write(fingerprint));
    NIBBLE_RETURN_IF_ERROR(file.Commit());
  }
  return state;
}

ResumeState::ResumeState(ResumeState&& other) noexcept
    : dir_(std::move(other.dir_)),
      fingerprint_(std::move(other.fingerprint_)),
      lock_(std::exchange(other.lock_, -1)),
      layers_done_(other.layers_done_) {}

ResumeState::~ResumeState() {
  if (lock_ >= 0) close(lock_);
}

std::string ResumeState::LayerPath(int index) const {
  return fmt::format("{}/layer-{:05}.safetensors", dir_, index);
}

// The streams are replaced after a layer's file is durable, so they tell how many layers there are.
bool ResumeState::FindDone() {
  const auto found = ReadWholeFile(dir_ + "/fingerprint", kMaxFingerprint);
  if (!found.ok() || *found != fingerprint_) return false;
  const auto weights = io::Weights::Open(dir_ + "/" + kStreams);
  if (!weights.ok()) return true;  // before the first layer
  const io::TensorInfo* done = (*weights)->Find("layers_done");
  if (done == nullptr || done->bytes != sizeof(int32_t)) return false;
  int32_t count = 0;
  std::memcpy(&count, done->data, sizeof(count));
  for (int i = 0; i < count; ++i)
    if (!ReadReport(i).ok()) return false;
  layers_done_ = count;
  return count >= 0;
}

Result<Streams> ResumeState::ReadStreams() const {
  NIBBLE_ASSIGN(const std::unique_ptr<io::Weights> weights, io::Weights::Open(dir_ + "/" + kStreams));
  Streams streams;
  NIBBLE_ASSIGN(streams.exact, ReadStream(*weights, "exact"));
  NIBBLE_ASSIGN(streams.quantized, ReadStream(*weights, "quantized"));
  return streams;
}

Status ResumeState::Save(const QuantizedLayer& layer, const Streams& streams) {
  const int index = layers_done_;
  LayerReport report = layer.report;
  std::vector<double> figures;
  VisitReport(report, [&](double x) { figures.push_back(x); });

  std::vector<io::TensorSpec> specs = {{kReport, "F64", {static_cast<int64_t>(figures.size())}}};
  const auto name = [&](int id) { return LayerPrefix(index) + std::string(kLinearNames[id]) + ".weight"; };
  for (int id = 0; id < kLinears; ++id) {
    const weight::QuantizedWeight& q = layer.linear[id];
    NIBBLE_RETURN_IF_ERROR(DeclareQuantized(name(id), q.n, q.k, q.storage, &specs));
  }
  const auto vectors = Vectors(layer.rest, index);
  for (const auto& [vector, values] : vectors)
    specs.push_back({vector, "F32", {static_cast<int64_t>(values->size())}});
  NIBBLE_ASSIGN(FileWriter file, FileWriter::Create(LayerPath(index)));
  NIBBLE_ASSIGN(io::SafetensorsWriter writer,
                io::SafetensorsWriter::Create(std::move(file), std::move(specs)));
  NIBBLE_RETURN_IF_ERROR(writer.Put(kReport, std::as_bytes(std::span(figures))));
  for (int id = 0; id < kLinears; ++id)
    NIBBLE_RETURN_IF_ERROR(PutQuantized(name(id), layer.linear[id], &writer));
  for (const auto& [vector, values] : vectors) NIBBLE_RETURN_IF_ERROR(PutFloats(vector, *values, &writer));
  NIBBLE_RETURN_IF_ERROR(writer.Commit());

  const auto shape = [](const Matrix& m) { return std::vector<int64_t>{m.rows, m.cols}; };
  NIBBLE_ASSIGN(FileWriter streams_file, FileWriter::Create(dir_ + "/" + kStreams));
  NIBBLE_ASSIGN(
      io::SafetensorsWriter out,
      io::SafetensorsWriter::Create(std::move(streams_file), {{"exact", "F32", shape(streams.exact)},
                                                              {"quantized", "F32", shape(streams.quantized)},
                                                              {"layers_done", "I32", {1}}}));
  const std::vector<int32_t> done = {index + 1};
  NIBBLE_RETURN_IF_ERROR(PutFloats("exact", streams.exact.v, &out));
  NIBBLE_RETURN_IF_ERROR(PutFloats("quantized", streams.quantized.v, &out));
  NIBBLE_RETURN_IF_ERROR(out.Put("layers_done", std::as_bytes(std::span(done))));
  NIBBLE_RETURN_IF_ERROR(out.Commit());
  ++layers_done_;
  return {};
}

Result<std::unique_ptr<io::Weights>> ResumeState::ReadLayer(int index) const {
  return io::Weights::Open(LayerPath(index));
}

Result<LayerReport> ResumeState::ReadReport(int index) const {
  NIBBLE_ASSIGN(const std::unique_ptr<io::Weights> weights, ReadLayer(index));
  const io::TensorInfo* t = weights->Find(kReport);
  LayerReport report;
  report.index = index;
  size_t at = 0;
  VisitReport(report, [&](double&) { at += sizeof(double); });
  if (t == nullptr || t->bytes != at) return Error(Code::kCorrupt, "{}: no report", LayerPath(index));
  at = 0;
  VisitReport(report, [&](double& x) {
    std::memcpy(&x, t->data + at, sizeof(double));
    at += sizeof(double);
  });
  return report;
}

void ResumeState::Remove() {
  const auto names = NamesIn(dir_);
  if (!names.ok()) return;
  for (const std::string& name : *names) unlink((dir_ + "/" + name).c_str());
  rmdir(dir_.c_str());
}

}  // namespace nibble::qoq
