// SPDX-License-Identifier: Apache-2.0
// Floor 0. The strict JSON document: simdjson checks and decodes the text, a flat array of nodes is what
// readers see. Depth and node count are bounded by one scan before simdjson runs.
#include "base/json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <new>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/printable.h"

namespace nibble {

// Nodes lie in one array: [0] is the document (its text the source name), [1] the root, and the children of a
// container are neighbours. A parent comes before its children.
struct JsonNode {
  JsonType type = JsonType::kNull;
  uint32_t to_parent = 0;  // nodes back to the container
  uint32_t key_size = 0;
  uint32_t size = 0;  // bytes of a string, children of a container
  const char* key = nullptr;
  union {
    bool boolean;
    int64_t integer;
    uint64_t natural;
    double number;
    const char* text;
    const JsonNode* children = nullptr;
  };

  std::string_view Key() const { return {key, key_size}; }
  std::string_view Text() const { return {text, size}; }
};

struct Json::Document {
  std::string source;
  std::unique_ptr<uint8_t[]> strings;  // decoded by simdjson
  std::unique_ptr<JsonNode[]> nodes;
};

namespace {

constexpr int kDeepest = 512;                   // the builder below recurses this far at most
constexpr size_t kMostNodes = size_t{1} << 23;  // below simdjson's 24-bit element counts, so those are exact

struct Extent {
  size_t nodes = 1;
  int depth = 0;
};

// Upper bounds from brackets and commas outside strings. Exact for valid text.
Extent Measure(std::string_view text) {
  Extent e;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == ',') {
      ++e.nodes;
    } else if (c == '[' || c == '{') {
      ++e.nodes;
      e.depth = std::max(e.depth, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return e;
}

std::string Path(const JsonNode* node) {  // "a.b[3]" up to, not including, the document node
  std::vector<const JsonNode*> chain;
  for (; node->to_parent != 0; node -= node->to_parent) chain.push_back(node);
  std::string path;
  for (size_t i = chain.size() - 1; i-- > 0;) {  // the root itself has no name
    const JsonNode* container = chain[i] - chain[i]->to_parent;
    if (container->type == JsonType::kArray) {
      path += fmt::format("[{}]", chain[i] - container->children);
    } else {
      path += (path.empty() ? "" : ".") + Printable(chain[i]->Key());
    }
  }
  return path;
}

std::string Located(const JsonNode* node) {
  const JsonNode* top = node;
  while (top->to_parent != 0) top -= top->to_parent;
  const std::string path = Path(node);
  return std::string(top->Text()) + (path.empty() ? "" : ": " + path);
}

std::string Found(const JsonNode* node) {
  if (!node) return "nothing";
  switch (node->type) {
    case JsonType::kNull:
      return "null";
    case JsonType::kBool:
      return node->boolean ? "true" : "false";
    case JsonType::kInt:
      return fmt::format("{}", node->integer);
    case JsonType::kUint:
      return fmt::format("{}", node->natural);
    case JsonType::kDouble:
      return fmt::format("{}", node->number) + " (written as a fraction)";
    case JsonType::kString:
      return '"' + Printable(node->Text()) + '"';
    case JsonType::kArray:
      return fmt::format("an array of {}", node->size);
    case JsonType::kObject:
      return fmt::format("an object of {}", node->size);
  }
  return "";
}

Status Unwanted(const JsonNode* node, std::string_view wanted) {
  return Error(Code::kInvalidArgument, "{}: wanted {}, found {}", node ? Located(node) : "(no value)", wanted,
               Found(node));
}

// Turns simdjson's tape into nodes.
class Builder {
 public:
  Builder(JsonNode* nodes, size_t capacity) : nodes_(nodes), capacity_(capacity) {}

  Status Fill(simdjson::dom::element from, JsonNode* to) {
    using simdjson::dom::element_type;
    switch (from.type()) {
      case element_type::NULL_VALUE:
        return {};
      case element_type::BOOL:
        to->type = JsonType::kBool;
        return Check(from.get(to->boolean), to);
      case element_type::INT64:
        to->type = JsonType::kInt;
        return Check(from.get(to->integer), to);
      case element_type::UINT64:
        to->type = JsonType::kUint;
        return Check(from.get(to->natural), to);
      case element_type::DOUBLE:
        to->type = JsonType::kDouble;
        return Check(from.get(to->number), to);
      case element_type::STRING: {
        std::string_view text;
        NIBBLE_RETURN_IF_ERROR(Check(from.get(text), to));
        to->type = JsonType::kString;
        to->text = text.data();
        to->size = static_cast<uint32_t>(text.size());
        return CheckText(text, to);
      }
      case element_type::ARRAY:
        return FillArray(from, to);
      case element_type::OBJECT:
        return FillObject(from, to);
    }
    return {};
  }

 private:
  static Status Check(simdjson::error_code code, const JsonNode* at) {
    if (code == simdjson::SUCCESS) return {};
    return Error(Code::kCorrupt, "{}: {}", Located(at), simdjson::error_message(code));
  }

  // simdjson lets an escaped lone surrogate through; as bytes it is not UTF-8.
  static Status CheckText(std::string_view text, const JsonNode* at) {
    if (simdjson::validate_utf8(text.data(), text.size())) return {};
    return Error(Code::kCorrupt, "{}: a string that is not Unicode (lone surrogate)", Located(at));
  }

  JsonNode* Children(JsonNode* parent, JsonType type, size_t count) {
    NIBBLE_CHECK(next_ + count <= capacity_, "more JSON nodes than were measured");
    JsonNode* children = nodes_ + next_;
    next_ += count;
    parent->type = type;
    parent->size = static_cast<uint32_t>(count);
    parent->children = children;
    for (size_t i = 0; i < count; ++i) children[i].to_parent = static_cast<uint32_t>(children + i - parent);
    return children;
  }

  Status FillArray(simdjson::dom::element from, JsonNode* to) {
    simdjson::dom::array array;
    NIBBLE_RETURN_IF_ERROR(Check(from.get(array), to));
    JsonNode* child = Children(to, JsonType::kArray, array.size());
    for (const simdjson::dom::element value : array) NIBBLE_RETURN_IF_ERROR(Fill(value, child++));
    return {};
  }

  Status FillObject(simdjson::dom::element from, JsonNode* to) {
    simdjson::dom::object object;
    NIBBLE_RETURN_IF_ERROR(Check(from.get(object), to));
    JsonNode* child = Children(to, JsonType::kObject, object.size());
    for (const simdjson::dom::key_value_pair member : object) {
      child->key = member.key.data();
      child->key_size = static_cast<uint32_t>(member.key.size());
      NIBBLE_RETURN_IF_ERROR(CheckText(member.key, to));
      NIBBLE_RETURN_IF_ERROR(Fill(member.value, child++));
    }
    return CheckUnique(to);
  }

  // Sorting, unlike a hash set, cannot be made slow by chosen keys.
  static Status CheckUnique(const JsonNode* object) {
    std::vector<std::string_view> keys(object->size);
    for (uint32_t i = 0; i < object->size; ++i) keys[i] = object->children[i].Key();
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return {};
    return Error(Code::kCorrupt, "{}: the key \"{}\" appears twice", Located(object), Printable(*twice));
  }

  JsonNode* nodes_;
  size_t capacity_;
  size_t next_ = 2;  // after the document and the root
};

}  // namespace

Json::Json(std::unique_ptr<Document> doc) : doc_(std::move(doc)) {}
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(Json&&) noexcept = default;
Json::~Json() = default;
JsonRef Json::root() const { return JsonRef(&doc_->nodes[1]); }

Result<Json> Json::Parse(std::string_view text, const JsonLimits& limits, std::string_view source) {
  NIBBLE_CHECK(limits.max_depth <= kDeepest, "JsonLimits::max_depth");
  if (text.size() > limits.max_bytes || text.size() > simdjson::SIMDJSON_MAXSIZE_BYTES) {
    return Error(Code::kInvalidArgument, "{}: {} bytes of JSON, at most {} are read", source, text.size(),
                 limits.max_bytes);
  }
  if (text.substr(0, 3) == "\xef\xbb\xbf") {
    return Error(Code::kCorrupt, "{}: begins with a byte order mark, JSON has none", source);
  }
  const Extent extent = Measure(text);
  if (extent.depth > limits.max_depth) {
    return Error(Code::kInvalidArgument, "{}: JSON nested {} deep, at most {} are read", source, extent.depth,
                 limits.max_depth);
  }
  const size_t max_nodes = std::min(limits.max_nodes, kMostNodes);
  if (extent.nodes > max_nodes) {
    return Error(Code::kInvalidArgument, "{}: {} JSON values, at most {} are read", source, extent.nodes,
                 max_nodes);
  }

  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const simdjson::error_code code = parser.parse(text.data(), text.size()).get(root);
  if (code == simdjson::MEMALLOC) return Error(Code::kOutOfMemory, "{}: no memory to read the JSON", source);
  if (code != simdjson::SUCCESS) {
    return Error(Code::kCorrupt, "{}: not valid JSON: {}", source, simdjson::error_message(code));
  }

  auto doc = std::make_unique<Document>();
  doc->source = source;
  const size_t capacity = extent.nodes + 1;
  doc->nodes.reset(new (std::nothrow) JsonNode[capacity]);
  if (!doc->nodes) return Error(Code::kOutOfMemory, "{}: no memory to read the JSON", source);
  doc->nodes[0].type = JsonType::kString;
  doc->nodes[0].text = doc->source.data();
  doc->nodes[0].size = static_cast<uint32_t>(doc->source.size());
  doc->nodes[1].to_parent = 1;
  NIBBLE_RETURN_IF_ERROR(Builder(doc->nodes.get(), capacity).Fill(root, &doc->nodes[1]));
  doc->strings = std::move(parser.doc.string_buf);
  return Json(std::move(doc));
}

Result<Json> Json::ReadFile(const std::string& path, const JsonLimits& limits) {
  NIBBLE_ASSIGN(const std::string text, ReadWholeFile(path, limits.max_bytes));
  return Parse(text, limits, path);
}

JsonType JsonRef::type() const { return node_ ? node_->type : JsonType::kNull; }
std::string JsonRef::Where() const { return node_ ? Located(node_) : "(no value)"; }

Result<bool> JsonRef::Bool() const {
  if (type() != JsonType::kBool) return Unwanted(node_, "true or false");
  return node_->boolean;
}

Result<int64_t> JsonRef::Int(int64_t min, int64_t max) const {
  if (type() != JsonType::kInt || node_->integer < min || node_->integer > max) {
    return Unwanted(node_, fmt::format("an integer in [{}, {}]", min, max));
  }
  return node_->integer;
}

Result<uint64_t> JsonRef::Uint() const {
  if (type() == JsonType::kUint) return node_->natural;
  if (type() != JsonType::kInt || node_->integer < 0) return Unwanted(node_, "an integer in [0, 2^64)");
  return static_cast<uint64_t>(node_->integer);
}

Result<double> JsonRef::Number() const {
  if (type() == JsonType::kInt) return static_cast<double>(node_->integer);
  if (type() == JsonType::kUint) return static_cast<double>(node_->natural);
  if (type() != JsonType::kDouble) return Unwanted(node_, "a number");
  return node_->number;
}

Result<std::string_view> JsonRef::String() const {
  if (type() != JsonType::kString) return Unwanted(node_, "a string");
  return node_->Text();
}

size_t JsonRef::size() const { return is_array() || is_object() ? node_->size : 0; }

JsonRef JsonRef::operator[](size_t i) const {
  NIBBLE_CHECK(i < size(), "JSON element out of range");
  return JsonRef(&node_->children[i]);
}

std::string_view JsonRef::KeyAt(size_t i) const {
  NIBBLE_CHECK(is_object() && i < size(), "JSON member out of range");
  return node_->children[i].Key();
}

std::optional<JsonRef> JsonRef::Find(std::string_view key) const {
  if (!is_object()) return std::nullopt;
  for (uint32_t i = 0; i < node_->size; ++i) {
    if (node_->children[i].Key() == key) return JsonRef(&node_->children[i]);
  }
  return std::nullopt;
}

Result<JsonRef> JsonRef::Get(std::string_view key) const {
  if (!is_object()) return Unwanted(node_, fmt::format("an object with \"{}\"", Printable(key)));
  if (auto found = Find(key)) return *found;
  const std::string path = Path(node_);
  return Error(Code::kNotFound, "{}{}{} is missing", Where(), path.empty() ? ": " : ".", Printable(key));
}

namespace {

// The member, or nothing when it is absent or null: the caller then takes its fallback.
std::optional<JsonRef> Given(const JsonRef& object, std::string_view key) {
  auto found = object.Find(key);
  return found && !found->is_null() ? found : std::nullopt;
}

}  // namespace

Result<bool> JsonRef::GetBool(std::string_view key) const {
  NIBBLE_ASSIGN(const JsonRef value, Get(key));
  return value.Bool();
}

Result<int64_t> JsonRef::GetInt(std::string_view key, int64_t min, int64_t max) const {
  NIBBLE_ASSIGN(const JsonRef value, Get(key));
  return value.Int(min, max);
}

Result<double> JsonRef::GetNumber(std::string_view key) const {
  NIBBLE_ASSIGN(const JsonRef value, Get(key));
  return value.Number();
}

Result<std::string_view> JsonRef::GetString(std::string_view key) const {
  NIBBLE_ASSIGN(const JsonRef value, Get(key));
  return value.String();
}

Result<bool> JsonRef::GetBoolOr(std::string_view key, bool fallback) const {
  const auto value = Given(*this, key);
  return value ? value->Bool() : Result<bool>(fallback);
}

Result<int64_t> JsonRef::GetIntOr(std::string_view key, int64_t fallback, int64_t min, int64_t max) const {
  const auto value = Given(*this, key);
  return value ? value->Int(min, max) : Result<int64_t>(fallback);
}

Result<double> JsonRef::GetNumberOr(std::string_view key, double fallback) const {
  const auto value = Given(*this, key);
  return value ? value->Number() : Result<double>(fallback);
}

Result<std::string_view> JsonRef::GetStringOr(std::string_view key, std::string_view fallback) const {
  const auto value = Given(*this, key);
  return value ? value->String() : Result<std::string_view>(fallback);
}

}  // namespace nibble
