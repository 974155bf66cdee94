// SPDX-License-Identifier: Apache-2.0
// Floor 0. A strict, bounded JSON document for files we did not write: depth and size limits, no duplicate
// keys, exact integers, and typed getters whose errors name the file, the path of the key, what was wanted
// and what was found.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

enum class JsonType : uint8_t { kNull, kBool, kInt, kUint, kDouble, kString, kArray, kObject };

struct JsonLimits {
  size_t max_bytes = size_t{16} << 20;
  int max_depth = 64;                  // at most 512
  size_t max_nodes = size_t{8} << 20;  // values of every kind; a node costs 40 bytes
};

struct JsonNode;  // base/json.cc

// A value inside a Json document; valid while the document lives. Copyable, two words or fewer.
class JsonRef {
 public:
  JsonRef() = default;
  JsonType type() const;
  bool is_null() const { return type() == JsonType::kNull; }
  bool is_object() const { return type() == JsonType::kObject; }
  bool is_array() const { return type() == JsonType::kArray; }
  bool is_string() const { return type() == JsonType::kString; }

  std::string Where() const;                // "config.json: rope_scaling.factor", for messages
  const void* id() const { return node_; }  // tells the values of a document apart

  // Typed values. kInvalidArgument with Where(), the wanted type and range, and what was found.
  Result<bool> Bool() const;
  Result<int64_t> Int(int64_t min, int64_t max) const;  // an integer token: 1.0 and 1e3 are refused
  Result<uint64_t> Uint() const;                        // exact up to 2^64-1
  Result<double> Number() const;                        // integer or float, finite
  Result<std::string_view> String() const;              // valid UTF-8, escapes resolved

  // Arrays and objects, in file order.
  size_t size() const;                                      // 0 for scalars
  JsonRef operator[](size_t i) const;                       // element i, or the value of member i
  std::string_view KeyAt(size_t i) const;                   // name of member i of an object
  std::optional<JsonRef> Find(std::string_view key) const;  // linear; nullopt when absent or not an object
  Result<JsonRef> Get(std::string_view key) const;          // kNotFound with Where() when absent

  // Members of an object by key. The ...Or forms return the fallback when the key is absent or null.
  Result<bool> GetBool(std::string_view key) const;
  Result<int64_t> GetInt(std::string_view key, int64_t min, int64_t max) const;
  Result<double> GetNumber(std::string_view key) const;
  Result<std::string_view> GetString(std::string_view key) const;
  Result<bool> GetBoolOr(std::string_view key, bool fallback) const;
  Result<int64_t> GetIntOr(std::string_view key, int64_t fallback, int64_t min, int64_t max) const;
  Result<double> GetNumberOr(std::string_view key, double fallback) const;
  Result<std::string_view> GetStringOr(std::string_view key, std::string_view fallback) const;

 private:
  friend class Json;
  explicit JsonRef(const JsonNode* node) : node_(node) {}
  const JsonNode* node_ = nullptr;
};

class Json {
 public:
  // `source` (a file name) opens every message. `text` need not outlive the document.
  static Result<Json> Parse(std::string_view text, const JsonLimits& limits, std::string_view source);
  // Reads a regular file of at most limits.max_bytes.
  static Result<Json> ReadFile(const std::string& path, const JsonLimits& limits);
  Json(Json&&) noexcept;
  Json& operator=(Json&&) noexcept;
  ~Json();
  JsonRef root() const;

 private:
  struct Document;
  explicit Json(std::unique_ptr<Document>);
  std::unique_ptr<Document> doc_;
};

}  // namespace nibble
