// SPDX-License-Identifier: Apache-2.0
// Floor 5. Writing and checking the manifest of a folder.
#include "io/manifest.h"

#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/printable.h"
#include "io/model_path.h"

namespace nibble::io {
namespace {

constexpr JsonLimits kLimits = {.max_bytes = size_t{16} << 20, .max_depth = 8, .max_nodes = size_t{1} << 17};
constexpr char kHash[] = "xxh3_128";

struct Print {
  uint64_t bytes = 0;
  std::string hash;  // 32 hexadecimal digits
};

Result<Print> PrintOf(const std::string& path) {
  NIBBLE_ASSIGN(File file, File::Open(path));
  NIBBLE_ASSIGN(const MappedFile mapped, MappedFile::Map(std::move(file)));
  const XXH128_hash_t h = XXH3_128bits(mapped.bytes().data(), mapped.bytes().size());
  NIBBLE_RETURN_IF_ERROR(mapped.CheckUnchanged());
  return Print{mapped.bytes().size(), fmt::format("{:016x}{:016x}", h.high64, h.low64)};
}

Status VerifyFile(const std::string& dir, std::string_view name, JsonRef entry) {
  if (name.empty() || name.find('/') != std::string_view::npos) {
    return Error(Code::kCorrupt, "{}: expected a plain file name", entry.Where());
  }
  NIBBLE_ASSIGN(const JsonRef given, entry.Get("bytes"));
  NIBBLE_ASSIGN(const uint64_t bytes, given.Uint());
  NIBBLE_ASSIGN(const std::string_view hash, entry.GetString(kHash));
  NIBBLE_ASSIGN(const std::string path, ResolveInModel(dir, std::string(name)));
  NIBBLE_ASSIGN(const Print print, PrintOf(path));
  if (print.bytes != bytes) {
    return Error(Code::kCorrupt, "{}/{}: {} bytes, the manifest says {}", dir, Printable(name), print.bytes,
                 bytes);
  }
  if (print.hash == hash) return {};
  return Error(Code::kCorrupt, "{}/{}: {} is {}, the manifest says {}", dir, Printable(name), kHash,
               print.hash, Printable(hash));
}

}  // namespace

Status WriteManifest(const FolderWriter& folder) {
  NIBBLE_ASSIGN(const auto names, NamesIn(folder.temporary()));
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  for (const std::string& name : names) {
    NIBBLE_ASSIGN(const Print print, PrintOf(folder.temporary() + "/" + name));
    files[name] = {{"bytes", print.bytes}, {kHash, print.hash}};
  }
  const nlohmann::ordered_json manifest = {{"version", 1}, {"files", std::move(files)}};
  // Names of files are bytes; one that is not UTF-8 would be unreadable in JSON.
  const std::string text = manifest.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  NIBBLE_ASSIGN(FileWriter file, folder.Add(kManifestName));
  NIBBLE_RETURN_IF_ERROR(file.Write(text + "\n"));
  return file.Commit();
}

Status VerifyManifest(const std::string& dir) {
  NIBBLE_ASSIGN(const std::string path, ResolveInModel(dir, kManifestName));
  NIBBLE_ASSIGN(const Json json, Json::ReadFile(path, kLimits));
  NIBBLE_RETURN_IF_ERROR(json.root().GetInt("version", 1, 1).status());
  NIBBLE_ASSIGN(const JsonRef files, json.root().Get("files"));
  for (size_t i = 0; i < files.size(); ++i) NIBBLE_RETURN_IF_ERROR(VerifyFile(dir, files.KeyAt(i), files[i]));
  return {};
}

}  // namespace nibble::io
