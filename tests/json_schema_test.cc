// SPDX-License-Identifier: Apache-2.0
// JSON Schema as a grammar against the verdicts of an independent validator (tools/golden/json_schema.py),
// what is refused and why, hostile schemas, and schemas broken at random.
#include "text/json_schema.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/bad_inputs.h"
#include "tests/support/grammar_text.h"
#include "tests/support/schema_validator.h"

namespace nibble {
namespace {

using nlohmann::json;
using test::GrammarReader;

json Golden() {
  std::ifstream file(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/json_schema.json");
  return json::parse(file);
}

// Texts on which the grammar of `schema` and the verdicts differ.
int Differences(const std::string& schema, const json& verdicts, bool explain) {
  const auto compiled = CompileJsonSchema(schema);
  if (!compiled.ok()) {
    if (explain) ADD_FAILURE() << schema << ": " << compiled.status().message();
    return -1;
  }
  GrammarReader reader(compiled->grammar);
  if (!reader.status().ok()) {
    if (explain) ADD_FAILURE() << schema << ": " << reader.status().message();
    return -1;
  }
  int differences = 0;
  for (const bool valid : {true, false}) {
    for (const json& text : verdicts[valid ? "valid" : "invalid"]) {
      if (reader.Accepts(text.get<std::string>()) == valid) continue;
      ++differences;
      if (explain)
        ADD_FAILURE() << schema << ": " << text.get<std::string>() << " is " << (valid ? "valid" : "invalid");
    }
  }
  return differences;
}

TEST(JsonSchema, AcceptsWhatTheValidatorAccepts) {
  const json golden = Golden();
  ASSERT_GE(golden.size(), 40u);
  for (const json& c : golden) EXPECT_EQ(Differences(c["schema"], c, true), 0);
}

TEST(JsonSchema, AChangedSchemaIsCaught) {
  const json golden = Golden();
  const std::vector<std::pair<std::string, std::string>> changes{
      {R"("minimum": 5)", R"("minimum": 6)"},
      {R"("maximum": 99)", R"("maximum": 98)"},
      {R"("maxLength": 3)", R"("maxLength": 4)"},
      {R"("maxItems": 3)", R"("maxItems": 2)"},
      {R"("exclusiveMinimum": -1.25)", R"("minimum": -1.25)"},
      {R"(, "required": ["c"])", ""},
      {R"("additionalProperties": {"type": "string"})", R"("additionalProperties": true)"}};
  int caught = 0;
  for (const json& c : golden) {
    for (const auto& [from, to] : changes) {
      std::string schema = c["schema"];
      const size_t at = schema.find(from);
      if (at == std::string::npos) continue;
      schema.replace(at, from.size(), to);
      caught += Differences(schema, c, false) > 0 ? 1 : 0;
    }
  }
  EXPECT_GE(caught, 7);
}

// A text of the grammar, each byte drawn evenly from those that may come; towards its end when it grows long.
std::string RandomText(GrammarReader* reader, std::mt19937* rng) {
  std::string text;
  GrammarMatcher::Config at = reader->matcher().Start();
  for (;;) {
    std::vector<uint8_t> bytes;
    for (int b = 0; b < 256; ++b) {
      if (reader->matcher().Step(at, static_cast<uint8_t>(b)) != GrammarMatcher::kDead)
        bytes.push_back(static_cast<uint8_t>(b));
    }
    const bool may_end = reader->matcher().MayEnd(at);
    if (may_end && (bytes.empty() || text.size() > 200 || (*rng)() % 4 == 0)) return text;
    if (bytes.empty() || text.size() > 4000) return text + "<stuck>";
    uint8_t byte = bytes[(*rng)() % bytes.size()];
    if (text.size() > 200) {  // whatever closes
      for (const char c : {'"', ']', '}', 'e', 'l', 's', 'n', '0'}) {
        if (std::find(bytes.begin(), bytes.end(), static_cast<uint8_t>(c)) != bytes.end()) {
          byte = static_cast<uint8_t>(c);
          break;
        }
      }
    }
    text.push_back(static_cast<char>(byte));
    at = reader->matcher().Step(at, byte);
  }
}

TEST(JsonSchema, RandomTextsOfTheGrammarAreValid) {
  std::mt19937 rng(7);
  int texts = 0, others_caught = 0;
  const test::SchemaValidator other(json::parse(R"({"type": "integer", "minimum": 1000})"));
  for (const json& c : Golden()) {
    const std::string schema = c["schema"];
    if (schema.find("pattern") != std::string::npos || schema.find("format") != std::string::npos ||
        schema.find("oneOf") != std::string::npos || schema.find("allOf") != std::string::npos) {
      continue;  // the slow validator does not know these, or takes allOf's properties by themselves
    }
    GrammarReader reader(CompileJsonSchema(schema)->grammar);
    const test::SchemaValidator validator(json::parse(schema));
    for (int i = 0; i < 40; ++i, ++texts) {
      const std::string text = RandomText(&reader, &rng);
      const json value = json::parse(text, nullptr, false);
      if (value.is_discarded() && text.find("<stuck>") == std::string::npos &&
          text.find_first_of("eE") != std::string::npos) {
        continue;  // a number beyond double: the parser's limit, not JSON's
      }
      EXPECT_FALSE(value.is_discarded()) << schema << ": " << text;
      EXPECT_TRUE(value.is_discarded() || validator.Valid(value)) << schema << ": " << text;
      others_caught += other.Valid(value) ? 0 : 1;
    }
  }
  EXPECT_GE(texts, 1500);
  EXPECT_GE(others_caught, texts / 2);  // the validator can say no
}

struct Bad {
  const char* schema;
  std::vector<std::string> words;  // in the message
};

TEST(JsonSchema, RefusesWithPathAndReason) {
  const std::vector<Bad> cases{
      {"", {"schema"}},
      {"[1]", {"wanted a schema"}},
      {"{\"type\": \"int\"}", {"schema: type", "int"}},
      {R"({"properties": {"a": {"minLenght": 1}}})", {"properties.a.minLenght", "unknown keyword"}},
      {R"({"not": {}})", {"schema: not", "not supported"}},
      {R"({"type": "array", "uniqueItems": true})", {"uniqueItems"}},
      {R"({"items": [{"type": "null"}]})", {"items", "prefixItems"}},
      {R"({"patternProperties": {"a": {}}})", {"patternProperties"}},
      {R"({"multipleOf": 0})", {"multipleOf"}},
      {R"({"format": "email"})", {"format", "email"}},
      {R"x({"pattern": "(?<=x)"})x", {"schema: pattern", "look-behind"}},
      {R"({"pattern": "^+[a-z]$"})", {"pattern", "repeat"}},
      {R"({"pattern": "a", "maxLength": 3})", {"beside"}},
      {R"({"enum": ["a"], "minLength": 1})", {"minLength", "beside"}},
      {R"({"enum": [1], "const": 1})", {"two lists"}},
      {R"({"minItems": 1000000000})", {"minItems", "10000", "1000000000"}},
      {R"({"maxLength": -1})", {"maxLength", "-1"}},
      {R"({"minLength": 3, "maxLength": 2})", {"minLength 3", "maxLength 2"}},
      {R"({"type": "integer", "minimum": 5, "maximum": 4})", {"no text matches"}},
      {"false", {"no text matches"}},
      {R"({"enum": []})", {"no text matches"}},
      {R"({"type": "integer", "minimum": 1e100})", {"minimum"}},
      {R"({"type": "integer", "exclusiveMinimum": true})", {"exclusiveMinimum", "number"}},
      {R"({"$ref": "#"})", {"refers to itself"}},
      {R"({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})",
       {"refers to itself"}},
      {R"({"$ref": "#/$defs/x"})", {"points to nothing"}},
      {R"({"$ref": "https://example.com/s.json"})", {"does not point into this schema"}},
      {R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})", {"left recursion"}},
      {R"({"anyOf": []})", {"anyOf", "array"}},
      {R"({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})", {"no text matches"}},
      {R"({"a": 1, "a": 2})", {"twice"}},
  };
  for (const Bad& bad : cases) {
    const auto compiled = CompileJsonSchema(bad.schema);
    const Status status =
        compiled.ok() ? test::Usable<Result<Grammar>>(compiled->grammar) : compiled.status();
    EXPECT_FALSE(status.ok()) << bad.schema;
    for (const std::string& word : bad.words) {
      EXPECT_NE(status.message().find(word), std::string::npos) << bad.schema << ": " << status.message();
    }
  }
}

TEST(JsonSchema, SaysWhereItIsWider) {
  const auto compiled =
      CompileJsonSchema(R"({"properties": {"a": {"oneOf": [{"type": "null"}, {"type": "string"}]}}})");
  ASSERT_TRUE(compiled.ok());
  ASSERT_EQ(compiled->notes.size(), 1u);
  EXPECT_NE(compiled->notes[0].find("properties.a.oneOf"), std::string::npos);
}

Status Compile(const std::string& schema) {
  const auto compiled = CompileJsonSchema(schema);
  return compiled.ok() ? test::Usable<Result<Grammar>>(compiled->grammar) : compiled.status();
}

TEST(JsonSchema, HostileSchemasEndInTime) {
  const auto repeated = [](const std::string& s, size_t n) {
    std::string out;
    for (size_t i = 0; i < n; ++i) out += s;
    return out;
  };
  Family family("hostile schemas");
  const auto refused = [&](const char* id, const std::string& schema) {
    family.Refused(id, [schema] { return Compile(schema); }, {}, {.seconds = 4, .growth = size_t{256} << 20});
  };
  refused("nested 3000 deep", repeated("{\"items\":", 3000) + "{}" + repeated("}", 3000));
  refused("enum of a million", "{\"enum\": [" + repeated("1,", 1000000) + "1]}");
  refused("enum of 20000", "{\"enum\": [" + repeated("1,", 20000) + "1]}");
  refused("a string of a megabyte", "{\"const\": \"" + repeated("a", 1 << 20) + "\"}");
  refused("pattern of 100000 groups", "{\"pattern\": \"" + repeated("(", 100000) + "\"}");
  refused("a{1000000}", R"({"pattern": "a{1000000}"})");
  refused("repetition of repetitions", R"({"pattern": "^((a{1000}){1000}){1000}$"})");
  refused("items of items",
          R"({"items": {"items": {"items": {"type": "string", "minLength": 10000}, "minItems": 10000},
                               "minItems": 10000}, "type": "array", "minItems": 10000})");
  std::string all = "{\"allOf\": [";
  for (int i = 0; i < 30; ++i) {
    const std::string n = std::to_string(i);
    all += (i ? "," : "") + ("{\"anyOf\": [{\"minimum\": " + n + "}, {\"maximum\": " + n + "}]}");
  }
  refused("30 choices of 2", all + "]}");
  std::string chain = "{\"$ref\": \"#/$defs/a0\", \"$defs\": {";
  for (int i = 0; i < 3000; ++i) {
    chain += "\"a" + std::to_string(i) + "\": {\"$ref\": \"#/$defs/a" + std::to_string(i + 1) + "\"},";
  }
  refused("a chain of 3000 references", chain + "\"a3000\": {}}}");
  std::string wide = "{\"properties\": {";
  for (int i = 0; i < 12000; ++i) wide += (i ? ",\"" : "\"") + std::to_string(i) + "\": {}";
  refused("12000 properties", wide + "}}");
  family.Accepted("1000 optional properties",
                  [] {
                    std::string some = "{\"properties\": {";
                    for (int i = 0; i < 1000; ++i)
                      some += (i ? ",\"" : "\"") + std::to_string(i) + "\": {\"type\": \"null\"}";
                    return Compile(some + "}}");
                  },
                  {.seconds = 4, .growth = size_t{256} << 20});
}

// Objects of a schema, itself included.
void CollectObjects(json* at, std::vector<json*>* objects) {
  if (at->is_object()) objects->push_back(at);
  if (at->is_structured()) {
    for (json& below : *at) CollectObjects(&below, objects);
  }
}

// Keywords moved between schemas, and, one time in four, bytes changed.
TEST(JsonSchema, BrokenSchemasNeverCrash) {
  std::vector<json> seeds;
  for (const json& c : Golden()) seeds.push_back(json::parse(c["schema"].get<std::string>()));
  std::mt19937 rng(11);
  const auto any_object = [&rng](json* of) {
    std::vector<json*> objects;
    CollectObjects(of, &objects);
    return objects.empty() ? nullptr : objects[rng() % objects.size()];
  };
  int accepted = 0, refused = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  for (int i = 0; i < 6000 && std::chrono::steady_clock::now() < end; ++i) {
    json schema = seeds[rng() % seeds.size()];
    for (auto n = 1 + rng() % 4; n > 0; --n) {
      json donor = seeds[rng() % seeds.size()];
      json *to = any_object(&schema), *from = any_object(&donor);
      if (to == nullptr || from == nullptr || from->empty()) continue;
      const auto member = std::next(from->begin(), static_cast<ptrdiff_t>(rng() % from->size()));
      (*to)[member.key()] = member.value();
    }
    std::string text = schema.dump();
    if (rng() % 4 == 0) text[rng() % text.size()] = static_cast<char>(rng());
    (Compile(text).ok() ? accepted : refused) += 1;
  }
  EXPECT_GT(accepted, 300);
  EXPECT_GT(refused, 300);
}

}  // namespace
}  // namespace nibble
