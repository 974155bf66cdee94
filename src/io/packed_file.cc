// SPDX-License-Identifier: Apache-2.0
// Floor 5. Packed files: the writer, and the reader, which trusts nothing.
#include "io/packed_file.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/printable.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"

namespace nibble::io {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr char kMagic[8] = {'N', 'B', 'L', 'P', 'A', 'C', 'K', '1'};
// Raised whenever a layout of quant/weight/format.h changes.
constexpr uint32_t kLayouts = 1;
constexpr char kLayoutName[] = "panel16";
constexpr size_t kFingerprint = 32;
constexpr uint64_t kAlign = 4096;  // of weights: a page of memory belongs to one
constexpr size_t kMaxName = 4096;
constexpr uint32_t kMaxSources = 4096;

struct Header {
  char magic[8];
  uint32_t layouts, bf16, weights, sources;
  uint64_t table_offset, table_bytes, file_bytes;
  char fingerprint[kFingerprint];
  uint64_t table_hash;
  uint64_t hash;  // of all before it
};
static_assert(sizeof(Header) == 96 && std::is_trivially_copyable_v<Header>);

uint64_t HashOf(const void* data, size_t bytes) { return XXH3_64bits(data, bytes); }

template <class T>
void Put(std::string* to, const T& value) {
  to->append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Takes values off the front of a table; false when it is too short.
struct TableReader {
  std::string_view rest;
  template <class T>
  bool Take(T* value) {
    if (rest.size() < sizeof(T)) return false;
    memcpy(value, rest.data(), sizeof(T));
    rest.remove_prefix(sizeof(T));
    return true;
  }
  bool TakeName(std::string* name) {
    uint32_t size = 0;
    if (!Take(&size) || size > kMaxName || size > rest.size()) return false;
    *name = rest.substr(0, size);
    rest.remove_prefix(size);
    return true;
  }
};

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string NamePrefix(const PackedKey& key) {
  return fmt::format("weights-{}-{}-", kLayoutName, key.bf16 ? "bf16" : "f32");
}

Status Refused(const std::string& path, const std::string& why) {
  return Error(Code::kCorrupt, "{}: {}; --pack-cache rebuild makes it anew", path, why);
}

}  // namespace

Result<PackedKey> MakePackedKey(const Weights& weights, bool bf16_arithmetic) {
  PackedKey key;
  key.bf16 = bf16_arithmetic;
  for (const std::string& path : weights.files()) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return Error(Code::kIo, "{}: {}", path, strerror(errno));
    const int64_t ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    key.sources.push_back({path.substr(path.rfind('/') + 1), uint64_t(info.st_size), ns});
  }
  NIBBLE_ASSIGN(key.fingerprint, Fingerprint(weights));
  NIBBLE_CHECK(key.fingerprint.size() == kFingerprint, "length of a fingerprint");
  return key;
}

std::string PackedFileName(const PackedKey& key) { return NamePrefix(key) + key.fingerprint + kPackedEnd; }

Result<std::vector<std::string>> StalePackedFiles(const std::string& dir, const PackedKey& key) {
  NIBBLE_ASSIGN(const std::vector<std::string> names, NamesIn(dir));
  const std::string prefix = NamePrefix(key), own = PackedFileName(key);
  std::vector<std::string> stale;
  for (const std::string& name : names) {
    if (name == own || name.size() != own.size()) continue;
    if (!name.starts_with(prefix) || !name.ends_with(kPackedEnd)) continue;
    if (IsHex(std::string_view(name).substr(prefix.size(), kFingerprint))) stale.push_back(name);
  }
  return stale;
}

Result<PackedWriter> PackedWriter::Create(const std::string& dir, const PackedKey& key) {
  const std::string path = dir + "/" + PackedFileName(key);
  FileWriter::RemoveUnfinished(path);
  NIBBLE_ASSIGN(FileWriter file, FileWriter::Create(path));
  PackedWriter writer(std::move(file), key);
  writer.end_ = kAlign;
  return writer;
}

Status PackedWriter::Add(std::string_view name, const weight::PackedWeight& w) {
  NIBBLE_CHECK(name.size() <= kMaxName, "name of a packed weight");
  NIBBLE_RETURN_IF_ERROR(file_.WriteAt(end_, {w.codes, w.bytes}));
  Put(&table_, end_);
  Put(&table_, uint64_t{w.bytes});
  Put(&table_, HashOf(w.codes, w.bytes));
  Put(&table_, static_cast<uint32_t>(w.layout));
  Put(&table_, static_cast<uint32_t>(w.n));
  Put(&table_, static_cast<uint32_t>(w.k));
  Put(&table_, static_cast<uint32_t>(name.size()));
  table_ += name;
  end_ += (w.bytes + kAlign - 1) / kAlign * kAlign;
  ++weights_;
  return {};
}

