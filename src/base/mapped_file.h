// SPDX-License-Identifier: Apache-2.0
// Floor 0. A file in memory, read-only. Another process may cut the file while it is mapped; reading the lost
// part would raise SIGBUS. The first Map installs a handler that puts a page of zeros there instead and marks
// the mapping, so readers run on and CheckUnchanged() says what happened: call it after reading.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/file.h"
#include "base/result.h"

namespace nibble {

class MappedFile {
 public:
  static Result<MappedFile> Map(File file);
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  ~MappedFile();

  const std::string& path() const;
  std::span<const std::byte> bytes() const;
  // kIo when the file became shorter after it was opened, or its disk failed a read.
  Status CheckUnchanged() const;
  // Gives whole pages inside the range back to the system; they are read again if they are touched again.
  void Release(std::span<const std::byte> range) const;
  // Starts to read the whole file, into huge pages where its file system has them.
  void WillNeed() const;
  // From now on reading a lost part ends the process with SIGBUS: for what is read long after it was checked,
  // where zeros would be taken for the file's.
  void StopCovering();

 private:
  struct Impl;
  explicit MappedFile(std::unique_ptr<Impl>);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
