// SPDX-License-Identifier: Apache-2.0
// Floor 5. Every set of schemas that applies to a value becomes a rule. Rules wait in a list for their
// definition, so nothing recurses however schemas refer to each other.
#include "text/json_schema.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/printable.h"
#include "text/json_number.h"
#include "text/json_schema_parts.h"
#include "text/json_schema_words.h"
#include "text/json_text.h"
#include "text/regex_grammar.h"

namespace nibble {
namespace {

using NodeId = Grammar::NodeId;
constexpr int kUnbounded = Grammar::kUnbounded;
constexpr int kMaxSchemaDepth = 64;
constexpr size_t kMaxNameBytes = 256;  // of a property of an object that may have others

class SchemaCompiler {
 public:
  SchemaCompiler(JsonRef root, const GrammarLimits& limits)
      : root_(root), reader_(root), g_(limits), text_(&g_), limits_(limits) {}

  Result<JsonSchemaGrammar> Run() {
    NIBBLE_ASSIGN(const NodeId start, Visit({{root_}}));
    const int root = g_.AddRule("schema");
    g_.Define(root, start);
    g_.SetRoot(root);
    while (!waiting_.empty()) {
      const auto [rule, parts] = std::move(waiting_.back());
      waiting_.pop_back();
      NIBBLE_ASSIGN(const NodeId body, Body(parts));
      g_.Define(rule, body);
      NIBBLE_RETURN_IF_ERROR(g_.limit_passed());
    }
    NIBBLE_RETURN_IF_ERROR(g_.Check());
    return JsonSchemaGrammar{std::move(g_), std::move(notes_)};
  }

 private:
  // What satisfies all the schemas: the call of a rule that is defined later.
  Result<NodeId> Visit(SchemaParts given) {
    NIBBLE_ASSIGN(const std::optional<SchemaParts> parts, reader_.Expand(std::move(given)));
    if (!parts) return g_.Nothing();
    if (parts->empty()) return text_.AnyValue();
    std::vector<std::pair<const void*, uint8_t>> key;
    for (const SchemaPart& part : *parts) key.emplace_back(part.schema.id(), part.done);
    const auto [found, added] = rules_.try_emplace(std::move(key), 0);
    if (added) {
      found->second = g_.AddRule(parts->front().schema.Where());
      waiting_.emplace_back(found->second, *parts);
    }
    return g_.Call(found->second);
  }

  Result<NodeId> Body(const SchemaParts& parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
      for (const auto& [name, bit] :
           {std::pair("anyOf", SchemaPart::kAnyOf), std::pair("oneOf", SchemaPart::kOneOf)}) {
        const auto branches = parts[i].schema.Find(name);
        if (branches && (parts[i].done & bit) == 0) return Branches(parts, i, *branches, bit);
      }
    }
    NIBBLE_ASSIGN(const unsigned types, TypesOf(parts));
    for (const SchemaPart& part : parts) {
      if (part.schema.Find("enum") || part.schema.Find("const")) return Listed(parts, types);
    }
    std::vector<NodeId> choices;
    if ((types & schema::kNull) != 0) choices.push_back(g_.Literal("null"));
    if ((types & schema::kBoolean) != 0)
      choices.push_back(g_.Choice({g_.Literal("true"), g_.Literal("false")}));
    if ((types & schema::kInteger) != 0) {
      NIBBLE_ASSIGN(
          choices.emplace_back(),
          Number(parts, (types & schema::kFraction) != 0 ? NumberKind::kAny : NumberKind::kInteger));
    }
    if ((types & schema::kString) != 0) {
      NIBBLE_ASSIGN(choices.emplace_back(), String(parts));
    }
    if ((types & schema::kArray) != 0) {
      NIBBLE_ASSIGN(choices.emplace_back(), Array(parts));
    }
    if ((types & schema::kObject) != 0) {
      NIBBLE_ASSIGN(choices.emplace_back(), Object(parts));
    }
    return g_.Choice(choices);
  }

  Result<NodeId> Branches(const SchemaParts& parts, size_t i, JsonRef branches, uint8_t bit) {
    if (!branches.is_array() || branches.size() == 0) {
      return Error(Code::kInvalidArgument, "{}: wanted an array of schemas", branches.Where());
    }
    if (bit == SchemaPart::kOneOf && noted_.insert(branches.id()).second) {
      notes_.push_back(branches.Where() + ": taken as anyOf, so a value may satisfy several");
    }
    std::vector<NodeId> choices;
    for (size_t b = 0; b < branches.size(); ++b) {
      SchemaParts chosen = parts;
      chosen[i].done |= bit;
      chosen.push_back({branches[b]});
      NIBBLE_ASSIGN(choices.emplace_back(), Visit(std::move(chosen)));
    }
    return g_.Choice(choices);
  }

