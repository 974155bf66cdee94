// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble tokenize`: the ids a text becomes.
#include <fmt/ranges.h>

#include "apps/cli/common.h"
#include "apps/cli/table.h"
#include "text/tokenizer.h"

namespace nibble::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string model, text, file;
  bool has_text = false, no_special = false, json = false, pieces = false;
};

Result<int> Run(const Options& o) {
  std::string text = o.text;
  if (!o.has_text) {
    NIBBLE_ASSIGN(text, ReadText(o.file));
  }
  NIBBLE_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(o.model));
  const SpecialTokens special = o.no_special ? SpecialTokens::kOmit : SpecialTokens::kAdd;
  const auto ids = tokenizer->Encode(text, special);
  if (!ids.ok())
    return Error(ids.status().code(), "{}: {}", o.has_text ? "prompt" : o.file, ids.status().message());
  std::vector<std::string> tokens;
  if (o.json || o.pieces)
    for (int32_t id : *ids) tokens.push_back(tokenizer->TokenText(id));
  if (o.json) {
    PrintJson({{"ids", *ids}, {"tokens", tokens}});
  } else if (o.pieces) {
    Table table("rl");
    for (size_t i = 0; i < tokens.size(); ++i) table.AddRow({fmt::format("{}", (*ids)[i]), tokens[i]});
    Print(table.ToString());
  } else {
    Print(fmt::format("{}\n", fmt::join(*ids, " ")));
  }
  return kExitOk;
}

}  // namespace

Command AddTokenize(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("tokenize", "Show the token ids of a text");
  AddModel(parser, o->model);
  const Option text = parser.Add("-p,--prompt", o->text, "Text").Type("TEXT");
  const Option file =
      parser.Add("-f,--file", o->file, "File with the text, - for standard input").Type("FILE");
  text.Excludes(file);
  parser.Flag("--no-special", o->no_special, "Do not add the tokens that the model expects around a text");
  const Option json = parser.Flag("--json", o->json, "Print {\"ids\": [...], \"tokens\": [...]}");
  parser.Flag("--pieces", o->pieces, "Print one token a line: id and vocabulary entry").Excludes(json);
  AddCommon(parser, o->common);
  parser.Check([o, text, file] {
    o->has_text = text.given();
    if (!o->has_text && !file.given()) throw UsageError("tokenize", "give either -p TEXT or -f FILE");
  });
  parser.Footer(
      "Examples:\n"
      "  nibble tokenize -m models/novelist-10m -p \"a dark night\" --pieces\n"
      "  nibble tokenize -m models/novelist-10m -f texts/Doyle_Hound_1902.txt --no-special --json");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