Result<uint64_t> PackedWriter::Commit() {
  for (const PackedKey::Source& source : key_.sources) {
    Put(&table_, source.bytes);
    Put(&table_, source.changed_ns);
    Put(&table_, static_cast<uint32_t>(source.name.size()));
    table_ += source.name;
  }
  Header h{};
  memcpy(h.magic, kMagic, sizeof kMagic);
  h.layouts = kLayouts, h.bf16 = key_.bf16 ? 1 : 0;
  h.weights = weights_, h.sources = static_cast<uint32_t>(key_.sources.size());
  h.table_offset = end_, h.table_bytes = table_.size(), h.file_bytes = end_ + table_.size();
  memcpy(h.fingerprint, key_.fingerprint.data(), kFingerprint);
  h.table_hash = HashOf(table_.data(), table_.size());
  h.hash = HashOf(&h, offsetof(Header, hash));
  NIBBLE_RETURN_IF_ERROR(file_.WriteAt(end_, std::as_bytes(std::span(table_))));
  NIBBLE_RETURN_IF_ERROR(file_.WriteAt(0, std::as_bytes(std::span(&h, 1))));
  NIBBLE_RETURN_IF_ERROR(file_.Commit());
  return h.file_bytes;
}

Result<std::unique_ptr<PackedReader>> PackedReader::Open(const std::string& dir, const PackedKey& key,
                                                         ThreadPool& pool) {
  NIBBLE_ASSIGN(File file, File::Open(dir + "/" + PackedFileName(key), File::Links::kRefuse));
  const std::string path = file.path();
  Header h;
  if (file.size() < sizeof h) return Refused(path, fmt::format("{} bytes are no packed file", file.size()));
  NIBBLE_RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(&h, 1))));
  const uint64_t size = file.size();
  if (memcmp(h.magic, kMagic, sizeof kMagic) != 0) return Refused(path, "no packed file of this version");
  if (h.hash != HashOf(&h, offsetof(Header, hash))) return Refused(path, "the header is damaged");
  if (h.layouts != kLayouts)
    return Refused(path, fmt::format("layouts {}, this program has {}", h.layouts, kLayouts));
  if (h.bf16 != (key.bf16 ? 1u : 0u)) return Refused(path, "made for other arithmetic than --dtype says");
  if (std::string_view(h.fingerprint, kFingerprint) != key.fingerprint)
    return Refused(path, fmt::format("made of other weights, whose fingerprint is {}",
                                     Printable(std::string_view(h.fingerprint, kFingerprint))));
  if (size != h.file_bytes) return Refused(path, fmt::format("has {} of {} bytes", size, h.file_bytes));
  if (h.table_offset > size || h.table_bytes != size - h.table_offset || h.table_offset < kAlign)
    return Refused(path, "the table lies outside the file");
  if (h.weights > kMaxTensors || h.sources > kMaxSources)
    return Refused(path, "the table has no such length");

  NIBBLE_ASSIGN(MappedFile mapped, MappedFile::Map(std::move(file)));
  mapped.WillNeed();
  std::unique_ptr<PackedReader> reader(new PackedReader(std::move(mapped)));
  const std::string_view table(reinterpret_cast<const char*>(reader->bytes().data()) + h.table_offset,
                               h.table_bytes);
  reader->table_offset_ = h.table_offset;
  if (HashOf(table.data(), table.size()) != h.table_hash) return Refused(path, "the table is damaged");
  NIBBLE_RETURN_IF_ERROR(reader->ReadTable(table, h.weights, h.sources, key));
  NIBBLE_RETURN_IF_ERROR(reader->CheckData(pool));
  NIBBLE_RETURN_IF_ERROR(reader->file_.CheckUnchanged());
  reader->file_.StopCovering();
  return reader;
}