  Result<unsigned> TypesOf(const SchemaParts& parts) {
    unsigned types = schema::kAllTypes;
    for (const SchemaPart& part : parts) {
      const auto type = part.schema.Find("type");
      if (!type) continue;
      if (!type->is_array()) {
        NIBBLE_ASSIGN(const unsigned one, schema::TypeNamed(*type));
        types &= one;
        continue;
      }
      unsigned any = 0;
      for (size_t i = 0; i < type->size(); ++i) {
        NIBBLE_ASSIGN(const unsigned one, schema::TypeNamed((*type)[i]));
        any |= one;
      }
      types &= any;
    }
    return types;
  }

  // enum and const: the values themselves, those of a type that is allowed.
  Result<NodeId> Listed(const SchemaParts& parts, unsigned types) {
    std::optional<JsonRef> list;
    for (const SchemaPart& part : parts) {
      for (size_t i = 0; i < part.schema.size(); ++i) {
        const std::string_view key = part.schema.KeyAt(i);
        if (key == "enum" || key == "const") {
          if (list) return Unsupported(part.schema[i], "two lists of values for one value");
          list = part.schema[i];
          if (key == "enum" && !list->is_array()) {
            return Error(Code::kInvalidArgument, "{}: wanted an array", list->Where());
          }
        } else if (schema::KeywordNamed(key) == schema::Keyword::kAssertion) {
          return Unsupported(part.schema[i], "beside enum or const");
        }
      }
    }
    const bool is_enum = ListIsEnum(parts, *list);
    const size_t count = is_enum ? list->size() : 1;
    if (count > static_cast<size_t>(limits_.max_enum)) {
      return Error(Code::kInvalidArgument, "{}: {} values, at most {}", list->Where(), count,
                   limits_.max_enum);
    }
    std::vector<std::string> strings;
    std::vector<NodeId> choices;
    for (size_t i = 0; i < count; ++i) {
      const JsonRef value = is_enum ? (*list)[i] : *list;
      if ((schema::TypeOf(value) & types) == 0) continue;
      if (value.is_string()) {
        strings.push_back(JsonText::Quote(*value.String()));
      } else {
        choices.push_back(text_.Value(value));
      }
    }
    if (!strings.empty()) choices.push_back(text_.AnyOf(std::move(strings)));
    return g_.Choice(choices);
  }
  static bool ListIsEnum(const SchemaParts& parts, JsonRef list) {
    return std::any_of(parts.begin(), parts.end(), [&](const SchemaPart& part) {
      const auto values = part.schema.Find("enum");
      return values && values->id() == list.id();
    });
  }
  static Status Unsupported(JsonRef at, std::string_view what) {
    return Error(Code::kUnsupported, "{}: {} is not supported", at.Where(), what);
  }

  Result<NodeId> Number(const SchemaParts& parts, NumberKind kind) {
    NumberRange range;
    for (const SchemaPart& part : parts) {
      for (const char* key : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
        const auto given = part.schema.Find(key);
        if (!given) continue;
        NumberBound bound;
        NIBBLE_ASSIGN(bound.value, Decimal::From(*given));
        bound.open = key[0] == 'e';
        const bool is_min = std::string_view(key).ends_with("inimum");
        std::optional<NumberBound>& tightest = is_min ? range.min : range.max;
        const int order = tightest ? Compare(bound.value, tightest->value) : 0;
        if (!tightest || (is_min ? order > 0 : order < 0) || (order == 0 && bound.open)) tightest = bound;
      }
    }
    return AddNumber(range, kind, &g_);
  }

  // The tightest of two keywords that count something.
  Status Counts(const SchemaParts& parts, const char* min_key, const char* max_key, int* min, int* max) {
    *min = 0;
    *max = kUnbounded;
    for (const SchemaPart& part : parts) {
      if (const auto given = part.schema.Find(min_key)) {
        NIBBLE_ASSIGN(const int64_t n, given->Int(0, limits_.max_repeat));
        *min = std::max(*min, static_cast<int>(n));
      }
      if (const auto given = part.schema.Find(max_key)) {
        NIBBLE_ASSIGN(const int64_t n, given->Int(0, limits_.max_repeat));
        *max = *max < 0 ? static_cast<int>(n) : std::min(*max, static_cast<int>(n));
      }
    }
    if (*max < 0 || *min <= *max) return {};
    return Error(Code::kInvalidArgument, "{}: {} {} above {} {}", parts[0].schema.Where(), min_key, *min,
                 max_key, *max);
  }

