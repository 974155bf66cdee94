// SPDX-License-Identifier: Apache-2.0
// Floor 5. Weights in the layouts that kernels read, in a file beside the model: written once, mapped at
// every later start. To the byte: docs/formats/packed_weights.md.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "io/weights.h"
#include "quant/weight/pack.h"

namespace nibble::io {

inline constexpr char kPackedEnd[] = ".packed";  // of its name

// What a packed file is made of, and for: all of it must fit, or the file is of another model, or stale.
struct PackedKey {
  struct Source {
    std::string name;  // inside the folder
    uint64_t bytes = 0;
    int64_t changed_ns = 0;  // since 1970, of its content
    bool operator==(const Source&) const = default;
  };
  std::string fingerprint;  // io::Fingerprint
  bool bf16 = false;        // arithmetic: f32 and f16 weights became bf16
  std::vector<Source> sources;
};

// Of weights that were opened from a folder.
Result<PackedKey> MakePackedKey(const Weights& weights, bool bf16_arithmetic);

// "weights-panel16-f32-0123456789abcdef0123456789abcdef.packed"
std::string PackedFileName(const PackedKey& key);

// Names in the folder that would be this key's but for the fingerprint: made of other weights.
Result<std::vector<std::string>> StalePackedFiles(const std::string& dir, const PackedKey& key);

// Writes DIR/PackedFileName: complete or not at all.
class PackedWriter {
 public:
  static Result<PackedWriter> Create(const std::string& dir, const PackedKey& key);
  // `w` lies in one piece of memory, as weight::Pack leaves it.
  Status Add(std::string_view name, const weight::PackedWeight& w);
  // Synced and renamed. Gives the bytes of the file.
  Result<uint64_t> Commit();

 private:
  PackedWriter(FileWriter file, PackedKey key) : file_(std::move(file)), key_(std::move(key)) {}
  FileWriter file_;
  PackedKey key_;
  uint64_t end_ = 0;
  uint32_t weights_ = 0;
  std::string table_;
};

// A mapped file, every byte of which was checked.
class PackedReader {
 public:
  // kNotFound where there is none. kCorrupt, one line with the reason, for a file that is damaged, cut, no
  // packed file, or made of other weights, by other layouts or before the weights changed. Checks sums on
  // `pool`.
  static Result<std::unique_ptr<PackedReader>> Open(const std::string& dir, const PackedKey& key,
                                                    ThreadPool& pool);
  // The weight of that name; kCorrupt when it is absent or of another layout or shape.
  Result<weight::PackedWeight> Find(std::string_view name, weight::Layout layout, int n, int k) const;
  const std::string& path() const { return file_.path(); }
  std::span<const std::byte> bytes() const { return file_.bytes(); }

 private:
  struct Entry {
    std::string name;
    weight::Layout layout;
    int n, k;
    uint64_t offset, bytes, hash;
  };
  explicit PackedReader(MappedFile file) : file_(std::move(file)) {}
  Status ReadTable(std::string_view table, uint32_t weights, uint32_t sources, const PackedKey& key);
  Status CheckEntry(const Entry& e, uint64_t table_offset) const;
  Status CheckData(ThreadPool& pool) const;

  MappedFile file_;
  std::vector<Entry> entries_;  // in name order
  uint64_t table_offset_ = 0;
};

}  // namespace nibble::io
