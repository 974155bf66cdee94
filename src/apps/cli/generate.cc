// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble generate`: prompts in, text out, as a stream or as JSON.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "apps/cli/chat.h"
#include "apps/cli/common.h"
#include "apps/cli/constraint.h"

namespace nibble::cli {
namespace {

constexpr int kDefaultTokens = 128;
constexpr int kMaxTokens = 1 << 24;
constexpr int kMaxPrompts = 1024;  // one ragged batch holds all of them

struct Options {
  CommonOptions common;
  ChatOptions chat;
  std::string model;
  std::vector<std::string> prompts, files, stop;
  int64_t prefill_tokens = -1;  // -1: the whole prompt
  int tokens = -1;              // -1: kDefaultTokens, or what the context leaves
  SamplingParams sampling;
  ConstraintOptions constraint;
  bool ignore_eos = false, stream = false, json = false;
  int logits_top = 0;
};

struct Prompt {
  std::string name;  // for messages and headings
  std::string text;
};

Result<std::vector<Prompt>> ReadPrompts(const Options& o) {
  std::vector<Prompt> prompts;
  for (const std::string& text : o.prompts)
    prompts.push_back({fmt::format("prompt {}", prompts.size() + 1), text});
  for (const std::string& file : o.files) {
    NIBBLE_ASSIGN(std::string text, ReadText(file));
    if (text.empty()) return Error(Code::kInvalidArgument, "{}: empty, expected a prompt", file);
    prompts.push_back({file, std::move(text)});
  }
  if (!o.chat.chat) return prompts;
  NIBBLE_ASSIGN(const ChatPrompts chat, ChatPrompts::Load(o.chat, o.model));
  for (Prompt& prompt : prompts) {
    auto text = chat.Text(prompt.text);
    if (!text.ok()) return Error(text.status().code(), "{}: {}", prompt.name, text.status().message());
    prompt.text = *std::move(text);
  }
  return prompts;
}

Result<std::vector<Request>> MakeRequests(const Options& o, const std::vector<Prompt>& prompts,
                                          const Engine& engine) {
  NIBBLE_ASSIGN(const std::shared_ptr<Constraint> constraint, MakeConstraint(o.constraint, engine, o.common));
  std::vector<Request> requests;
  for (const Prompt& prompt : prompts) {
    // A chat template writes the special tokens itself.
    const SpecialTokens special = o.chat.chat ? SpecialTokens::kOmit : SpecialTokens::kAdd;
    auto ids = engine.tokenizer().Encode(prompt.text, special);
    if (!ids.ok()) return Error(ids.status().code(), "{}: {}", prompt.name, ids.status().message());
    Request& request = requests.emplace_back();
    request.prompt = *std::move(ids);
    request.prefill_tokens = o.prefill_tokens;
    if (o.prefill_tokens > int64_t(request.prompt.size()))
      return Error(Code::kInvalidArgument, "{}: --prefill-tokens {}, but the prompt has {} tokens",
                   prompt.name, o.prefill_tokens, request.prompt.size());
    request.sampling = o.sampling;
    request.ignore_eos = o.ignore_eos;
    request.stop = o.stop;
    request.constraint = constraint;
    request.logits_top = o.logits_top;
    // Without -n a prompt near the end of the context gets what is left; with -n too much is an error.
    const int64_t room = engine.config().max_position - int64_t(request.prompt.size());
    request.max_tokens = o.tokens >= 0 ? o.tokens : int(std::clamp<int64_t>(room, 1, kDefaultTokens));
  }
  return requests;
}

// The first new token comes out of the prefill, so decoding made one less.
double TokensPerSecond(const Completion& c) {
  return c.token_ids.size() > 1 && c.decode_seconds > 0 ? double(c.token_ids.size() - 1) / c.decode_seconds
                                                        : 0;
}

Json ToJson(const Request& request, const Completion& c, const RowReads& reads) {
  Json json;
  json["prompt_tokens"] = request.prompt.size();
  json["token_ids"] = c.token_ids;
  json["text"] = c.text;
  json["finish_reason"] = ToString(c.finish);
  json["prefill_seconds"] = c.prefill_seconds;
  json["decode_seconds"] = c.decode_seconds;
  json["tokens_per_second"] = TokensPerSecond(c);
  AddReads(reads, &json);
  if (request.logits_top > 0) {
    Json top = Json::array();
    for (const auto& [id, value] : c.last_prompt_logits) top.push_back({id, value});
    json["last_prompt_logits"] = std::move(top);
  }
  return json;
}

void PrintSummary(const Request& request, const Completion& c) {
  fmt::print(stderr,
             "nibble: {} prompt tokens in {:.3f} s, {} new tokens in {:.3f} s ({:.0f} tokens/s), {}\n",
             request.prompt.size(), c.prefill_seconds, c.token_ids.size(), c.decode_seconds,
             TokensPerSecond(c), ToString(c.finish));
}

void PrintCompletions(const Options& o, const std::vector<Prompt>& prompts,
                      const std::vector<Request>& requests, const std::vector<Completion>& completions,
                      const RowReads& reads) {
  for (size_t i = 0; i < completions.size(); ++i) {
    if (o.json) {
      PrintJson(ToJson(requests[i], completions[i], reads));
      continue;
    }
    if (completions.size() == 1) Print("\n");  // the text was streamed
    if (completions.size() > 1) Print(fmt::format("== {}\n{}\n", prompts[i].name, completions[i].text));
    if (o.logits_top > 0)
      for (const auto& [id, value] : completions[i].last_prompt_logits)
        Print(fmt::format("{}\t{}\n", id, value));
    if (!o.common.quiet && isatty(STDERR_FILENO) == 1) PrintSummary(requests[i], completions[i]);
  }
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const std::vector<Prompt> prompts, ReadPrompts(o));
  EngineOptions engine_options = ToEngineOptions(o.model, o.common);
  engine_options.max_seqs = int(prompts.size());
  NIBBLE_ASSIGN(const std::unique_ptr<Engine> engine, LoadEngine(engine_options, o.common));
  NIBBLE_ASSIGN(std::vector<Request> requests, MakeRequests(o, prompts, *engine));
  if (!o.json && requests.size() == 1) requests[0].on_text = Print;
  const SignalGuard guard;
  NIBBLE_ASSIGN(const std::vector<Completion> completions, engine->Generate(requests, guard.flag()));
  PrintCompletions(o, prompts, requests, completions, engine->TakeReads());
  return guard.ExitCode();
}

// What only the whole command line shows.
void CheckOptions(const Options& o) {
  if (o.prompts.empty() == o.files.empty()) throw UsageError("generate", "give either -p TEXT or -f FILE");
  if (o.prompts.size() + o.files.size() > kMaxPrompts)
    throw UsageError("generate", fmt::format("more than {} prompts", kMaxPrompts));
  for (const std::string& text : o.prompts)
    if (text.empty()) throw UsageError("--prompt", "empty, expected text");
  for (const std::string& text : o.stop)
    if (text.empty()) throw UsageError("--stop", "empty, expected text");
  if (o.tokens == 0 && o.logits_top == 0)
    throw UsageError("--predict", "0 new tokens leave nothing to do without --logits-top");
  if (o.stream && o.prompts.size() + o.files.size() > 1)
    throw UsageError("--stream", "shows one prompt at a time; several need --json or no flag");
  if (const Status status = CheckSampling(o.sampling); !status.ok())
    throw UsageError("sampling", status.message());
  CheckRecipe("--recipe", o.common.recipe, o.common.dtype);
  CheckConstraint(o.constraint, o.ignore_eos);
}

// The parser would take -1 for 2^64 - 1.
std::string CheckSeed(const std::string& value) {
  return value.starts_with('-') ? fmt::format("{} is negative", value) : std::string();
}

void AddSampling(Parser parser, SamplingParams& s) {
  const char* group = "Sampling";
  parser.Add("--temp,--temperature", s.temperature, "Temperature; 0 is greedy [0]").Type("T").Group(group);
  parser.Add("--top-k", s.top_k, "Keep the K most likely tokens; 0 is off [0]").Type("K").Group(group);
  parser.Add("--top-p", s.top_p, "Keep the most likely tokens that reach probability P [1]")
      .Type("P")
      .Group(group);
  parser.Add("--min-p", s.min_p, "Drop tokens below P times the most likely one [0]").Type("P").Group(group);
  parser.Add("--repeat-penalty", s.repetition_penalty, "Divide logits of tokens already there; 1 is off [1]")
      .Type("R")
      .Group(group);
  parser.Add("--seed", s.seed, "Same seed, same text [0]").Check(CheckSeed).Type("S").Group(group);
}

}  // namespace

