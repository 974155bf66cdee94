// SPDX-License-Identifier: Apache-2.0
#include "model/packed_weights.h"

#include <unistd.h>

#include "base/check.h"

namespace nibble {

Result<std::unique_ptr<PackedWeights>> OpenPackedWeights(const std::string& dir, const io::Weights& weights,
                                                         Backend& backend, const ModelOptions& options) {
  NIBBLE_CHECK(options.pack_cache != PackCache::kOff, "a packed file that nobody asked for");
  ThreadPool* threads = backend.HostThreads();
  if (backend.Info().device != Device::kCpu || threads == nullptr)
    return Error(Code::kUnsupported,
                 "--pack-cache: packed files hold the layouts of the CPU, the device is {}",
                 backend.Info().name);
  NIBBLE_ASSIGN(const io::PackedKey key, io::MakePackedKey(weights, options.arithmetic == DType::kBF16));
  auto packed = std::make_unique<PackedWeights>();
  packed->dir = dir;
  packed->path = dir + "/" + io::PackedFileName(key);
  NIBBLE_ASSIGN(packed->stale, io::StalePackedFiles(dir, key));
  if (options.pack_cache == PackCache::kOn) {
    auto reader = io::PackedReader::Open(dir, key, *threads);
    if (!reader.ok() && reader.status().code() != Code::kNotFound) return reader.status();
    if (reader.ok()) {
      packed->reader = *std::move(reader);
      return packed;
    }
    if (!packed->stale.empty())
      return Error(Code::kCorrupt,
                   "{}/{}: stale: made of other weights than the folder holds; --pack-cache rebuild makes it "
                   "anew",
                   dir, packed->stale[0]);
  }
  NIBBLE_ASSIGN(io::PackedWriter writer, io::PackedWriter::Create(dir, key));
  packed->writer.emplace(std::move(writer));
  return packed;
}

Status CommitPackedWeights(PackedWeights* packed, std::vector<std::string>* notes) {
  if (!packed->writer) return {};
  NIBBLE_ASSIGN(const uint64_t bytes, packed->writer->Commit());
  packed->writer.reset();
  notes->push_back(fmt::format("{}: packed weights written, {} bytes", packed->path, bytes));
  for (const std::string& name : packed->stale) {
    const std::string path = packed->dir + "/" + name;
    if (unlink(path.c_str()) == 0) notes->push_back(fmt::format("{}: stale, removed", path));
  }
  return {};
}

}  // namespace nibble
