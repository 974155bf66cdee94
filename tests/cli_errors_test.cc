// SPDX-License-Identifier: Apache-2.0
// Tests. Wrong usage gives exit code 2, everything else that is wrong exit code 1; both one line on standard
// error that names what is wrong, and nothing on standard output.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/run_nibble.h"
#include "tests/support/tiny_model.h"

namespace nibble::test {
namespace {

struct Case {
  const char* name;
  Args args;
  std::vector<const char*> says;  // each is part of the message
};

// "" when the message is one line that begins with "nibble: " and says what it should.
std::string Complaint(const RunResult& r, int exit_code, const std::vector<const char*>& says) {
  std::string complaint;
  if (r.exit_code != exit_code) complaint += "exit code " + std::to_string(r.exit_code) + "; ";
  if (!r.out.empty()) complaint += "standard output is not empty; ";
  if (r.err.rfind("nibble: ", 0) != 0) complaint += "does not begin with \"nibble: \"; ";
  if (std::count(r.err.begin(), r.err.end(), '\n') != 1 || r.err.back() != '\n')
    complaint += "not one line; ";
  for (const char* word : says)
    if (r.err.find(word) == std::string::npos) complaint += std::string("does not say \"") + word + "\"; ";
  return complaint.empty() ? "" : complaint + "the message: " + r.err;
}

void Expect(const std::vector<Case>& cases, int exit_code) {
  for (const Case& c : cases) EXPECT_EQ(Complaint(RunNibble(c.args), exit_code, c.says), "") << c.name;
}

TEST(CliErrors, TheCheckItselfCanFail) {
  const RunResult good{2, "", "nibble: --top-k: wrong\n"};
  EXPECT_EQ(Complaint(good, 2, {"--top-k"}), "");
  EXPECT_NE(Complaint(good, 1, {}), "");
  EXPECT_NE(Complaint(good, 2, {"--top-p"}), "");
  EXPECT_NE(Complaint({2, "text", good.err}, 2, {}), "");
  EXPECT_NE(Complaint({2, "", good.err + "and more\n"}, 2, {}), "");
  EXPECT_NE(Complaint({2, "", "error\n"}, 2, {}), "");
  EXPECT_NE(Complaint({2, "", ""}, 2, {}), "");
}

Args Generate(Args rest) {
  Args args{"generate", "-m", Model10m()};
  args.insert(args.end(), rest.begin(), rest.end());
  return args;
}

TEST(CliErrors, Usage) {
  const std::string m = Model10m();
  Expect(
      {
          {"nothing", {}, {"subcommand", "nibble --help"}},
          {"unknown command", {"generat"}, {"generat"}},
          {"unknown option", Generate({"-p", "x", "--tempo", "1"}), {"--tempo", "nibble generate --help"}},
          {"stray argument", Generate({"-p", "x", "y"}), {"y"}},
          {"two commands", {"tokenize", "-m", m, "-p", "x", "inspect", m}, {"inspect"}},
          {"no model", {"generate", "-p", "x"}, {"--model"}},
          {"no prompt", Generate({}), {"-p TEXT or -f FILE"}},
          {"text and file", Generate({"-p", "x", "-f", "y"}), {"-p TEXT or -f FILE"}},
          {"empty prompt", Generate({"-p", ""}), {"--prompt"}},
          {"empty stop", Generate({"-p", "x", "--stop", ""}), {"--stop"}},
          {"option without value", Generate({"-p"}), {"--prompt"}},
          {"-n 0", Generate({"-p", "x", "-n", "0"}), {"--predict"}},
          {"-n -1", Generate({"-p", "x", "-n", "-1"}), {"--predict", "-1"}},
          {"-n word", Generate({"-p", "x", "-n", "many"}), {"--predict", "many"}},
          {"-n huge", Generate({"-p", "x", "-n", "99999999999999999999"}), {"--predict"}},
          {"-n 1.5", Generate({"-p", "x", "-n", "1.5"}), {"--predict", "1.5"}},
          {"device", Generate({"-p", "x", "--device", "gpu"}), {"--device", "gpu"}},
          {"quantize on a GPU",
           {"quantize", "-m", m, "-o", "x", "--weights", "w8a8", "--device", "cuda"},
           {"--device"}},
          {"temperature", Generate({"-p", "x", "--temp", "-1"}), {"temp", "-1"}},
          {"temperature nan", Generate({"-p", "x", "--temp", "nan"}), {"temp", "nan"}},
          {"temperature word", Generate({"-p", "x", "--temp", "hot"}), {"--temp", "hot"}},
          {"top-k", Generate({"-p", "x", "--top-k", "-3"}), {"-3"}},
          {"top-p", Generate({"-p", "x", "--top-p", "1.5"}), {"1.5"}},
          {"min-p", Generate({"-p", "x", "--min-p", "-0.1"}), {"-0.1"}},
          {"repeat penalty", Generate({"-p", "x", "--repeat-penalty", "0"}), {"penalty"}},
          {"seed", Generate({"-p", "x", "--seed", "-1"}), {"--seed"}},
          {"recipe", Generate({"-p", "x", "--recipe", "nosuch"}), {"--recipe", "nosuch"}},
          {"recipe value", Generate({"-p", "x", "--recipe", "k=int3"}), {"--recipe", "int3"}},
          {"recipe key", Generate({"-p", "x", "--recipe", "kk=f16"}), {"--recipe", "kk"}},
          {"dtype", Generate({"-p", "x", "--dtype", "f64"}), {"--dtype", "f64", "bf16"}},
          {"threads", Generate({"-p", "x", "-t", "-2"}), {"--threads", "-2"}},
          {"too many threads", Generate({"-p", "x", "-t", "100000"}), {"--threads", "100000"}},
          {"stream and json", Generate({"-p", "x", "--stream", "--json"}), {"--stream", "--json"}},
          {"stream of two", Generate({"-p", "x", "-p", "y", "--stream"}), {"--stream"}},
          {"logits", Generate({"-p", "x", "--logits-top", "0"}), {"--logits-top"}},
          {"bench of nothing", {"bench"}, {"-m", "--shape"}},
          {"bench of two", {"bench", "-m", m, "--shape", "1b"}, {"-m", "--shape"}},
          {"bench shape", {"bench", "--shape", "2b"}, {"--shape", "2b"}},
          {"bench format of a folder", {"bench", "-m", m, "--weights", "w8a8"}, {"--weights", "--shape"}},
          {"bench without tests", {"bench", "-m", m, "-p", "0", "-n", "0"}, {"-p, -n"}},
          {"bench plan", {"bench", "-m", m, "--plan", "p.json"}, {"--plan"}},
          {"bench packed",
           {"bench", "--shape", "1b", "--pack-cache", "on"},
           {"--pack-cache", "in no folder"}},
          {"packed", Generate({"-p", "x", "--pack-cache", "maybe"}), {"--pack-cache", "maybe", "rebuild"}},
          {"nodes", Generate({"-p", "x", "--numa", "all"}), {"--numa", "all", "distribute"}},
          {"packed elsewhere", {"tokenize", "-m", m, "-p", "x", "--pack-cache", "on"}, {"--pack-cache"}},
          {"bench list", {"bench", "-m", m, "-p", "4,x"}, {"--n-prompt", "x"}},
          {"eval without text", {"eval", "-m", m}, {"--text"}},
          {"window", {"eval", "-m", m, "--text", Hound(), "--window", "1"}, {"--window"}},
          {"windows", {"eval", "-m", m, "--text", Hound(), "--max-windows", "0"}, {"--max-windows"}},
          {"reference recipe",
           {"eval", "-m", m, "--text", Hound(), "--reference-recipe", "bad"},
           {"--reference-recipe", "bad"}},
          {"no output", {"quantize", "-m", m, "--weights", "w8a8"}, {"--out"}},
          {"no format", {"quantize", "-m", m, "-o", "/tmp/x"}, {"--weights"}},
          {"format",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w2"},
           {"--weights", "w2", "w4a8-g128"}},
          {"embedding",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--quantize-embedding", "int4"},
           {"--quantize-embedding", "int4"}},
          {"method",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--method", "awq"},
           {"--method", "awq"}},
          {"pass",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--passes", "fold,spin"},
           {"--passes", "spin", "smooth-attention"}},
          {"rotation of norms",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--passes", "rotate"},
           {"--passes", "fold"}},
          {"alpha",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--alpha", "2"},
           {"--alpha", "2"}},
          {"calibration without need",
           {"quantize", "-m", m, "-o", "/tmp/x", "--weights", "w8a8", "--method", "rtn", "--calibration",
            "x"},
           {"--calibration", "rtn"}},
          {"no text", {"tokenize", "-m", m}, {"-p TEXT or -f FILE"}},
          {"text twice", {"tokenize", "-m", m, "-p", "x", "-f", "y"}, {"--file"}},
          {"no path", {"inspect"}, {"path"}},
      },
      2);
}

TEST(CliErrors, ModelsAndFiles) {
  const TempDir dir;
  const std::string none = dir.path() + "/none",
                    garbage = WriteFile(dir.path() + "/a.safetensors", "garbage");
  const std::string empty = WriteFile(dir.path() + "/empty.txt", "");
  const std::string m = Model10m();
  std::filesystem::create_directory(dir.path() + "/bare");
  const std::string bare = dir.path() + "/bare";
  Expect(
      {
          {"model folder missing", {"generate", "-m", none, "-p", "x"}, {"none"}},
          {"model folder empty", {"generate", "-m", bare, "-p", "x"}, {"bare", "config.json"}},
          {"model is a file", {"generate", "-m", empty, "-p", "x"}, {"empty.txt"}},
          {"tokenizer missing", {"tokenize", "-m", bare, "-p", "x"}, {"tokenizer.json"}},
          {"prompt file missing", Generate({"-f", none}), {"none", "No such file"}},
          {"prompt file is a folder", Generate({"-f", bare}), {"bare", "folder"}},
          {"prompt file empty", Generate({"-f", empty}), {"empty.txt", "empty"}},
          {"text missing", {"eval", "-m", m, "--text", none}, {"none", "No such file"}},
          {"text is a folder", {"eval", "-m", m, "--text", bare}, {"bare", "folder"}},
          {"text empty", {"eval", "-m", m, "--text", empty}, {"empty.txt", "nothing to score"}},
          {"window beyond context",
           {"eval", "-m", m, "--text", Hound(), "--window", "4097"},
           {"4097", "4096"}},
          {"reference missing", {"eval", "-m", m, "--text", Hound(), "--reference", none}, {"none"}},
          {"quantize nothing", {"quantize", "-m", none, "-o", none + "2", "--weights", "w8a8"}, {"none"}},
          {"quantize onto a folder",
           {"quantize", "-m", m, "-o", dir.path(), "--weights", "w8a8", "--method", "rtn"},
           {"not empty"}},
          {"calibrate onto a folder",
           {"quantize", "-m", m, "-o", dir.path(), "--weights", "w8a8", "--calibration", Hound()},
           {"not empty"}},
          {"calibration text missing",
           {"quantize", "-m", m, "-o", none + "2", "--weights", "w8a8", "--calibration", none},
           {"none", "--calibration FILE"}},
          {"calibration text empty",
           {"quantize", "-m", m, "-o", none + "2", "--weights", "w8a8", "--calibration", empty},
           {"empty.txt", "empty"}},
          {"quantize into nowhere",
           {"quantize", "-m", m, "-o", none + "/x/y", "--weights", "w8a8", "--method", "rtn"},
           {"none"}},
          {"inspect nothing", {"inspect", none}, {"none"}},
          {"inspect garbage", {"inspect", garbage}, {"a.safetensors"}},
          {"inspect a text", {"inspect", Hound()}, {"Doyle_Hound_1902.txt"}},
          {"a path with a line break", {"inspect", dir.path() + "/a\nb"}, {"a b"}},
      },
      1);
  EXPECT_FALSE(std::filesystem::exists(none));
}

// The first value of the final norm becomes NaN in the file: the manifest sees it, and so does a look at the
// weights.
TEST(CliErrors, InspectFindsDamage) {
  const TempDir dir;
  const std::string out = dir.path() + "/damaged";
  ASSERT_EQ(
      RunNibble({"quantize", "-m", Model10m(), "-o", out, "--weights", "w8a8", "--method", "rtn", "--quiet"})
          .exit_code,
      0);
  EXPECT_EQ(RunNibble({"inspect", out, "--verify", "--check-weights"}).exit_code, 0);
  std::fstream file(out + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), 8);
  std::string header(header_bytes, ' ');
  file.read(header.data(), std::streamsize(header_bytes));
  const auto norm = nlohmann::json::parse(header)["model.norm.weight"];
  ASSERT_EQ(norm["dtype"], "BF16");
  file.seekp(std::streamoff(8 + header_bytes + norm["data_offsets"][0].get<uint64_t>()));
  file.write("\xFF\xFF", 2);
  file.close();
  Expect({{"manifest", {"inspect", out, "--verify"}, {"model.safetensors"}},
          {"NaN", {"inspect", out, "--check-weights"}, {"model.norm.weight", "NaN"}},
          {"no manifest", {"inspect", Model10m(), "--verify"}, {"nibble_manifest.json"}}},
         1);
}

TEST(CliErrors, PromptsThatDoNotFit) {
  const TempDir dir;
  std::string long_text;
  for (int i = 0; i < 5000; ++i) long_text += " night";
  const std::string long_file = WriteFile(dir.path() + "/long.txt", long_text);
  const std::string invalid = WriteFile(dir.path() + "/invalid.txt", "good \xed\xa0\x80 bad");
  Expect(
      {
          {"prompt beyond the context", Generate({"-f", long_file, "--json"}), {"4096"}},
          {"prompt and -n beyond it", Generate({"-p", "The", "-n", "5000", "--json"}), {"5000", "4096"}},
          {"invalid UTF-8 prompt", Generate({"-f", invalid, "--json"}), {"invalid.txt", "UTF-8", "5"}},
          {"invalid UTF-8 argument", Generate({"-p", "\xff", "--json"}), {"prompt 1", "UTF-8"}},
          {"invalid UTF-8 to eval", {"eval", "-m", Model10m(), "--text", invalid}, {"invalid.txt", "UTF-8"}},
          {"invalid UTF-8 to tokenize",
           {"tokenize", "-m", Model10m(), "-f", invalid},
           {"invalid.txt", "UTF-8"}},
      },
      1);
  // A stream that fails before its first piece prints nothing either.
  EXPECT_EQ(Complaint(RunNibble(Generate({"-f", long_file})), 1, {"4096"}), "");
  // Without -n a prompt near the end of the context gets what is left of it.
  const std::string near_end = WriteFile(dir.path() + "/near.txt", long_text.substr(0, 6 * 4090));
  const RunResult r = RunNibble(Generate({"-f", near_end, "--json", "--ignore-eos"}));
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const auto json = nlohmann::json::parse(r.out);
  EXPECT_EQ(json["prompt_tokens"].get<size_t>() + json["token_ids"].size(), 4096u);
}

TEST(CliErrors, Environment) {
  EXPECT_EQ(Complaint(RunNibble(Generate({"-p", "x"}), {.environment = {"NIBBLE_CPU=z80"}}), 1,
                      {"NIBBLE_CPU", "z80"}),
            "");
  for (const Args& args : {Generate({"-p", "x", "-n", "4"}), Args{"inspect", Model10m(), "--json"}}) {
    const RunResult full = RunNibble(args, {.stdout_path = "/dev/full"});
    EXPECT_EQ(Complaint(full, 1, {"standard output", "No space left"}), "");
  }
}

}  // namespace
}  // namespace nibble::test
