// SPDX-License-Identifier: Apache-2.0
// Tests. Tiny model folders: weights from splitmix64, a minimal safetensors writer.
#include "tests/support/tiny_model.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>

#include "base/check.h"
#include "base/half.h"

namespace nibble::test {
namespace {

using nlohmann::json;

constexpr uint64_t kFnvBasis = 0xcbf29ce484222325;

std::string GoldenDir() { return NIBBLE_SOURCE_DIR "/tests/golden/tiny"; }

uint64_t Fnv1a(std::string_view bytes, uint64_t hash = kFnvBasis) {
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

// splitmix64 at step `index` of the stream that `seed` starts; its top 24 bits as a number in [-1, 1).
float UnitValue(uint64_t seed, uint64_t index) {
  uint64_t x = seed + index * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  x ^= x >> 31;
  constexpr int64_t kHalfRange = int64_t{1} << 23;
  return static_cast<float>(static_cast<int64_t>(x >> 40) - kHalfRange) / static_cast<float>(kHalfRange);
}

uint16_t FloatToBf16(float f) {  // nearest even; the values here are finite
  const uint32_t bits = FloatToBits(f);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
void Append(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  NIBBLE_CHECK(file.good(), path.c_str());
}

int64_t Count(const json& shape) {
  int64_t count = 1;
  for (const json& dim : shape) count *= dim.get<int64_t>();
  return count;
}

void WriteSafetensors(const json& golden, const std::vector<std::string>& names, const std::string& path) {
  json header;
  std::string data;
  for (const std::string& name : names) {
    const json& shape = golden["tensors"][name];
    const size_t begin = data.size();
    data += TinyTensor(name, Count(shape), golden["dtype"]);
    header[name] = {{"dtype", golden["dtype"]}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes;
  Append(bytes, static_cast<uint64_t>(text.size()));
  WriteFile(path, bytes + text + data);
}

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "nibble-XXXXXX").string();
  NIBBLE_CHECK(mkdtemp(pattern.data()) != nullptr, pattern.c_str());
  path_ = pattern;
}
TempDir::~TempDir() { std::filesystem::remove_all(path_); }

std::vector<std::string> TinyModelNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenDir()))
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

json ReadTinyGolden(const std::string& name) {
  const std::string path = GoldenDir() + "/" + name + ".json";
  std::ifstream file(path);
  NIBBLE_CHECK(file.good(), path.c_str());
  return json::parse(file);
}

std::string TinyTensor(const std::string& name, int64_t count, const std::string& dtype) {
  const uint64_t seed = Fnv1a(name);
  const bool norm = name.ends_with("norm.weight");
  std::string bytes;
  for (int64_t i = 1; i <= count; ++i) {
    const float unit = UnitValue(seed, static_cast<uint64_t>(i));
    const float value = norm ? 1.0f + 0.5f * unit : 0.25f * unit;
    if (dtype == "F32") {
      Append(bytes, value);
    } else if (dtype == "F16") {
      Append(bytes, FloatToHalf(value));
    } else {
      NIBBLE_CHECK(dtype == "BF16", dtype.c_str());
      Append(bytes, FloatToBf16(value));
    }
  }
  return bytes;
}

std::string TinyChecksum(const json& golden) {
  uint64_t hash = kFnvBasis;
  for (const auto& [name, shape] : golden["tensors"].items())
    hash = Fnv1a(TinyTensor(name, Count(shape), golden["dtype"]), hash);
  return fmt::format("{:016x}", hash);
}

void WriteTinyModel(const json& golden, const json& config_patch, const std::string& dir) {
  json config = golden["config"];
  config.update(config_patch);
  WriteFile(dir + "/config.json", config.dump());

  const size_t files = golden["files"];
  std::vector<std::vector<std::string>> shards(files);
  size_t next = 0;
  for (const auto& [name, shape] : golden["tensors"].items()) shards[next++ % files].push_back(name);
  if (files == 1) {
    WriteSafetensors(golden, shards[0], dir + "/model.safetensors");
    return;
  }
  json weight_map;
  for (size_t i = 0; i < files; ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files);
    WriteSafetensors(golden, shards[i], dir + "/" + file);
    for (const std::string& name : shards[i]) weight_map[name] = file;
  }
  const json index = {{"metadata", json::object()}, {"weight_map", weight_map}};
  WriteFile(dir + "/model.safetensors.index.json", index.dump());
}

}  // namespace nibble::test
