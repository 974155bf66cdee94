// SPDX-License-Identifier: Apache-2.0
// Floor 9. From an option to a constraint for the tokens of the model.
#include "apps/cli/constraint.h"

#include "text/gbnf.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace nibble::cli {
namespace {

struct Given {
  std::string name;  // of the option, or the file
  Grammar grammar;
  std::vector<std::string> notes;
};

Status Named(const std::string& name, const Status& status) {
  const bool named = status.ok() || status.message().find(name) == 0;
  return named ? status : Error(status.code(), "{}: {}", name, status.message());
}

Status Take(Result<Grammar> from, Given* to) {
  if (!from.ok()) return Named(to->name, from.status());
  to->grammar = *std::move(from);
  return {};
}

Status TakeSchema(std::string_view text, Given* to) {
  auto compiled = CompileJsonSchema(text);
  if (!compiled.ok()) return Named(to->name, compiled.status());
  to->grammar = std::move(compiled->grammar);
  to->notes = std::move(compiled->notes);
  return {};
}

// REQUIRES: one of the options is given.
Status Read(const ConstraintOptions& o, Given* given) {
  const size_t most = GrammarLimits().max_text_bytes;
  if (!o.regex.empty()) {
    given->name = "--regex";
    return Take(RegexGrammar(o.regex), given);
  }
  if (!o.grammar.empty()) {
    given->name = "--grammar";
    return Take(ParseGbnf(o.grammar), given);
  }
  if (!o.schema.empty()) {
    given->name = "--json-schema";
    return TakeSchema(o.schema, given);
  }
  const bool is_grammar = !o.grammar_file.empty();
  given->name = is_grammar ? o.grammar_file : o.schema_file;
  NIBBLE_ASSIGN(const std::string text, ReadText(given->name, most));
  return is_grammar ? Take(ParseGbnf(text), given) : TakeSchema(text, given);
}

int Count(const ConstraintOptions& o) {
  int count = 0;
  for (const std::string* text : {&o.grammar, &o.grammar_file, &o.schema, &o.schema_file, &o.regex}) {
    count += text->empty() ? 0 : 1;
  }
  return count;
}

}  // namespace

void AddConstraint(Parser parser, ConstraintOptions& options) {
  const auto add = [&](const char* names, std::string& value, const char* help, const char* type) {
    parser.Add(names, value, help).Type(type).Group("Constraint, one of").Check([](const std::string& text) {
      return text.empty() ? std::string("empty") : std::string();
    });
  };
  add("--grammar", options.grammar, "The text is one of this GBNF grammar", "TEXT");
  add("--grammar-file", options.grammar_file, "The same from a file", "FILE");
  add("-j,--json-schema", options.schema, "The text is JSON of this schema; {} is any JSON", "TEXT");
  add("--json-schema-file", options.schema_file, "The same from a file", "FILE");
  add("--regex", options.regex, "This pattern matches the whole text", "PATTERN");
}

void CheckConstraint(const ConstraintOptions& o, bool ignore_eos) {
  if (Count(o) > 1) {
    throw UsageError("give one of --grammar, --grammar-file, --json-schema, --json-schema-file and --regex");
  }
  if (Count(o) == 1 && ignore_eos) {
    throw UsageError("--ignore-eos: a constraint says where the text ends");
  }
  if (Count(o) == 0 || !(o.grammar_file + o.schema_file).empty()) return;
  Given given;
  Status status = Read(o, &given);
  TokenShape every_byte;  // what no vocabulary could help
  every_byte.bytes.set();
  if (status.ok()) status = Automaton::Compile(given.grammar, every_byte).status();
  if (!status.ok()) throw UsageError(Named(given.name, status).message());
}

Result<std::shared_ptr<Constraint>> MakeConstraint(const ConstraintOptions& o, const Engine& engine,
                                                   const CommonOptions& common) {
  if (Count(o) == 0) return std::shared_ptr<Constraint>();
  Given given;
  NIBBLE_RETURN_IF_ERROR(Read(o, &given));
  PrintNotes(given.notes, common);
  NIBBLE_ASSIGN(const auto trie,
                TokenTrie::Make(engine.tokenizer(), engine.config().vocab, engine.config().eos_tokens));
  auto constraint = Constraint::Make(given.grammar, trie);
  if (!constraint.ok()) return Named(given.name, constraint.status());
  return constraint;
}

}  // namespace nibble::cli
