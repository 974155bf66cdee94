// SPDX-License-Identifier: Apache-2.0
// Tests. The tiny random models of tests/golden/tiny: their weights are computed here from tensor names, the
// same bytes that tools/golden/tiny_models.py gave to transformers.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::test {

// A folder under the system's temporary directory that goes away with the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<std::string> TinyModelNames();               // from the files in tests/golden/tiny, sorted
nlohmann::json ReadTinyGolden(const std::string& name);  // keys: see tools/golden/tiny_models.py

// The bytes of a tensor as a safetensors file holds it. `dtype`: F32, F16 or BF16.
std::string TinyTensor(const std::string& name, int64_t count, const std::string& dtype);

// FNV-1a over all tensors in name order, as hexadecimal digits: what the golden's "checksum" is.
std::string TinyChecksum(const nlohmann::json& golden);

// Writes config.json and the safetensors file or shards. `config_patch` replaces members of the golden's
// config.
void WriteTinyModel(const nlohmann::json& golden, const nlohmann::json& config_patch, const std::string& dir);

}  // namespace nibble::test