  Result<NodeId> String(const SchemaParts& parts) {
    int min = 0, max = kUnbounded;
    NIBBLE_RETURN_IF_ERROR(Counts(parts, "minLength", "maxLength", &min, &max));
    std::optional<JsonRef> form;
    std::string pattern;
    for (const SchemaPart& part : parts) {
      for (const char* key : {"pattern", "format"}) {
        const auto given = part.schema.Find(key);
        if (!given) continue;
        if (form) return Unsupported(*given, "a second pattern or format for one value");
        form = given;
        NIBBLE_ASSIGN(const std::string_view text, given->String());
        pattern = key[0] == 'p' ? std::string(text) : schema::FormatPattern(text);
        if (key[0] == 'f' && pattern.empty()) {
          return Unsupported(*given, fmt::format("the format \"{}\"", Printable(text)));
        }
      }
    }
    if (!form) return text_.String(min, max);
    if (min > 0 || max >= 0) return Unsupported(*form, "a pattern or format beside minLength or maxLength");
    const SpellChars spell = [this](const CharSet& set) { return text_.Char(set); };
    const auto body = AddRegexSearch(pattern, spell, &g_);
    if (!body.ok()) return Error(body.status().code(), "{}: {}", form->Where(), body.status().message());
    return g_.Sequence({g_.Literal("\""), *body, g_.Literal("\"")});
  }

  Result<NodeId> Array(const SchemaParts& parts) {
    int min = 0, max = kUnbounded;
    NIBBLE_RETURN_IF_ERROR(Counts(parts, "minItems", "maxItems", &min, &max));
    size_t prefix = 0;
    for (const SchemaPart& part : parts) {
      NIBBLE_ASSIGN(const bool unique, part.schema.GetBoolOr("uniqueItems", false));
      if (unique) return Unsupported(*part.schema.Find("uniqueItems"), "uniqueItems");
      const auto items = part.schema.Find("items"), first = part.schema.Find("prefixItems");
      if (items && items->is_array()) return Unsupported(*items, "an array (prefixItems is its new name)");
      if (first && !first->is_array()) {
        return Error(Code::kInvalidArgument, "{}: wanted an array of schemas", first->Where());
      }
      if (first) prefix = std::max(prefix, first->size());
    }
    if (max >= 0) prefix = std::min(prefix, static_cast<size_t>(max));
    NIBBLE_ASSIGN(NodeId rest, Rest(parts, static_cast<int>(prefix), min, max));
    for (size_t i = prefix; i-- > 0;) {
      NIBBLE_ASSIGN(const NodeId item, Visit(ItemAt(parts, i)));
      const NodeId from_here = g_.Sequence({i > 0 ? text_.Comma() : g_.Literal(""), item, rest});
      rest = static_cast<int>(i) < min ? from_here : g_.Optional(from_here);
    }
    return g_.Sequence({g_.Literal("["), rest, g_.Literal("]")});
  }

  static SchemaParts ItemAt(const SchemaParts& parts, size_t i) {
    SchemaParts out;
    for (const SchemaPart& part : parts) {
      const auto items = part.schema.Find("items"), first = part.schema.Find("prefixItems");
      if (first && i < first->size()) {
        out.push_back({(*first)[i]});
      } else if (items) {
        out.push_back({*items});
      }
    }
    return out;
  }

  // What may follow `before` items that are there.
  Result<NodeId> Rest(const SchemaParts& parts, int before, int min, int max) {
    const int least = std::max(min - before, 0), most = max < 0 ? kUnbounded : std::max(max - before, 0);
    if (most == 0) return g_.Literal("");
    size_t longest = static_cast<size_t>(before);
    for (const SchemaPart& part : parts) {
      if (const auto first = part.schema.Find("prefixItems")) longest = std::max(longest, first->size());
    }
    NIBBLE_ASSIGN(const NodeId item, Visit(ItemAt(parts, longest)));
    const NodeId next = g_.Sequence({text_.Comma(), item});
    if (before > 0) return g_.Repeat(next, least, most);
    const NodeId all =
        g_.Sequence({item, g_.Repeat(next, std::max(least - 1, 0), most < 0 ? kUnbounded : most - 1)});
    return least == 0 ? g_.Optional(all) : all;
  }

  struct Property {
    std::string name;
    bool required = false;
    SchemaParts parts = {};
  };

  Result<NodeId> Object(const SchemaParts& parts) {
    NIBBLE_ASSIGN(std::vector<Property> properties, PropertiesOf(parts));
    bool listed = false, open = false;
    SchemaParts others;
    for (const SchemaPart& part : parts) {
      listed |= part.schema.Find("properties").has_value();
      const auto additional = part.schema.Find("additionalProperties");
      if (!additional) continue;
      open = true;
      others.push_back({*additional});
    }
    NodeId other = g_.Nothing();  // a member that no schema names
    if (open || !listed) {
      NIBBLE_ASSIGN(const NodeId value, Visit(others));
      NIBBLE_ASSIGN(const NodeId key, KeyBeside(properties, parts));
      other = g_.Sequence({key, text_.Colon(), value});
    }
    return Members(properties, other, parts[0].schema.Where());
  }

