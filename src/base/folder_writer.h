// SPDX-License-Identifier: Apache-2.0
// Floor 0. A folder that appears complete or not at all. Files are written into TARGET.tmp-PID-N beside the
// target; Commit syncs it and renames it. Whatever ends the run before that (an error, a full disk, SIGKILL)
// leaves no TARGET, at most the temporary folder, which the next run for the same target removes.
#pragma once
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/result.h"

namespace nibble {

class FolderWriter {
 public:
  // The target must not exist, or be an empty folder; its parent must exist.
  static Result<FolderWriter> Create(const std::string& target);
  FolderWriter(FolderWriter&& other) noexcept;
  FolderWriter& operator=(FolderWriter&&) = delete;
  ~FolderWriter();

  const std::string& target() const { return target_; }
  // Where the files are until Commit.
  const std::string& temporary() const { return temporary_; }
  // Starts a file of this name (no '/'). It must be committed before the folder is.
  Result<FileWriter> Add(std::string_view name) const;
  Status Commit();

 private:
  FolderWriter(std::string target, std::string temporary, int lock)
      : target_(std::move(target)), temporary_(std::move(temporary)), lock_(lock) {}
  std::string target_, temporary_;
  int lock_ = -1;  // the temporary folder, locked: a run that died holds no lock
};

}  // namespace nibble
