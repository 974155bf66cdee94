// SPDX-License-Identifier: Apache-2.0
// Floor 0. Opening, reading and replacing files.
#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/printable.h"

namespace nibble {
namespace {

Status SystemError(const std::string& path, const char* what) {
  const int error = errno;
  const Code code = error == ENOENT ? Code::kNotFound : error == ENOMEM ? Code::kOutOfMemory : Code::kIo;
  return Error(code, "{}: {}: {}", path, what, strerror(error));
}

const char* KindOf(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status SyncFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "cannot open the folder");
  const int failed = fsync(fd);
  const Status status = failed ? SystemError(path, "cannot sync the folder") : Status{};
  close(fd);
  return status;
}

Result<std::vector<std::string>> NamesIn(const std::string& path) {
  DIR* dir = opendir(path.c_str());
  if (!dir) return SystemError(path, "cannot list the folder");
  std::vector<std::string> names;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

Result<File> File::Open(const std::string& path, Links links) {
  if (path.find('\0') != std::string::npos) {
    return Error(Code::kInvalidArgument, "{}: a path with a zero byte", Printable(path));
  }
  // O_NONBLOCK: opening a FIFO returns at once and is then refused; regular files ignore it.
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links == Links::kRefuse ? O_NOFOLLOW : 0);
  const int fd = open(path.c_str(), flags);
  if (fd < 0) return SystemError(path, "cannot open");
  File file(path, fd, 0);
  struct stat info;
  if (fstat(fd, &info) != 0) return SystemError(path, "cannot read the size");
  if (!S_ISREG(info.st_mode)) {
    return Error(Code::kInvalidArgument, "{}: wanted a regular file, found {}", path, KindOf(info.st_mode));
  }
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) close(fd_);
}

Status File::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return Error(Code::kCorrupt, "{}: {} bytes wanted at {}, the file has {}", path_, out.size(), offset,
                 size_);
  }
  while (!out.empty()) {
    const ssize_t got = pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SystemError(path_, "cannot read");
    if (got == 0) return Error(Code::kIo, "{}: became shorter while it was read", path_);
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

Status File::CheckSize() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return SystemError(path_, "cannot read the size");
  if (static_cast<uint64_t>(info.st_size) >= size_) return {};
  return Error(Code::kIo, "{}: had {} bytes when it was opened, now has {}", path_, size_, info.st_size);
}

Result<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes) {
  NIBBLE_ASSIGN(const File file, File::Open(path));
  if (file.size() > max_bytes) {
    return Error(Code::kInvalidArgument, "{}: {} bytes, at most {} are read", path, file.size(), max_bytes);
  }
  std::string text(file.size(), '\0');
  NIBBLE_RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(text))));
  return text;
}

Result<std::string> CanonicalPath(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    return Error(Code::kInvalidArgument, "{}: a path with a zero byte", Printable(path));
  }
  char resolved[PATH_MAX];
  if (!realpath(path.c_str(), resolved)) return SystemError(path, "cannot open");
  return std::string(resolved);
}

Result<FileWriter> FileWriter::Create(const std::string& path) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string temporary = fmt::format("{}.tmp-{}-{}", path, getpid(), attempt);
    const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
      (void)flock(fd, LOCK_EX | LOCK_NB);  // where there are no locks RemoveUnfinished gets none either
      return FileWriter(path, std::move(temporary), fd);
    }
    if (errno != EEXIST) return SystemError(path, "cannot create");
  }
  return Error(Code::kIo, "{}: too many unfinished files {}.tmp-*", path, path);
}

void FileWriter::RemoveUnfinished(const std::string& path) {
  const std::string prefix = path.substr(path.rfind('/') + 1) + ".tmp-", folder = ParentOf(path);
  const auto names = NamesIn(folder);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (!name.starts_with(prefix)) continue;
    const std::string unfinished = folder + "/" + name;
    const auto file = File::Open(unfinished, File::Links::kRefuse);
    if (file.ok() && flock(file->fd(), LOCK_EX | LOCK_NB) == 0) unlink(unfinished.c_str());
  }
}

FileWriter::FileWriter(FileWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      end_(other.end_) {}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

Status FileWriter::Write(std::span<const std::byte> bytes) {
  NIBBLE_RETURN_IF_ERROR(WriteAt(end_, bytes));
  end_ += bytes.size();
  return {};
}

Status FileWriter::Reserve(uint64_t bytes) {
  NIBBLE_CHECK(fd_ >= 0, "Reserve after Commit");
  if (bytes == 0) return {};
  errno = posix_fallocate(fd_, 0, static_cast<off_t>(bytes));
  if (errno == 0) return {};
  return Error(Code::kIo, "{}: no room for {} bytes: {}", path_, bytes, strerror(errno));
}

Status FileWriter::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  NIBBLE_CHECK(fd_ >= 0, "write after Commit");
  while (!bytes.empty()) {
    const ssize_t put = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return SystemError(path_, "cannot write");
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

Status FileWriter::Commit() {
  NIBBLE_CHECK(fd_ >= 0, "second Commit");
  if (fsync(fd_) != 0) return SystemError(path_, "cannot sync");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return SystemError(path_, "cannot rename to this name");
  close(std::exchange(fd_, -1));
  return SyncFolder(ParentOf(path_));
}

}  // namespace nibble
