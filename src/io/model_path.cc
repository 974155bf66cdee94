// SPDX-License-Identifier: Apache-2.0
// Floor 5. Paths of the files of a model.
#include "io/model_path.h"

#include "base/file.h"
#include "base/printable.h"

namespace nibble::io {
namespace {

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string_view NameOf(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// ROOT is .../snapshots/REVISION and the file .../blobs/SHA1-or-SHA256.
bool IsBlobOfSnapshot(const std::string& root, const std::string& file) {
  const std::string snapshots = ParentOf(root);
  const std::string_view sha = NameOf(file);
  return NameOf(snapshots) == "snapshots" && ParentOf(file) == ParentOf(snapshots) + "/blobs" &&
         (sha.size() == 40 || sha.size() == 64) && IsHex(sha);
}

}  // namespace

bool IsShardName(std::string_view name) {
  constexpr std::string_view kEnd = ".safetensors";
  constexpr std::string_view kAllowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  return name.size() > kEnd.size() && name.substr(name.size() - kEnd.size()) == kEnd &&
         name.find_first_not_of(kAllowed) == std::string_view::npos;
}

Result<std::string> ResolveInModel(const std::string& dir, const std::string& name) {
  NIBBLE_ASSIGN(const std::string root, CanonicalPath(dir));
  NIBBLE_ASSIGN(const std::string file, CanonicalPath(dir + "/" + name));
  if (ParentOf(file) == root || IsBlobOfSnapshot(root, file)) return file;
  return Error(Code::kInvalidArgument, "{}/{}: leads out of the model folder, to {}", dir, Printable(name),
               Printable(file));
}

}  // namespace nibble::io
