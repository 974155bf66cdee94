// SPDX-License-Identifier: Apache-2.0
#include "apps/server/structured.h"

#include "apps/server/api_error.h"
#include "apps/server/json_text.h"
#include "text/gbnf.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace nibble::server {
namespace {

using Kind = Structured::Kind;

constexpr const char* kAnyObject = R"({"type":"object"})";

class Reader {
 public:
  Status Field(JsonRef body, std::string_view key, Kind kind) {
    const auto value = body.Find(key);
    if (!value || value->is_null()) return {};
    return Value(*value, kind);
  }

  Status Value(JsonRef value, Kind kind) {
    NIBBLE_RETURN_IF_ERROR(Begin(value, kind));
    if (kind == Kind::kSchema) return Schema(value);
    if (kind == Kind::kChoice) return Choices(value);
    NIBBLE_ASSIGN(const std::string_view text, value.String());
    if (text.empty())
      return Error(Code::kInvalidArgument, "{}: empty, which describes no text", value.Where());
    got_.text = text;
    return {};
  }

  Status AnyObject(JsonRef where) {
    NIBBLE_RETURN_IF_ERROR(Begin(where, Kind::kSchema));
    got_.text = kAnyObject;
    return {};
  }

  Structured Take() { return std::move(got_); }

 private:
  Status Begin(JsonRef value, Kind kind) {
    if (got_.kind != Kind::kNone)
      return Error(Code::kInvalidArgument, "{}: {} already says what the answer must be", value.Where(),
                   got_.field);
    got_.kind = kind;
    got_.field = value.Where();
    if (const size_t at = got_.field.find(": "); at != got_.field.npos) got_.field.erase(0, at + 2);
    return {};
  }

  Status Schema(JsonRef value) {
    if (value.is_string()) {  // vLLM takes the text of a schema too
      got_.text = *value.String();
    } else if (value.is_object() || value.type() == JsonType::kBool) {
      got_.text = ToText(value);
    } else {
      return Error(Code::kInvalidArgument, "{}: wanted a JSON schema", value.Where());
    }
    return {};
  }

  Status Choices(JsonRef value) {
    if (!value.is_array() || value.size() == 0)
      return Error(Code::kInvalidArgument, "{}: wanted an array of strings, at least one", value.Where());
    for (size_t i = 0; i < value.size(); ++i) {
      NIBBLE_ASSIGN(const std::string_view text, value[i].String());
      got_.choices.emplace_back(text);
    }
    return {};
  }

  Structured got_;
};

Status ReadResponseFormat(JsonRef body, Reader* reader) {
  const auto format = body.Find("response_format");
  if (!format || format->is_null()) return {};
  NIBBLE_ASSIGN(const std::string_view type, format->GetString("type"));
  if (type == "text") return {};
  if (type == "json_object") return reader->AnyObject(*format);
  if (type == "json_schema") {
    NIBBLE_ASSIGN(const JsonRef outer, format->Get("json_schema"));
    NIBBLE_ASSIGN(const JsonRef schema, outer.Get("schema"));
    return reader->Value(schema, Kind::kSchema);
  }
  return Error(Code::kInvalidArgument, "{}.type: wanted text, json_object or json_schema, found {}",
               format->Where(), type.substr(0, 64));
}

Status ReadStructuredOutputs(JsonRef body, Reader* reader) {
  const auto outputs = body.Find("structured_outputs");
  if (!outputs || outputs->is_null()) return {};
  if (!outputs->is_object()) return Error(Code::kInvalidArgument, "{}: wanted an object", outputs->Where());
  NIBBLE_RETURN_IF_ERROR(reader->Field(*outputs, "json", Kind::kSchema));
  NIBBLE_RETURN_IF_ERROR(reader->Field(*outputs, "regex", Kind::kRegex));
  NIBBLE_RETURN_IF_ERROR(reader->Field(*outputs, "grammar", Kind::kGrammar));
  NIBBLE_RETURN_IF_ERROR(reader->Field(*outputs, "choice", Kind::kChoice));
  NIBBLE_ASSIGN(const bool any_object, outputs->GetBoolOr("json_object", false));
  return any_object ? reader->AnyObject(*outputs) : Status();
}

Result<Grammar> ChoiceGrammar(const std::vector<std::string>& choices) {
  Grammar grammar;
  std::vector<Grammar::NodeId> nodes;
  for (const std::string& choice : choices) nodes.push_back(grammar.Literal(choice));
  const int root = grammar.AddRule("root");
  grammar.Define(root, grammar.Choice(nodes));
  grammar.SetRoot(root);
  NIBBLE_RETURN_IF_ERROR(grammar.Check());
  return grammar;
}

Result<Grammar> Compile(const Structured& structured) {
  switch (structured.kind) {
    case Kind::kRegex:
      return RegexGrammar(structured.text);
    case Kind::kGrammar:
      return ParseGbnf(structured.text);
    case Kind::kChoice:
      return ChoiceGrammar(structured.choices);
    default:
      break;
  }
  NIBBLE_ASSIGN(JsonSchemaGrammar compiled, CompileJsonSchema(structured.text));
  return std::move(compiled.grammar);
}

Status Named(const Structured& structured, const Status& status) {
  return Error(status.code() == Code::kOutOfMemory ? status.code() : Code::kInvalidArgument, "{}: {}",
               structured.field, status.message());
}

}  // namespace

Result<Structured> ParseStructured(JsonRef body) {
  Reader reader;
  NIBBLE_RETURN_IF_ERROR(ReadResponseFormat(body, &reader));
  NIBBLE_RETURN_IF_ERROR(ReadStructuredOutputs(body, &reader));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "guided_json", Kind::kSchema));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "guided_regex", Kind::kRegex));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "guided_grammar", Kind::kGrammar));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "guided_choice", Kind::kChoice));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "grammar", Kind::kGrammar));
  NIBBLE_RETURN_IF_ERROR(reader.Field(body, "json_schema", Kind::kSchema));
  return reader.Take();
}

Result<std::shared_ptr<Constraint>> MakeConstraint(const Structured& structured,
                                                   std::shared_ptr<const TokenTrie> trie) {
  if (structured.kind == Kind::kNone) return std::shared_ptr<Constraint>();
  auto grammar = Compile(structured);
  if (!grammar.ok()) return Named(structured, grammar.status());
  auto constraint = Constraint::Make(*grammar, std::move(trie));
  if (!constraint.ok()) return Named(structured, constraint.status());
  return constraint;
}

}  // namespace nibble::server