Status PackedReader::ReadTable(std::string_view table, uint32_t weights, uint32_t sources,
                               const PackedKey& key) {
  TableReader in{table};
  for (uint32_t i = 0; i < weights; ++i) {
    Entry e{};
    uint32_t layout = 0, n = 0, k = 0;
    const bool whole = in.Take(&e.offset) && in.Take(&e.bytes) && in.Take(&e.hash) && in.Take(&layout) &&
                       in.Take(&n) && in.Take(&k) && in.TakeName(&e.name);
    if (!whole) return Refused(path(), fmt::format("the table ends in weight {} of {}", i, weights));
    if (layout > static_cast<uint32_t>(weight::Layout::kI8Channel) || n == 0 || k == 0 || n > INT32_MAX ||
        k > INT32_MAX)
      return Refused(path(), fmt::format("weight {}: layout {}, [{}, {}]", Printable(e.name), layout, n, k));
    e.layout = static_cast<weight::Layout>(layout);
    e.n = static_cast<int>(n), e.k = static_cast<int>(k);
    NIBBLE_RETURN_IF_ERROR(CheckEntry(e, table_offset_));
    entries_.push_back(std::move(e));
  }
  std::vector<PackedKey::Source> made_of;
  for (uint32_t i = 0; i < sources; ++i) {
    PackedKey::Source s;
    if (!in.Take(&s.bytes) || !in.Take(&s.changed_ns) || !in.TakeName(&s.name))
      return Refused(path(), fmt::format("the table ends in file {} of {}", i, sources));
    made_of.push_back(std::move(s));
  }
  if (!in.rest.empty()) return Refused(path(), fmt::format("{} bytes behind the table", in.rest.size()));
  for (size_t i = 0; i < std::max(made_of.size(), key.sources.size()); ++i) {
    if (i >= made_of.size() || i >= key.sources.size() || made_of[i].name != key.sources[i].name)
      return Refused(path(), fmt::format("made of {} weight files of other names", made_of.size()));
    if (made_of[i] != key.sources[i])
      return Refused(path(), fmt::format("stale: {} changed after this file was made", made_of[i].name));
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.name < b.name; });
  for (size_t i = 1; i < entries_.size(); ++i)
    if (entries_[i].name == entries_[i - 1].name)
      return Refused(path(), fmt::format("weight {} is there twice", Printable(entries_[i].name)));
  return {};
}

Status PackedReader::CheckEntry(const Entry& e, uint64_t table_offset) const {
  // 4 bytes a value and 64 rows of padding at most: no product below leaves 64 bits.
  const bool fits = uint64_t(e.n) * uint64_t(e.k) <= table_offset * 2 && e.offset % kAlign == 0 &&
                    e.offset >= kAlign && e.offset <= table_offset && e.bytes <= table_offset - e.offset;
  if (!fits || e.bytes != weight::PackedBytes(e.layout, e.n, e.k))
    return Refused(path(), fmt::format("weight {}: {} bytes at {} for [{}, {}]", Printable(e.name), e.bytes,
                                       e.offset, e.n, e.k));
  return {};
}

Status PackedReader::CheckData(ThreadPool& pool) const {
  constexpr uint64_t kNone = ~uint64_t{0};
  std::atomic<uint64_t> damaged{kNone};  // the first by name, whatever the threads do
  pool.Run(static_cast<int64_t>(entries_.size()), [&](int64_t i, int) {
    const Entry& e = entries_[static_cast<size_t>(i)];
    if (HashOf(bytes().data() + e.offset, e.bytes) == e.hash) return;
    uint64_t first = damaged.load();
    while (uint64_t(i) < first && !damaged.compare_exchange_weak(first, uint64_t(i))) continue;
  });
  NIBBLE_RETURN_IF_ERROR(file_.CheckUnchanged());  // a cut file is reported as that
  if (damaged == kNone) return {};
  return Refused(path(), fmt::format("weight {} is damaged", Printable(entries_[damaged.load()].name)));
}

Result<weight::PackedWeight> PackedReader::Find(std::string_view name, weight::Layout layout, int n,
                                                int k) const {
  const auto e =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const Entry& entry, std::string_view other) { return entry.name < other; });
  if (e == entries_.end() || e->name != name)
    return Refused(path(), fmt::format("weight {} is missing", Printable(name)));
  if (e->layout != layout || e->n != n || e->k != k)
    return Refused(path(), fmt::format("weight {} is [{}, {}] in layout {}, the model has [{}, {}] in {}",
                                       Printable(name), e->n, e->k, int(e->layout), n, k, int(layout)));
  return weight::PackedAt(layout, n, k, bytes().data() + e->offset);
}

}  // namespace nibble::io
