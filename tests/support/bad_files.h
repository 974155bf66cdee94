// SPDX-License-Identifier: Apache-2.0
// Builds safetensors files in memory, any field of which may lie.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/half.h"

namespace nibble {

// One header entry; every field is JSON text, so it can be anything.
struct FakeTensor {
  std::string name = "\"t\"";
  std::string dtype = "\"F32\"";
  std::string shape = "[2]";
  std::string offsets = "[0,8]";
  std::string Text() const {
    return name + ":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  }
};

inline std::string Header(const std::vector<FakeTensor>& tensors, const std::string& before = "") {
  std::string text = "{" + before;
  for (size_t i = 0; i < tensors.size(); ++i) text += (i ? "," : "") + tensors[i].Text();
  return text + "}";
}

// The whole file. `length` lies about the header, nothing is padded.
inline std::string FakeFile(const std::string& header, const std::string& data,
                            std::optional<uint64_t> length = std::nullopt) {
  const uint64_t n = length.value_or(header.size());
  std::string out(8, '\0');
  memcpy(out.data(), &n, 8);
  return out + header + data;
}

template <class T>
std::string Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// An honest file, tensor after tensor.
class HonestFile {
 public:
  HonestFile& Add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                  const std::string& bytes) {
    std::string dims;
    for (const int64_t d : shape) dims += (dims.empty() ? "" : ",") + std::to_string(d);
    tensors_.push_back(
        {"\"" + name + "\"", "\"" + dtype + "\"", "[" + dims + "]",
         "[" + std::to_string(data_.size()) + "," + std::to_string(data_.size() + bytes.size()) + "]"});
    data_ += bytes;
    return *this;
  }
  std::string Text() const { return FakeFile(Header(tensors_), data_); }

 private:
  std::vector<FakeTensor> tensors_;
  std::string data_;
};

// Numbers in [-1, 1) from a fixed generator, as bf16.
inline std::string RandomBf16(size_t count, uint64_t* state) {
  std::vector<uint16_t> out(count);
  for (uint16_t& v : out) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<uint16_t>(FloatToBits(static_cast<float>(*state >> 40) / 8388608.0f - 1.0f) >> 16);
  }
  return Bytes(out);
}

}  // namespace nibble