  Result<NodeId> KeyBeside(const std::vector<Property>& properties, const SchemaParts& parts) {
    if (properties.empty()) return text_.String(0, kUnbounded);
    std::vector<std::string> names;
    for (const Property& p : properties) {
      if (p.name.size() > kMaxNameBytes) {
        return Error(Code::kInvalidArgument,
                     "{}: a property's name of {} bytes beside additional ones, at most {}",
                     parts[0].schema.Where(), p.name.size(), kMaxNameBytes);
      }
      names.push_back(p.name);
    }
    return text_.StringOtherThan(names);
  }

  // In the order in which they are first named, each with all that applies to it.
  Result<std::vector<Property>> PropertiesOf(const SchemaParts& parts) {
    std::vector<Property> properties;
    std::map<std::string, size_t, std::less<>> index;
    const auto named = [&](std::string_view name) -> Property& {
      const auto [found, added] = index.try_emplace(std::string(name), properties.size());
      if (added) properties.push_back({std::string(name)});
      return properties[found->second];
    };
    for (const SchemaPart& part : parts) {
      const auto own = part.schema.Find("properties");
      if (own && !own->is_object()) {
        return Error(Code::kInvalidArgument, "{}: wanted an object of schemas", own->Where());
      }
      for (size_t i = 0; own && i < own->size(); ++i) named(own->KeyAt(i));
    }
    for (const SchemaPart& part : parts) {
      const auto required = part.schema.Find("required");
      if (required && !required->is_array()) {
        return Error(Code::kInvalidArgument, "{}: wanted an array of names", required->Where());
      }
      for (size_t i = 0; required && i < required->size(); ++i) {
        NIBBLE_ASSIGN(const std::string_view name, (*required)[i].String());
        named(name).required = true;
      }
    }
    for (const SchemaPart& part : parts) {
      const auto own = part.schema.Find("properties"), additional = part.schema.Find("additionalProperties");
      std::vector<uint8_t> has(properties.size());
      for (size_t i = 0; own && i < own->size(); ++i) {
        const size_t at = index.find(own->KeyAt(i))->second;
        has[at] = 1;
        properties[at].parts.push_back({(*own)[i]});
      }
      for (size_t at = 0; additional && at < properties.size(); ++at) {
        if (has[at] == 0) properties[at].parts.push_back({*additional});
      }
    }
    return properties;
  }

  // after[i]: what may follow a member, of the properties from i on. An optional one is there or not, so the
  // first member is any up to the first required one.
  Result<NodeId> Members(const std::vector<Property>& properties, NodeId other, const std::string& where) {
    const bool others = other != g_.Nothing();
    NodeId after = others ? g_.Repeat(g_.Sequence({text_.Comma(), other}), 0, kUnbounded) : g_.Literal("");
    std::vector<NodeId> firsts;
    if (others) firsts.push_back(g_.Sequence({other, after}));
    firsts.push_back(g_.Literal(""));
    for (size_t i = properties.size(); i-- > 0;) {
      const Property& p = properties[i];
      NIBBLE_ASSIGN(const NodeId value, Visit(p.parts));
      const NodeId member = g_.Sequence({text_.Quoted(p.name), text_.Colon(), value});
      if (p.required) firsts.clear();
      firsts.push_back(g_.Sequence({member, after}));
      const NodeId next = g_.Sequence({text_.Comma(), member});
      const int rule = g_.AddRule(where + ": from " + Printable(p.name));
      g_.Define(rule, g_.Sequence({p.required ? next : g_.Optional(next), after}));
      after = g_.Call(rule);
    }
    return g_.Sequence({g_.Literal("{"), g_.Choice(firsts), g_.Literal("}")});
  }

  JsonRef root_;
  SchemaReader reader_;
  Grammar g_;
  JsonText text_;
  const GrammarLimits& limits_;
  std::map<std::vector<std::pair<const void*, uint8_t>>, int> rules_;  // by the schemas that apply
  std::vector<std::pair<int, SchemaParts>> waiting_;
  std::vector<std::string> notes_;
  std::set<const void*> noted_;
};

}  // namespace

Result<JsonSchemaGrammar> CompileJsonSchema(std::string_view schema, const GrammarLimits& limits) {
  NIBBLE_ASSIGN(
      const Json document,
      Json::Parse(schema, {.max_bytes = limits.max_text_bytes, .max_depth = kMaxSchemaDepth}, "schema"));
  auto compiled = SchemaCompiler(document.root(), limits).Run();
  if (!compiled.ok() && compiled.status().message().find("schema") != 0) {
    return Error(compiled.status().code(), "schema: {}", compiled.status().message());
  }
  return compiled;
}

}  // namespace nibble
