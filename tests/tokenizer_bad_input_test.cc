// SPDX-License-Identifier: Apache-2.0
// Bad tokenizer.json files: each in a child process with limits. Rows T01 to T07 and T13 of the list of bad
// inputs, unsupported constructs by name, and every value of a good file replaced by others.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/bad_inputs.h"
#include "tests/support/temp_dir.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

Status ParseText(const std::string& text) {
  const auto document = Json::Parse(text, {.max_bytes = size_t{256} << 20}, "tokenizer.json");
  if (!document.ok()) return document.status();
  return Tokenizer::Parse(document->root()).status();
}

// A small file that uses most sections.
json Good() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
       "special": true},
      {"id": 6, "content": "Yes", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true,
       "special": false}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
      {"type": "Strip", "strip_left": true, "strip_right": false}, {"type": "Prepend", "prepend": "_"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
      {"type": "Digits", "individual_digits": true},
      {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "ab": 2, "_": 3, "?": 4, "abb": 7, "<0x41>": 8},
      "merges": ["a b", ["ab", "b"]]}})");
}

struct Change {
  const char* id;
  const char* path;  // JSON pointer
  json value;
  Words words = {};
};

std::string Changed(const char* path, const json& value) {
  json file = Good();
  file[json::json_pointer(path)] = value;
  return file.dump();
}

void RefuseAll(Family* family, const std::vector<Change>& changes) {
  for (const Change& c : changes) {
    const std::string text = Changed(c.path, c.value);
    family->Refused(
        std::string(c.id) + " " + c.path, [&] { return ParseText(text); }, c.words);
  }
}

json Added(int64_t id, const char* content) { return {{"id", id}, {"content", content}}; }

TEST(BadTokenizer, GoodFileIsAccepted) {
  Family family("good");
  family.Accepted("good", [] { return ParseText(Good().dump()); });
}

TEST(BadTokenizer, Ids) {  // T01
  Family family("T01 ids");
  RefuseAll(&family, {
                         {"T01", "/model/vocab/b", -1, {"model.vocab.b", "-1"}},
                         {"T01", "/model/vocab/b", 1 << 24, {"model.vocab.b", "16777216"}},
                         {"T01", "/model/vocab/b", int64_t{1} << 31, {"2147483648"}},
                         {"T01", "/model/vocab/b", int64_t{1} << 40, {"1099511627776"}},
                         {"T01", "/model/vocab/b", UINT64_MAX, {"18446744073709551615"}},
                         {"T01", "/model/vocab/b", 1.5, {"1.5"}},
                         {"T01", "/model/vocab/b", "1", {"\"1\""}},
                         {"T01", "/model/vocab/b", nullptr, {"null"}},
                         {"T01", "/model/vocab/b", 0, {"model.vocab", "id 0"}},
                         {"T01", "/model/vocab/b", (1 << 24) - 1, {"16777215", "9 tokens"}},
                         {"T01", "/added_tokens/1/id", -1, {"added_tokens[1].id", "-1"}},
                         {"T01", "/added_tokens/1/id", int64_t{1} << 40, {"1099511627776"}},
                         {"T01", "/added_tokens/1/id", 5, {"added_tokens[1]", "5"}},
                         {"T01", "/added_tokens/1/id", 0, {"Yes", "id 0", "\"a\""}},
                         {"T01", "/added_tokens/1/content", "<s>", {"added_tokens[1]", "repeats"}},
                         {"T01", "/added_tokens/2", Added(9, "ab"), {"\"ab\"", "9", "2"}},
                         {"T01", "/added_tokens/2", Added(9, ""), {"0 bytes"}},
                         {"T01", "/added_tokens/2", Added(9, "yes"), {}},
                     });
  const std::string twice = R"({"model":{"type":"BPE","vocab":{"a":0,"a":1},"merges":[]}})";
  family.Refused("T01 token twice", [&] { return ParseText(twice); }, {"a"});
}

