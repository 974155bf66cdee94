// SPDX-License-Identifier: Apache-2.0
// Floor 0. Writing a folder under a temporary name.
#include "base/folder_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/printable.h"

namespace nibble {
namespace {

Status SystemError(const std::string& path, const char* what) {
  return Error(Code::kIo, "{}: {}: {}", path, what, strerror(errno));
}

// Removes a folder of plain files. Stops at a sub-folder: this project writes none.
void RemoveFlat(const std::string& path) {
  const auto names = NamesIn(path);
  if (!names.ok()) return;
  for (const std::string& name : *names) unlink((path + "/" + name).c_str());
  rmdir(path.c_str());
}

// Opens and locks a folder; -1 if another live process holds it.
int LockFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  close(fd);
  return -1;
}

bool IsTemporaryOf(std::string_view name, std::string_view prefix) {  // PREFIX then digits-digits
  if (name.substr(0, prefix.size()) != prefix) return false;
  name.remove_prefix(prefix.size());
  const size_t dash = name.find('-');
  const auto digits = [](std::string_view s) {
    return !s.empty() && s.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return dash != std::string_view::npos && digits(name.substr(0, dash)) && digits(name.substr(dash + 1));
}

void RemoveStale(const std::string& target) {
  const std::string parent = ParentOf(target);
  const std::string prefix = target.substr(target.rfind('/') + 1) + ".tmp-";
  const auto names = NamesIn(parent);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (!IsTemporaryOf(name, prefix)) continue;
    const std::string path = parent + "/" + name;
    const int lock = LockFolder(path);
    if (lock < 0) continue;  // a run in progress, or not ours
    RemoveFlat(path);
    close(lock);
  }
}

Status CheckFree(const std::string& target) {
  struct stat info;
  if (lstat(target.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return SystemError(target, "cannot write here");
  }
  if (!S_ISDIR(info.st_mode)) return Error(Code::kInvalidArgument, "{}: exists and is not a folder", target);
  NIBBLE_ASSIGN(const auto names, NamesIn(target));
  if (names.empty()) return {};
  return Error(Code::kInvalidArgument,
               "{}: exists and is not empty (it holds {}); remove it or choose another name", target,
               Printable(names[0]));
}

}  // namespace

Result<FolderWriter> FolderWriter::Create(const std::string& wanted) {
  std::string target = wanted;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  if (target.empty() || target == "/" || target == "." || target == ".." ||
      target.find('\0') != std::string::npos) {
    return Error(Code::kInvalidArgument, "\"{}\": not a name for a new folder", Printable(wanted));
  }
  NIBBLE_RETURN_IF_ERROR(CheckFree(target));
  RemoveStale(target);
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string temporary = fmt::format("{}.tmp-{}-{}", target, getpid(), attempt);
    if (mkdir(temporary.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      return SystemError(temporary, "cannot create the folder");
    }
    const int lock = LockFolder(temporary);
    if (lock < 0) return SystemError(temporary, "cannot lock the new folder");
    return FolderWriter(target, temporary, lock);
  }
  return Error(Code::kIo, "{}: too many unfinished folders {}.tmp-*", target, target);
}

FolderWriter::FolderWriter(FolderWriter&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)),
      lock_(std::exchange(other.lock_, -1)) {}

FolderWriter::~FolderWriter() {
  if (lock_ < 0) return;
  RemoveFlat(temporary_);
  close(lock_);
}

Result<FileWriter> FolderWriter::Add(std::string_view name) const {
  NIBBLE_CHECK(!name.empty() && name.find('/') == std::string_view::npos, "a name inside the folder");
  return FileWriter::Create(fmt::format("{}/{}", temporary_, name));
}

Status FolderWriter::Commit() {
  NIBBLE_CHECK(lock_ >= 0, "second Commit");
  if (fsync(lock_) != 0) return SystemError(temporary_, "cannot sync the folder");
  NIBBLE_RETURN_IF_ERROR(CheckFree(target_));
  // Replaces an empty folder, fails on anything else: rename(2).
  if (rename(temporary_.c_str(), target_.c_str()) != 0)
    return SystemError(target_, "cannot rename to this name");
  close(std::exchange(lock_, -1));
  return SyncFolder(ParentOf(target_));
}

}  // namespace nibble
