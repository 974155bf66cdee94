// SPDX-License-Identifier: Apache-2.0
// Floor 5. Opening the weights of a model: one file, or the shards that an index names.
#include "io/weights.h"

#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/printable.h"
#include "io/model_path.h"
#include "io/safetensors.h"

namespace nibble::io {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr JsonLimits kIndexLimits = {.max_bytes = size_t{128} << 20, .max_depth = 8, .max_nodes = 1'100'000};
constexpr size_t kMaxShards = 2048;
constexpr size_t kMostNamed = 100;  // names listed in one message

std::string List(const std::vector<std::string>& names) {
  std::string out;
  for (size_t i = 0; i < names.size() && i < kMostNamed; ++i) out += (i ? ", " : "") + Printable(names[i]);
  if (names.size() > kMostNamed) out += fmt::format(" and {} more", names.size() - kMostNamed);
  return out;
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

class FolderWeights : public Weights {
 public:
  Status OpenFile(const std::string& path, const std::string& shown) {
    NIBBLE_ASSIGN(File file, File::Open(path));
    NIBBLE_ASSIGN(MappedFile mapped, MappedFile::Map(std::move(file)));
    auto read = ReadSafetensors(mapped.bytes(), shown, static_cast<int>(files_.size()));
    NIBBLE_RETURN_IF_ERROR(mapped.CheckUnchanged());  // a cut file is reported as that, not as a bad header
    if (!read.ok()) return read.status();
    total_bytes_ += mapped.bytes().size();
    mapped_.push_back(std::move(mapped));
    files_.push_back(shown);
    if (tensors_.empty()) {
      tensors_ = std::move(read->tensors);
    } else {
      std::move(read->tensors.begin(), read->tensors.end(), std::back_inserter(tensors_));
    }
    std::move(read->notes.begin(), read->notes.end(), std::back_inserter(notes_));
    return {};
  }

  Status OpenFolder(const std::string& dir);

  std::span<const TensorInfo> tensors() const override { return tensors_; }
  std::span<const std::string> files() const override { return files_; }
  std::span<const std::string> notes() const override { return notes_; }
  uint64_t total_bytes() const override { return total_bytes_; }

  const TensorInfo* Find(std::string_view name) const override {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const TensorInfo& t, std::string_view n) { return t.name < n; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  Status CheckUnchanged() const override {
    for (const MappedFile& file : mapped_) NIBBLE_RETURN_IF_ERROR(file.CheckUnchanged());
    return {};
  }

  void Release(const TensorInfo& t) const override {
    mapped_[static_cast<size_t>(t.file)].Release({t.data, static_cast<size_t>(t.bytes)});
  }

 private:
  struct Place {
    std::string_view tensor;
    int shard;  // index into the sorted shard names
  };
  Status OpenIndex(const std::string& dir, const Json& index);
  Status OpenShards(const std::string& dir, const std::vector<std::string>& shards);
  Status MatchIndex(const std::vector<Place>& places, const std::vector<std::string>& shards);
  void CompareTotal(const Json& index);

  std::string index_;  // DIR/model.safetensors.index.json, for messages
  std::vector<MappedFile> mapped_;
  std::vector<std::string> files_, notes_;
  std::vector<TensorInfo> tensors_;
  uint64_t total_bytes_ = 0;
};

// What the folder holds instead of weights that are read here.
Status NoWeights(const std::string& dir) {
  NIBBLE_ASSIGN(const auto names, NamesIn(dir));
  std::vector<std::string> pickles, others;
  for (const std::string& name : names) {
    if (EndsWith(name, ".bin") || EndsWith(name, ".pt") || EndsWith(name, ".pth")) pickles.push_back(name);
    if (EndsWith(name, ".safetensors") || EndsWith(name, ".gguf")) others.push_back(name);
  }
  if (!others.empty()) {
    return Error(Code::kNotFound, "{}: expected {} or {}, found only {}", dir, kSingle, kIndex, List(others));
  }
  if (!pickles.empty()) {
    return Error(Code::kUnsupported, "{}: pickle files are not read ({}); convert the model to safetensors",
                 dir, List(pickles));
  }
  return Error(Code::kNotFound, "{}: no weights, expected {} or {}", dir, kSingle, kIndex);
}

Status FolderWeights::OpenFolder(const std::string& dir) {
  const auto single = ResolveInModel(dir, kSingle);
  const auto index = ResolveInModel(dir, kIndex);
  if (single.ok()) {
    if (index.ok()) notes_.push_back(fmt::format("{}: {} is used, {} is not", dir, kSingle, kIndex));
    return OpenFile(*single, dir + "/" + kSingle);
  }
  if (single.status().code() != Code::kNotFound) return single.status();
  if (index.ok()) {
    index_ = dir + "/" + kIndex;
    NIBBLE_ASSIGN(const std::string text, ReadWholeFile(*index, kIndexLimits.max_bytes));
    NIBBLE_ASSIGN(const Json json, Json::Parse(text, kIndexLimits, index_));
    return OpenIndex(dir, json);
  }
  if (index.status().code() != Code::kNotFound) return index.status();
  return NoWeights(dir);
}

Status FolderWeights::OpenIndex(const std::string& dir, const Json& index) {
  NIBBLE_ASSIGN(const JsonRef map, index.root().Get("weight_map"));
  if (!map.is_object() || map.size() == 0) {
    return Error(Code::kCorrupt, "{}: expected an object of tensor names and files", map.Where());
  }
  if (map.size() > kMaxTensors)
    return Error(Code::kInvalidArgument, "{}: {} tensors", map.Where(), map.size());
  std::vector<std::string> shards;
  for (size_t i = 0; i < map.size(); ++i) {
    NIBBLE_ASSIGN(const std::string_view name, map[i].String());
    if (!IsShardName(name)) {
      return Error(Code::kCorrupt,
                   "{}: \"{}\" is not a file name of letters, digits, '.', '_', '-' that ends in "
                   ".safetensors",
                   map[i].Where(), Printable(name));
    }
    if (shards.empty() || shards.back() != name) shards.emplace_back(name);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  if (shards.size() > kMaxShards)
    return Error(Code::kInvalidArgument, "{}: {} files", map.Where(), shards.size());

  std::vector<Place> places(map.size());
  for (size_t i = 0; i < map.size(); ++i) {
    const auto shard = std::lower_bound(shards.begin(), shards.end(), *map[i].String());
    places[i] = {map.KeyAt(i), static_cast<int>(shard - shards.begin())};
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.tensor < b.tensor; });
  NIBBLE_RETURN_IF_ERROR(OpenShards(dir, shards));
  NIBBLE_RETURN_IF_ERROR(MatchIndex(places, shards));
  CompareTotal(index);
  return {};
}

Status FolderWeights::OpenShards(const std::string& dir, const std::vector<std::string>& shards) {
  std::vector<std::string> paths, missing;
  for (const std::string& shard : shards) {
    auto path = ResolveInModel(dir, shard);
    if (path.ok()) {
      paths.push_back(*std::move(path));
    } else if (path.status().code() == Code::kNotFound) {
      missing.push_back(shard);
    } else {
      return path.status();
    }
  }
  if (!missing.empty()) {
    return Error(Code::kNotFound, "{}: {} of {} files that {} names are missing: {}", dir, missing.size(),
                 shards.size(), kIndex, List(missing));
  }
  for (size_t i = 0; i < shards.size(); ++i)
    NIBBLE_RETURN_IF_ERROR(OpenFile(paths[i], dir + "/" + shards[i]));
  return {};
}

// Every mapped tensor in its shard and nowhere else. Tensors that the index does not name are left out.
Status FolderWeights::MatchIndex(const std::vector<Place>& places, const std::vector<std::string>& shards) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.name != b.name ? a.name < b.name : a.file < b.file;
  });
  std::vector<TensorInfo> kept;
  std::vector<std::string> extra, absent;
  size_t at = 0;
  for (TensorInfo& t : tensors_) {
    for (; at < places.size() && places[at].tensor < t.name; ++at) absent.emplace_back(places[at].tensor);
    const bool again = !kept.empty() && kept.back().name == t.name;
    const bool mapped = at < places.size() && places[at].tensor == t.name;
    if (again || (mapped && places[at].shard != t.file)) {
      return Error(Code::kCorrupt, "{}: tensor \"{}\" lies in {}{}", index_, Printable(t.name),
                   Printable(shards[static_cast<size_t>(t.file)]),
                   again ? " too" : ", the index says " + shards[static_cast<size_t>(places[at].shard)]);
    }
    if (mapped) {
      ++at;
      kept.push_back(std::move(t));
    } else {
      extra.push_back(t.name);
    }
  }
  for (; at < places.size(); ++at) absent.emplace_back(places[at].tensor);
  if (!absent.empty()) {
    return Error(Code::kCorrupt, "{}: {} tensor(s) are not in the file that the index names: {}", index_,
                 absent.size(), List(absent));
  }
  if (!extra.empty()) {
    notes_.push_back(fmt::format("{}: {} tensor(s) that the index does not name are not used: {}", index_,
                                 extra.size(), List(extra)));
  }
  tensors_ = std::move(kept);
  return {};
}

// The sum is somebody's arithmetic about the files: compared, never used.
void FolderWeights::CompareTotal(const Json& index) {
  const auto metadata = index.root().Find("metadata");
  const auto given = metadata ? metadata->Find("total_size") : std::nullopt;
  if (!given) return;
  uint64_t sum = 0;
  for (const TensorInfo& t : tensors_) sum += t.bytes;
  const auto total = given->Uint();
  if (total.ok() && *total == sum) return;
  notes_.push_back(total.ok()
                       ? fmt::format("{}: says {}, the tensors take {} bytes", given->Where(), *total, sum)
                       : total.status().message());
}

}  // namespace

Result<std::unique_ptr<Weights>> Weights::Open(const std::string& path) {
  auto weights = std::make_unique<FolderWeights>();
  struct stat info;
  const bool folder = stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  NIBBLE_RETURN_IF_ERROR(folder ? weights->OpenFolder(path) : weights->OpenFile(path, path));
  return std::unique_ptr<Weights>(std::move(weights));
}

}  // namespace nibble::io
