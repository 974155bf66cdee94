// SPDX-License-Identifier: Apache-2.0
#include "model/folder_output.h"

#include <nlohmann/json.hpp>
#include <span>

#include "base/file.h"
#include "io/manifest.h"
#include "io/model_path.h"
#include "io/packed_file.h"

namespace nibble {
namespace {

using weight::Storage;

constexpr uint64_t kMaxCopy = uint64_t{256} << 20;

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Not carried over: weights in any format, what describes them, and what this run writes itself.
bool IsReplaced(std::string_view name) {
  for (const char* end : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
                          ".gguf", ".onnx", ".h5", ".msgpack", io::kPackedEnd}) {
    if (EndsWith(name, end)) return true;
  }
  return name == "config.json" || name == io::kManifestName;
}

// What stands in the folder and is no file of the model. One that cannot be read for other reasons is missed.
bool IsNoPart(const Status& status) {
  return status.code() == Code::kInvalidArgument || status.code() == Code::kNotFound;
}

}  // namespace

Status DeclareQuantized(const std::string& name, int64_t n, int64_t k, Storage storage,
                        std::vector<io::TensorSpec>* specs) {
  NIBBLE_RETURN_IF_ERROR(weight::CheckShape(storage, n, k));
  specs->push_back({name + "_scale", "F16", {n}});
  if (storage == Storage::kW8A8) {
    specs->push_back({name, "I8", {n, k}});
    return {};
  }
  specs->push_back({name + "_packed", "U8", {n, k / 2}});
  if (storage == Storage::kW4A8Channel) {
    specs->push_back({name + "_zero", "U8", {n}});
    return {};
  }
  specs->push_back({name + "_group_scale", "U8", {n, k / weight::kGroup}});
  specs->push_back({name + "_group_zero", "U8", {n, k / weight::kGroup}});
  return {};
}

Status PutQuantized(const std::string& name, const weight::QuantizedWeight& q,
                    io::SafetensorsWriter* writer) {
  const auto put = [writer](const std::string& part, const auto& values) {
    return values.empty() ? Status{} : writer->Put(part, std::as_bytes(std::span(values)));
  };
  NIBBLE_RETURN_IF_ERROR(put(q.storage == Storage::kW8A8 ? name : name + "_packed", q.codes));
  NIBBLE_RETURN_IF_ERROR(put(name + "_scale", q.scale));
  NIBBLE_RETURN_IF_ERROR(put(name + "_group_scale", q.group_scale));
  return put(name + (q.storage == Storage::kW4A8Group ? "_group_zero" : "_zero"), q.zero);
}

Status CopyOtherFiles(const std::string& dir, const FolderWriter& folder) {
  NIBBLE_ASSIGN(const auto names, NamesIn(dir));
  for (const std::string& name : names) {
    if (IsReplaced(name)) continue;
    const auto path = io::ResolveInModel(dir, name);
    if (IsNoPart(path.status())) continue;  // a link to elsewhere or to nothing
    if (!path.ok()) return path.status();
    const auto file = File::Open(*path, File::Links::kRefuse);
    if (IsNoPart(file.status())) continue;  // a sub-folder, a pipe
    if (!file.ok()) return file.status();
    if (file->size() > kMaxCopy) {
      return Error(Code::kInvalidArgument, "{}/{}: {} bytes, files beside the weights have at most {}", dir,
                   name, file->size(), kMaxCopy);
    }
    NIBBLE_ASSIGN(const std::string text, ReadWholeFile(*path, kMaxCopy));
    NIBBLE_ASSIGN(FileWriter copy, folder.Add(name));
    NIBBLE_RETURN_IF_ERROR(copy.Write(text));
    NIBBLE_RETURN_IF_ERROR(copy.Commit());
  }
  return {};
}

Status WriteQuantizedConfig(const std::string& dir, const FolderWriter& folder, const QuantizedConfig& what) {
  NIBBLE_ASSIGN(const std::string path, io::ResolveInModel(dir, "config.json"));
  NIBBLE_ASSIGN(const std::string text, ReadWholeFile(path, kMaxCopy));
  auto config = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return Error(Code::kCorrupt, "{}: changed while it was read", path);
  nlohmann::ordered_json q = {{"quant_method", "nibble"}, {"format", weight::Name(what.storage)}};
  if (what.storage == Storage::kW4A8Group) q["group_size"] = weight::kGroup;
  q["embedding"] = what.int8_embedding ? "int8" : "none";
  q["method"] = what.method;
  if (!what.passes.empty()) q["passes"] = what.passes;
  if (what.untied_head) config["tie_word_embeddings"] = false;
  config.erase("quantization_config");  // null, or the plan would have refused it
  config["quantization_config"] = std::move(q);
  NIBBLE_ASSIGN(FileWriter file, folder.Add("config.json"));
  NIBBLE_RETURN_IF_ERROR(
      file.Write(config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"));
  return file.Commit();
}

}  // namespace nibble
