// SPDX-License-Identifier: Apache-2.0
// Tests: a slow validator of JSON Schema, written from the specification and not from the grammar. Knows the
// keywords that the tests' schemas have; objects with `properties` have no others unless additionalProperties
// says so.
#pragma once
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

namespace nibble::test {

class SchemaValidator {
 public:
  using json = nlohmann::json;
  explicit SchemaValidator(json root) : root_(std::move(root)) {}
  bool Valid(const json& value) const { return Valid(root_, value); }

 private:
  static bool HasType(const std::string& type, const json& v) {
    if (type == "integer") {  // one beyond 64 bits is read as a float
      return v.is_number_integer() || (v.is_number_float() && std::floor(v.get<double>()) == v.get<double>());
    }
    return (type == "null" && v.is_null()) || (type == "boolean" && v.is_boolean()) ||
           (type == "number" && v.is_number()) || (type == "string" && v.is_string()) ||
           (type == "array" && v.is_array()) || (type == "object" && v.is_object());
  }
  static size_t Characters(const std::string& text) {
    size_t n = 0;
    for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
    return n;
  }
  bool Valid(const json& schema, const json& v) const {
    if (schema.is_boolean()) return schema.get<bool>();
    if (schema.contains("$ref")) {
      const std::string ref = schema["$ref"];
      if (!Valid(root_.at(json::json_pointer(ref.substr(1))), v)) return false;
    }
    if (schema.contains("type")) {
      const json& type = schema["type"];
      bool any = false;
      for (const json& t : type.is_array() ? type : json::array({type})) any |= HasType(t, v);
      if (!any) return false;
    }
    if (schema.contains("enum") &&
        std::find(schema["enum"].begin(), schema["enum"].end(), v) == schema["enum"].end()) {
      return false;
    }
    if (schema.contains("const") && schema["const"] != v) return false;
    if (schema.contains("anyOf")) {
      bool any = false;
      for (const json& branch : schema["anyOf"]) any |= Valid(branch, v);
      if (!any) return false;
    }
    for (const json& branch : schema.value("allOf", json::array())) {
      if (!Valid(branch, v)) return false;
    }
    return (!v.is_number() || ValidNumber(schema, v)) && (!v.is_string() || ValidString(schema, v)) &&
           (!v.is_array() || ValidArray(schema, v)) && (!v.is_object() || ValidObject(schema, v));
  }
  static bool ValidNumber(const json& schema, const json& v) {
    return !(schema.contains("minimum") && v < schema["minimum"]) &&
           !(schema.contains("maximum") && v > schema["maximum"]) &&
           !(schema.contains("exclusiveMinimum") && v <= schema["exclusiveMinimum"]) &&
           !(schema.contains("exclusiveMaximum") && v >= schema["exclusiveMaximum"]);
  }
  static bool ValidString(const json& schema, const json& v) {
    const size_t n = Characters(v.get<std::string>());
    return n >= schema.value("minLength", size_t{0}) && n <= schema.value("maxLength", SIZE_MAX);
  }
  bool ValidArray(const json& schema, const json& v) const {
    if (v.size() < schema.value("minItems", size_t{0}) || v.size() > schema.value("maxItems", SIZE_MAX))
      return false;
    const json prefix = schema.value("prefixItems", json::array());
    for (size_t i = 0; i < v.size(); ++i) {
      if (i < prefix.size() ? !Valid(prefix[i], v[i])
                            : schema.contains("items") && !Valid(schema["items"], v[i])) {
        return false;
      }
    }
    return true;
  }
  bool ValidObject(const json& schema, const json& v) const {
    for (const json& name : schema.value("required", json::array())) {
      if (!v.contains(name.get<std::string>())) return false;
    }
    const json properties = schema.value("properties", json::object());
    for (const auto& [key, member] : v.items()) {
      if (properties.contains(key)) {
        if (!Valid(properties[key], member)) return false;
      } else if (schema.contains("additionalProperties")) {
        if (!Valid(schema["additionalProperties"], member)) return false;
      } else if (schema.contains("properties")) {
        return false;
      }
    }
    return true;
  }
  json root_;
};

}  // namespace nibble::test