TEST(BadTokenizer, TokensThatNormalizeToTheSame) {
  Family family("normalized added tokens");
  json file = Good();
  file["added_tokens"][2] = {{"id", 9}, {"content", "YES"}, {"normalized", true}};
  family.Refused("same", [&] { return ParseText(file.dump()); }, {"YES", "same"});
  file["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  file["added_tokens"][2]["content"] = "  ";
  family.Refused("empty", [&] { return ParseText(file.dump()); }, {"empty"});
}

TEST(BadTokenizer, Merges) {  // T02
  Family family("T02 merges");
  const std::string long_piece(65 << 10, 'x');
  RefuseAll(&family, {
                         {"T02", "/model/merges/0", "a z", {"model.merges[0]", "\"z\""}},
                         {"T02", "/model/merges/0", "z b", {"model.merges[0]", "\"z\""}},
                         {"T02", "/model/merges/0", "b a", {"model.merges[0]", "\"ba\""}},
                         {"T02", "/model/merges/0", "a b b", {"two pieces"}},
                         {"T02", "/model/merges/0", "ab", {"two pieces"}},
                         {"T02", "/model/merges/0", " ab", {"not in the vocabulary"}},
                         {"T02", "/model/merges/0", "", {"two pieces"}},
                         {"T02", "/model/merges/0", json::array({"a", "b", "b"}), {"model.merges[0]"}},
                         {"T02", "/model/merges/0", json::array({"a", 1}), {"model.merges[0][1]", "1"}},
                         {"T02", "/model/merges/0", 7, {"model.merges[0]"}},
                         {"T02", "/model/merges", json::object(), {"model.merges"}},
                         {"T02", "/model/unk_token", "nope", {"model.unk_token", "nope"}},
                     });
  json file = Good();
  file["model"]["vocab"][long_piece] = 9;
  family.Refused("T02 long piece", [&] { return ParseText(file.dump()); }, {"66560 bytes"});
  std::string many = R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b")";
  for (int i = 0; i < (1 << 22); ++i) many += ",\"a b\"";
  many += "]}}";
  CaseLimits limits{.seconds = 10, .file_bytes = many.size()};
  limits.growth = limits.addresses = size_t{2} << 30;
  family.Refused(
      "T02 2^22+1 merges", [&] { return ParseText(many); }, {"4194304"}, limits);
}

TEST(BadTokenizer, Patterns) {  // T03
  Family family("T03 patterns");
  const std::pair<const char*, const char*> refused[] = {
      {"(a+)+$", "nested quantifier"},
      {"(?:a*b?)*c", "nested quantifier"},
      {"(a|aa)*b", "choice"},
      {"(?:a?){5}b", "choice"},
      {"(?<=a)b", "look-behind"},
      {"(?<!a)b", "look-behind"},
      {"(a)\\1", "back-reference"},
      {"(?<n>a)\\k<n>", "group (?<"},
      {"a\\k<n>", "back-reference"},
      {"a*", "empty string"},
      {"a|", "empty string"},
      {"", "empty string"},
      {"[[:alpha:]]", "[ inside []"},
      {"[a&&b]", "&& inside []"},
      {"(?i)a", "group (?i"},
      {"(?x:a)", "group (?x"},
      {"(?#c)a", "group (?#"},
      {"a{2}+", "{n,m} followed"},
      {"a{2}?", "{n,m} followed"},
      {"a**", "quantifier on a quantifier"},
      {"*a", "nothing before"},
      {"a{x}", "opens no"},
      {"a{3,2}", "reversed"},
      {"a{0}b", "zero"},
      {"a{1,1001}", "1000"},
      {"\\bfoo", "escape \\x5cb"},
      {"\\Gfoo", "escape \\x5cG"},
      {"(a", "not closed"},
      {"a)", "unmatched )"},
      {"[a", "not closed"},
      {"[]a]", "] as the first"},
      {"[b-a]", "range"},
      {"[\\s-a]", "range"},
      {"\\p{Nope}", "Nope"},
      {"\\pL", "without {"},
      {"\\p{L", "without }"},
      {"\\xC3", "hexadecimal"},
      {"\\uD800", "hexadecimal"},
      {"\\x{110000}", "hexadecimal"},
      {"(?i:strasse)", "under (?i)"},
      {"(?i:\xC3\xA9)", "outside ASCII"},
      {"(?i:\\p{L})", "under (?i)"},
      {"(?i:[^a])", "under (?i)"},
      {"(?=a+)b", "unbounded"},
      {"^*a", "repeated anchor"},
      {"(?=a)+b", "repeated anchor"},
      {"a\\", "at the end"},
  };
  for (const auto& [pattern, word] : refused) {
    const std::string text = Changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", pattern);
    family.Refused(std::string("T03 ") + pattern, [&] { return ParseText(text); }, {word});
  }
  const std::string deep = std::string(40, '(') + "a" + std::string(40, ')');
  for (const std::string& pattern : {deep, std::string(9000, 'a'), "[" + std::string(100000, '[')}) {
    const std::string text = Changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", pattern);
    family.Refused("T03 big", [&] { return ParseText(text); });
  }
  for (const char* pattern :
       {"(?:ab)+c", "a{1,3}b", "a{,3}b", "(?>a|b)c", "^a$", "\\Aa\\z", "a??b", "[^\\S\\n]", "\\p{Han}+",
        "\\p{^L}", "(?i:'[sdmt]|ll|ve|re)", "[\\u4e00-\\u9fff-]", "\\x41"}) {
    const std::string text = Changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", pattern);
    family.Accepted(std::string("T03 ") + pattern, [&] { return ParseText(text); });
  }
}

TEST(BadTokenizer, Template) {  // T05
  Family family("T05 template");
  const json other = {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json second = {{"Sequence", {{"id", "B"}, {"type_id", 0}}}};
  RefuseAll(&family,
            {{"T05", "/post_processor/single/0", other, {"special_tokens", "</s>"}},
             {"T05", "/post_processor/single/0", text, {"2 times"}},
             {"T05", "/post_processor/single/1", second, {"sequence B"}},
             {"T05", "/post_processor/single", json::array(), {"0 times"}},
             {"T05", "/post_processor/special_tokens/<s>/ids/0", 99, {"<s>", "99", "5"}},
             {"T05", "/post_processor/special_tokens/<s>/ids/0", -1, {"-1"}},
             {"T05", "/post_processor/special_tokens/<s>/ids", json::array(), {"as many ids as tokens"}},
             {"T05", "/post_processor/special_tokens/<s>/tokens/0", "</s>", {"</s>", "none"}}});
}

TEST(BadTokenizer, Size) {  // T06
  Family family("T06 size");
  const TempDir dir;
  const std::string path = dir / "tokenizer.json";
  WriteTestFile(path, "{");
  std::filesystem::resize_file(path, size_t{300} << 20);
  family.Refused("T06 300 MB", [&] { return Tokenizer::Load(dir.path()).status(); }, {"tokenizer.json"});
  std::string deep = R"({"normalizer":)";
  for (int i = 0; i < 100000; ++i) deep += R"({"type":"Sequence","normalizers":[)";
  family.Refused("T06 depth 100 k", [&] { return ParseText(deep); }, {"tokenizer.json", "64"},
                 {.file_bytes = deep.size()});
  family.Refused("T06 no file", [&] { return Tokenizer::Load(dir.path() + "/nowhere").status(); },
                 {"nowhere"});
}

TEST(BadTokenizer, IgnoredAndClamped) {  // T07, T13
  Family family("T07, T13");
  const json truncation = {
      {"direction", "Right"}, {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 9}};
  const json padding = {{"strategy", {{"Fixed", 0}}}, {"direction", "Left"}, {"pad_id", 1 << 30}};
  const std::pair<const char*, json> accepted[] = {{"/truncation", truncation},
                                                   {"/padding", padding},
                                                   {"/decoder/decoders/3/start", 1000000},
                                                   {"/decoder/decoders/3/stop", 1000000},
                                                   {"/model/vocab/", 9}};
  for (const auto& [path, value] : accepted) {
    const std::string text = Changed(path, value);
    family.Accepted(std::string("T07 ") + path, [&] {
      const auto document = Json::Parse(text, {}, "tokenizer.json");
      const auto tokenizer = Tokenizer::Parse(document->root());
      if (!tokenizer.ok()) return tokenizer.status();
      const auto ids = (*tokenizer)->Encode(" abb a  b", SpecialTokens::kAdd);
      if (!ids.ok() || ids->size() < 4) return Error(Code::kCorrupt, "the text was cut");
      for (const int32_t id : *ids) {
        if (id == 9) return Error(Code::kCorrupt, "an empty token was produced");
      }
      (*tokenizer)->Decode(*ids, true);
      (*tokenizer)->Decode(std::vector<int32_t>{3}, true);  // shorter than what Strip wants to cut
      return Status();
    });
  }
  RefuseAll(&family, {{"T07", "/decoder/decoders/3/stop", -1, {"stop", "-1"}},
                      {"T07", "/decoder/decoders/3/content", "", {"one character"}}});
}

TEST(BadTokenizer, Unsupported) {
  Family family("unsupported");
  std::vector<Change> changes;
  for (const char* type : {"BertNormalizer", "Precompiled", "StripAccents", "Nmt", "ByteLevel", "x"}) {
    changes.push_back({"normalizer", "/normalizer", {{"type", type}}, {type, "normalizer"}});
  }
  for (const char* type : {"BertPreTokenizer", "UnicodeScripts", "CharDelimiterSplit", "FixedLength"}) {
    changes.push_back({"pre_tokenizer", "/pre_tokenizer", {{"type", type}}, {type}});
  }
  for (const char* type : {"RobertaProcessing", "BertProcessing"}) {
    changes.push_back({"post_processor", "/post_processor", {{"type", type}}, {type}});
  }
  for (const char* type : {"WordPiece", "CTC", "BPEDecoder"}) {
    changes.push_back({"decoder", "/decoder", {{"type", type}}, {type}});
  }
  for (const char* type : {"Unigram", "WordPiece", "WordLevel"}) {
    changes.push_back({"model", "/model/type", type, {type, "only BPE"}});
  }
  const json regex = {{"Regex", "a+"}};
  const std::vector<Change> more = {
      {"version", "/version", "2.0", {"2.0"}},
      {"dropout", "/model/dropout", 0.1, {"dropout 0.1"}},
      {"prefix", "/model/continuing_subword_prefix", "##", {"continuing_subword_prefix"}},
      {"suffix", "/model/end_of_word_suffix", "</w>", {"end_of_word_suffix"}},
      {"decoder", "/decoder/decoders/0/pattern", regex, {"Regex"}},
      {"decoder", "/decoder/decoders/1", nullptr, {"decoders[1]"}},
      {"pattern", "/normalizer/normalizers/4/pattern", json::object(), {"String"}},
      {"pattern", "/normalizer/normalizers/4/pattern/String", "", {"0 bytes"}},
      {"pattern", "/normalizer/normalizers/4/pattern/String", std::string(300, 'x'), {"300 bytes"}},
      {"content", "/normalizer/normalizers/4/content", std::string(300, 'x'), {"300"}},
      {"behavior", "/pre_tokenizer/pretokenizers/0/behavior", "Glued", {"Glued"}},
      {"metaspace", "/pre_tokenizer/pretokenizers/2/replacement", "__", {"one character"}},
      {"metaspace", "/pre_tokenizer/pretokenizers/2/prepend_scheme", "maybe", {"maybe"}},
      {"metaspace", "/pre_tokenizer/pretokenizers/2/add_prefix_space", false, {"add_prefix_space"}},
  };
  changes.insert(changes.end(), more.begin(), more.end());
  RefuseAll(&family, changes);
}

void CollectPaths(const json& node, const std::string& path, std::vector<std::string>* paths) {
  if (!path.empty()) paths->push_back(path);
  if (!node.is_structured()) return;
  for (const auto& [key, value] : node.items()) {
    std::string escaped;
    for (const char c : key) escaped += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
    CollectPaths(value, path + "/" + escaped, paths);
  }
}

// Each value in turn removed, then replaced by values of every type: refused or accepted, nothing else.
TEST(BadTokenizer, EveryValueReplaced) {
  Family family("every value replaced");
  const json good = Good();
  std::vector<std::string> paths;
  CollectPaths(good, "", &paths);
  ASSERT_GT(paths.size(), 100u);
  const json values[] = {nullptr,       "", "a", -1, 0, uint64_t{1} << 63, 1e308, true, json::array(),
                         json::object()};
  for (const std::string& path : paths) {
    family.Settled(path, [&] {
      const json::json_pointer at(path);
      Status last;
      for (const json& value : values) {
        json file = good;
        file[at] = value;
        last = ParseText(file.dump());
      }
      json file = good;
      if (file[at.parent_pointer()].is_object()) file[at.parent_pointer()].erase(at.back());
      const Status removed = ParseText(file.dump());
      return removed.ok() ? last : removed;
    });
  }
}

TEST(BadTokenizer, RandomBytes) {
  Family family("random bytes");
  const std::string good = ReadTestFile(NIBBLE_SOURCE_DIR "/tests/golden/tokenizers/tricky.json");
  for (uint64_t seed = 0; seed < 20; ++seed) {
    family.Settled("seed", [&] {
      uint64_t state = seed;
      Status last;
      for (int i = 0; i < 20; ++i) {
        std::string text = good;
        for (int k = 0; k < 3; ++k) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          text[(state >> 20) % text.size()] =
              static_cast<char>(0x20 + (state >> 56) % 0x5F);  // ASCII: UTF-8 stays valid
        }
        last = ParseText(text);
      }
      return last;
    });
  }
}

}  // namespace
}  // namespace nibble
