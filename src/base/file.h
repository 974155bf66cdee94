// SPDX-License-Identifier: Apache-2.0
// Floor 0. Files that we did not write (opened once, regular, size kept) and files that we write (complete or
// absent: temporary name, sync, rename).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

// An open regular file. Every read is against the size it had when it was opened.
class File {
 public:
  // Follows symbolic links unless told otherwise; never waits on a FIFO or device.
  enum class Links : uint8_t { kFollow, kRefuse };
  static Result<File> Open(const std::string& path, Links links = Links::kFollow);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  int fd() const { return fd_; }
  // Fills `out` from `offset`. kIo if the file does not hold that many bytes (any more).
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const;
  // kIo if the file is now shorter than it was when it was opened.
  Status CheckSize() const;

 private:
  File(std::string path, int fd, uint64_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// The whole of a regular file of at most `max_bytes`.
Result<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes);

// Makes the names in a folder durable.
Status SyncFolder(const std::string& path);

// "a" of "a/b", "/" of "/b", "." of "b".
std::string ParentOf(const std::string& path);

// Names inside a folder, without "." and "..", sorted.
Result<std::vector<std::string>> NamesIn(const std::string& path);

// Symbolic links resolved. kNotFound when there is no such file.
Result<std::string> CanonicalPath(const std::string& path);

// Creates or replaces one file. Until Commit the target is untouched; without Commit nothing stays.
class FileWriter {
 public:
  static Result<FileWriter> Create(const std::string& path);
  // Removes the unfinished files of runs for this path that are no more: a lock tells the dead from the
  // living.
  static void RemoveUnfinished(const std::string& path);
  FileWriter(FileWriter&& other) noexcept;
  FileWriter& operator=(FileWriter&& other) = delete;
  ~FileWriter();
  Status Write(std::span<const std::byte> bytes);
  Status Write(std::string_view text) { return Write(std::as_bytes(std::span(text))); }
  // Takes `bytes` on the disk now, so that a full disk is found before the work and not after it. The file
  // has that size from then on; WriteAt fills it.
  Status Reserve(uint64_t bytes);
  Status WriteAt(uint64_t offset, std::span<const std::byte> bytes);
  Status Commit();  // sync, rename over the target, sync the folder

 private:
  FileWriter(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}
  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t end_ = 0;  // where Write goes on
};

}  // namespace nibble