Command AddGenerate(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("generate", "Continue a prompt");
  AddModel(parser, o->model);
  parser.Add("-p,--prompt", o->prompts, "Text to continue; again for more prompts, which run as one batch")
      .Type("TEXT")
      .Repeats();
  parser
      .Add("-f,--file", o->files, "File with the text to continue, - for standard input; may be given again")
      .Type("FILE")
      .Repeats();
  parser.Add("-n,--predict", o->tokens, fmt::format("New tokens at most [{}]", kDefaultTokens))
      .Range(0, kMaxTokens)
      .Type("N");
  parser
      .Add("--prefill-tokens", o->prefill_tokens,
           "Of a prompt, the tokens that attend to everything; a recipe's token selection concerns "
           "those after them [all]")
      .Range(0, kMaxTokens)
      .Type("N");
  parser.Add("--stop", o->stop, "Text that ends the continuation and is not printed; may be given again")
      .Type("TEXT")
      .Repeats();
  parser.Flag("--ignore-eos", o->ignore_eos, "Go on after an end-of-text token");
  const Option stream =
      parser.Flag("--stream", o->stream, "Print text as it comes (the default for one prompt)");
  parser.Flag("--json", o->json, "Print one JSON object a prompt, a line each").Excludes(stream);
  parser.Add("--logits-top", o->logits_top, "Also give the K largest logits after the prompt")
      .Range(1, kMaxTokens)
      .Type("K");
  AddConstraint(parser, o->constraint);
  AddSampling(parser, o->sampling);
  AddChat(parser, o->chat);
  AddPlacement(parser, o->common);
  AddCommon(parser, o->common);
  parser.Check([o] { CheckOptions(*o); });
  parser.Footer(
      "Examples:\n"
      "  nibble generate -m models/novelist-10m -p \"It was a dark and stormy night\" -n 64\n"
      "  nibble generate -m models/novelist-10m -f prompt.txt --temp 0.8 --top-p 0.95 --seed 7\n"
      "  nibble generate -m models/novelist-10m -p One -p Two --recipe qserve --json\n"
      "  nibble generate -m models/novelist-10m -p \"He said: \" --regex \"[A-Z][a-z ]{5,40}\\.\"");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
