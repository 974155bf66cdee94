// SPDX-License-Identifier: Apache-2.0
// Tests. The program as a user runs it: JSON keys and values of every command, streaming, batches, signals,
// the progress bar. Wrong usage and bad files are in cli_errors_test.cc.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "recipe/attention_recipe.h"
#include "tests/support/run_nibble.h"
#include "tests/support/tiny_model.h"

namespace nibble::test {
namespace {

using nlohmann::json;

const char* const kNight = "It was a dark and stormy night";

// Runs, expects exit code 0 and nothing on standard error, returns the object.
json RunJson(Args args) {
  args.push_back("--json");
  const RunResult r = RunNibble(args);
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_EQ(r.out.find('\n'), r.out.size() - 1) << "one line";
  return json::parse(r.out, nullptr, false);
}

std::set<std::string> Keys(const json& object) {
  std::set<std::string> keys;
  for (const auto& item : object.items()) keys.insert(item.key());
  return keys;
}

void ExpectKeys(const json& object, const std::vector<const char*>& wanted) {
  for (const char* key : wanted) EXPECT_TRUE(object.contains(key)) << key;
}

Args Generate(Args rest) {
  Args args{"generate", "-m", Model10m()};
  args.insert(args.end(), rest.begin(), rest.end());
  return args;
}

Args Eval(Args rest) {
  Args args{"eval", "-m", Model10m(), "--text", Hound(), "--window", "256", "--max-windows", "2"};
  args.insert(args.end(), rest.begin(), rest.end());
  return args;
}

TEST(Cli, VersionAndHelp) {
  EXPECT_EQ(RunNibble({"--version"}).out.rfind("nibble ", 0), 0u);
  for (const char* command : {"generate", "quantize", "eval", "bench", "tokenize", "inspect"}) {
    const RunResult help = RunNibble({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_EQ(help.err, "");
    EXPECT_NE(help.out.find("Examples:\n  nibble " + std::string(command)), std::string::npos) << help.out;
    for (const char* option :
         {"--threads", "--device", "--recipe", "--dtype", "--explain", "--quiet", "--version", "--help"})
      EXPECT_NE(help.out.find(option), std::string::npos) << command << option;
    EXPECT_EQ(RunNibble({command, "--version"}).out.rfind("nibble ", 0), 0u);
  }
}

// One object a test, in the order depth, prompt, generation; rates are of this machine.
TEST(Cli, Bench) {
  const RunResult r = RunNibble({"bench", "-m", Model10m(), "-p", "70,0", "-n", "3", "-d", "0,130", "-r", "2",
                                 "--recipe", "qserve", "-o", "json"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  const json tests = json::parse(r.out, nullptr, false);
  ASSERT_EQ(tests.size(), 4u);
  const char* const names[] = {"pp70", "tg3", "pp70 @ d130", "tg3 @ d130"};
  for (size_t i = 0; i < tests.size(); ++i) {
    const json& t = tests[i];
    EXPECT_EQ(t["test"], names[i]);
    EXPECT_EQ(t["n_depth"], i < 2 ? 0 : 130);
    EXPECT_EQ(t["samples_ts"].size(), 2u);
    EXPECT_GT(t["median_ts"], 0.0);
    EXPECT_EQ(t["weights"], "float");
    EXPECT_EQ(t["random_weights"], false);
    EXPECT_EQ(t["random_depth"], i >= 2);
  }
  EXPECT_GT(tests[2]["kv_bytes"], tests[0]["kv_bytes"]);
  // Through token selection that keeps scores, the depth comes from a prefill.
  const RunResult h2o = RunNibble({"bench", "-m", Model10m(), "-p", "0", "-n", "2", "-d", "70", "-r", "1",
                                   "--recipe", "h2o", "-o", "json"});
  EXPECT_EQ(h2o.exit_code, 0) << h2o.err;
  EXPECT_EQ(json::parse(h2o.out, nullptr, false)[0]["random_depth"], false);
  const RunResult csv = RunNibble({"bench", "-m", Model10m(), "-p", "8", "-n", "2", "-r", "1", "-o", "csv"});
  EXPECT_EQ(std::count(csv.out.begin(), csv.out.end(), '\n'), 3);
  EXPECT_EQ(csv.out.rfind("version,device,model,", 0), 0u);
  const RunResult deep = RunNibble({"bench", "-m", Model10m(), "-d", "4000"});
  EXPECT_EQ(deep.exit_code, 1);
  EXPECT_NE(deep.err.find("tokens of context, the model has 4096"), std::string::npos) << deep.err;
}

TEST(Cli, GenerateMatchesGolden) {
  const json golden = GoldenJson(Model10m())["generation"][0];
  const json got = RunJson(Generate({"-p", kNight, "-n", "64", "--ignore-eos", "--logits-top", "16"}));
  EXPECT_EQ(Keys(got),
            (std::set<std::string>{"prompt_tokens", "token_ids", "text", "finish_reason", "prefill_seconds",
                                   "decode_seconds", "tokens_per_second", "last_prompt_logits", "decode_rows",
                                   "bytes_read_per_row", "scalars_read_per_row", "tokens_read_per_row",
                                   "dense_fallbacks"}));
  EXPECT_EQ(got["prompt_tokens"], golden["ids"].size());
  EXPECT_EQ(got["token_ids"], golden["greedy64"]);
  EXPECT_EQ(got["text"], golden["greedy64_text"]);
  EXPECT_EQ(got["finish_reason"], "length");
  EXPECT_GT(got["prefill_seconds"], 0.0);
  EXPECT_GT(got["decode_seconds"], 0.0);
  EXPECT_NEAR(got["tokens_per_second"].get<double>(), 63 / got["decode_seconds"].get<double>(), 1e-6);
  ASSERT_EQ(got["last_prompt_logits"].size(), 16u);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(got["last_prompt_logits"][i][0], golden["last_logits_top16"][i][0]);
    EXPECT_NEAR(got["last_prompt_logits"][i][1].get<double>(),
                golden["last_logits_top16"][i][1].get<double>(), 1e-3);
  }
}

TEST(Cli, StreamIsTheText) {
  const json want = RunJson(Generate({"-p", kNight, "-n", "40"}));
  EXPECT_FALSE(want.contains("last_prompt_logits"));
  for (const Args& flags : {Args{}, Args{"--stream"}, Args{"--quiet", "-t", "1"}}) {
    Args args = Generate({"-p", kNight, "-n", "40"});
    args.insert(args.end(), flags.begin(), flags.end());
    const RunResult r = RunNibble(args);
    EXPECT_EQ(r.exit_code, 0);
    EXPECT_EQ(r.out, want["text"].get<std::string>() + "\n");
  }
}

TEST(Cli, PromptsFromFilesAndStandardInput) {
  const TempDir dir;
  const std::string file = WriteFile(dir.path() + "/prompt.txt", kNight);
  const json want = RunJson(Generate({"-p", kNight, "-n", "8"}))["token_ids"];
  EXPECT_EQ(RunJson(Generate({"-f", file, "-n", "8"}))["token_ids"], want);
  Args args = Generate({"-f", "-", "-n", "8", "--json"});
  EXPECT_EQ(json::parse(RunNibble(args, {.stdin_path = file}).out)["token_ids"], want);
}

TEST(Cli, BatchGivesWhatEachGivesAlone) {
  const std::vector<std::string> prompts = {kNight, "The", "The detective looked at the", "[a, b]",
                                            "She opened the door and said, \"My dear"};
  Args batch = Generate({"-n", "24", "--temp", "0.9", "--seed", "5", "--recipe", "qserve", "--json"});
  std::vector<json> alone;
  for (const std::string& prompt : prompts) {
    batch.insert(batch.end(), {"-p", prompt});
    alone.push_back(
        RunJson(Generate({"-n", "24", "--temp", "0.9", "--seed", "5", "--recipe", "qserve", "-p", prompt})));
  }
  const RunResult together = RunNibble(batch);
  EXPECT_EQ(together.exit_code, 0) << together.err;
  std::istringstream lines(together.out);
  std::string line;
  size_t i = 0;
  for (; std::getline(lines, line); ++i) {
    ASSERT_LT(i, alone.size());
    const json got = json::parse(line);
    EXPECT_EQ(got["token_ids"], alone[i]["token_ids"]) << prompts[i];
    EXPECT_EQ(got["text"], alone[i]["text"]);
    EXPECT_EQ(got["prompt_tokens"], alone[i]["prompt_tokens"]);
  }
  EXPECT_EQ(i, prompts.size());
}

TEST(Cli, SamplingAndStop) {
  const Args hot = Generate({"-p", kNight, "-n", "30", "--temp", "1.2", "--top-k", "50", "--top-p", "0.95",
                             "--min-p", "0.01", "--repeat-penalty", "1.1", "--seed", "3"});
  const json a = RunJson(hot), b = RunJson(hot);
  EXPECT_EQ(a["token_ids"], b["token_ids"]);
  Args other_seed = hot;
  other_seed.back() = "4";
  EXPECT_NE(RunJson(other_seed)["token_ids"], a["token_ids"]);

  // Greedy text of the golden: ", and the\nsunshine of the morning ..."
  const json stopped = RunJson(Generate({"-p", kNight, "--stop", "zzz", "--stop", "shine of"}));
  EXPECT_EQ(stopped["text"], ", and the\nsun");
  EXPECT_EQ(stopped["finish_reason"], "stop");
}

TEST(Cli, TokenizeMatchesGolden) {
  size_t checked = 0;
  const json golden = GoldenJson(Model10m());
  for (const json& vector : golden["tokenizer"]) {
    const std::string text = vector["text"];
    if (text.find('\0') != std::string::npos || checked == 12) continue;  // an argument cannot hold NUL
    ++checked;
    const json got = RunJson({"tokenize", "-m", Model10m(), "-p", text});
    EXPECT_EQ(Keys(got), (std::set<std::string>{"ids", "tokens"}));
    EXPECT_EQ(got["ids"], vector["ids"]) << text;
    EXPECT_EQ(got["tokens"].size(), got["ids"].size());
    EXPECT_EQ(RunJson({"tokenize", "-m", Model10m(), "-p", text, "--no-special"})["ids"],
              vector["ids_without_bos"]);
  }
  EXPECT_EQ(checked, 12u);
  const json night = RunJson({"tokenize", "-m", Model10m(), "-p", "a dark night"});
  EXPECT_EQ(night["tokens"][0], "<|begin_of_text|>");
  std::string plain;
  for (const json& id : night["ids"]) plain += (plain.empty() ? "" : " ") + id.dump();
  EXPECT_EQ(RunNibble({"tokenize", "-m", Model10m(), "-p", "a dark night"}).out, plain + "\n");
}

const std::vector<const char*> kEvalKeys = {
    "tokens",       "nll_per_token",      "perplexity", "kv_bits_per_value",
    "weight_bytes", "kv_bytes_per_token", "seconds"};
const std::vector<const char*> kReferenceKeys = {"kld_mean", "kld_p99", "same_top",
                                                 "reference_nll_per_token"};

TEST(Cli, EvalWithoutReference) {
  const json got = RunJson(Eval({}));
  ExpectKeys(got, kEvalKeys);
  for (const char* key : kReferenceKeys) EXPECT_FALSE(got.contains(key)) << key;
  EXPECT_EQ(got["tokens"], 2 * 255);
  EXPECT_NEAR(got["perplexity"].get<double>(), std::exp(got["nll_per_token"].get<double>()), 1e-9);
  EXPECT_EQ(got["kv_bits_per_value"], 32.0);
  EXPECT_EQ(got["kv_bytes_per_token"], 6 * 2 * 2 * 64 * 4);  // layers, K and V, KV heads, head size, f32
  const json one = RunJson(Eval({"-t", "1"})), two = RunJson(Eval({"-t", "2"}));
  EXPECT_EQ(one["nll_per_token"], two["nll_per_token"]);
}

TEST(Cli, EvalAgainstItselfIsExactlyZero) {
  for (const Args& flags : {Args{"--reference", Model10m()}, Args{"--reference-recipe", "exact"}}) {
    const json got = RunJson(Eval(flags));
    ExpectKeys(got, kEvalKeys);
    ExpectKeys(got, kReferenceKeys);
    EXPECT_EQ(got["kld_mean"], 0.0);
    EXPECT_EQ(got["kld_p99"], 0.0);
    EXPECT_EQ(got["same_top"], 1.0);
    EXPECT_EQ(got["reference_nll_per_token"], got["nll_per_token"]);
  }
}

TEST(Cli, EvalSeesTheCodec) {
  const json int4 = RunJson(Eval({"--recipe", "k=int4-token v=int4-token", "--reference-recipe", "exact"}));
  const json int8 = RunJson(Eval({"--recipe", "kv8", "--reference-recipe", "exact"}));
  EXPECT_GT(int4["kld_mean"], int8["kld_mean"]);
  EXPECT_GT(int8["kld_mean"], 0.0);
  EXPECT_LT(int4["kld_mean"], 0.02);
  EXPECT_LT(int4["same_top"], 1.0);
  EXPECT_LT(int4["kv_bits_per_value"], 5.0);
  EXPECT_GE(int4["kv_bits_per_value"], 4.0);
  EXPECT_EQ(int4["reference_nll_per_token"], int8["reference_nll_per_token"]);
}

TEST(Cli, EvalTable) {
  const RunResult r = RunNibble(Eval({"--reference-recipe", "exact"}));
  EXPECT_EQ(r.exit_code, 0);
  EXPECT_EQ(r.err, "") << "no bar when piped";
  for (const char* word :
       {"perplexity", "KL divergence, p99", "same top token          100.00%", "KV bits per value"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word << "\n" << r.out;
}

TEST(Cli, QuantizeThenInspectEvalAndGenerate) {
  const TempDir dir;
  uint64_t last_bytes = 0;
  const json original = RunJson({"inspect", Model10m()});
  EXPECT_EQ(original["memory"]["weight_bytes"], RunJson(Eval({}))["weight_bytes"]);
  for (const char* format : {"w4a8-chn", "w4a8-g128", "w8a8"}) {
    const std::string out = dir.path() + "/" + format;
    const json report =
        RunJson({"quantize", "-m", Model10m(), "-o", out, "--weights", format, "--method", "rtn"});
    EXPECT_EQ(Keys(report), (std::set<std::string>{"bytes_before", "bytes_after", "tensors", "seconds"}));
    EXPECT_GT(report["bytes_after"], last_bytes);
    EXPECT_LT(report["bytes_after"], report["bytes_before"].get<uint64_t>() * 3 / 4);
    last_bytes = report["bytes_after"];

    const json inspected = RunJson({"inspect", out});
    EXPECT_EQ(inspected["config"]["weight_format"], format);
    EXPECT_EQ(inspected["total_bytes"], report["bytes_after"]);
    const json eval = RunJson({"eval", "-m", out, "--text", Hound(), "--window", "256", "--max-windows", "2",
                               "--reference", Model10m()});
    EXPECT_EQ(inspected["memory"]["weight_bytes"], eval["weight_bytes"]) << format;
    EXPECT_GT(eval["kld_mean"], 1e-5);
    EXPECT_LT(eval["kld_mean"], 0.2);
    EXPECT_EQ(RunJson({"generate", "-m", out, "-p", kNight, "-n", "8"})["token_ids"].size(), 8u);
  }
}

TEST(Cli, QuantizeWithCalibration) {
  const TempDir dir;
  const auto args = [&](const std::string& out, Args more) {
    Args all = {"quantize",
                "-m",
                Model10m(),
                "-o",
                dir.path() + out,
                "--weights",
                "w4a8-g128",
                "--calibration",
                Hound(),
                "--calibration-tokens",
                "256",
                "--calibration-window",
                "128"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const json report = RunJson(args("/all", {}));
  EXPECT_EQ(Keys(report), (std::set<std::string>{"bytes_before", "bytes_after", "tensors", "seconds",
                                                 "resumed_layers", "layers"}));
  ASSERT_EQ(report["layers"].size(), 6u);
  EXPECT_EQ(Keys(report["layers"][5]),
            (std::set<std::string>{"layer", "attention", "value", "mlp", "linears", "stream_error"}));
  EXPECT_EQ(report["layers"][5]["linears"].size(), 7u);
  const RunResult table = RunNibble(args("/some", {"--passes", "fold,rotate,clip"}));
  EXPECT_EQ(table.exit_code, 0) << table.err;
  for (const char* word : {"keys a/b", "down", "42 tensors in w4a8-g128"})
    EXPECT_NE(table.out.find(word), std::string::npos) << word << "\n" << table.out;
  EXPECT_EQ(RunJson({"inspect", dir.path() + "/some"})["config"]["weight_format"], "w4a8-g128");
}

TEST(Cli, InspectFolderAndFile) {
  const json folder = RunJson({"inspect", Model10m()});
  EXPECT_EQ(folder["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(folder["config"]["head_dim"], 64);
  EXPECT_EQ(folder["files"].size(), 2u);
  ASSERT_EQ(folder["tensors"].size(), 6u * 9 + 2);
  EXPECT_EQ(Keys(folder["tensors"][0]), (std::set<std::string>{"name", "dtype", "shape", "bytes"}));
  const size_t presets = PresetNames().size();
  ASSERT_EQ(folder["memory"]["kv"].size(), presets);
  EXPECT_EQ(folder["memory"]["kv"][0]["recipe"], "exact");
  EXPECT_EQ(RunJson({"inspect", Model10m(), "--recipe", "k=f16 v=f16"})["memory"]["kv"].size(), presets + 1);

  const json file = RunJson({"inspect", Model10m() + "/model-00002-of-00002.safetensors"});
  EXPECT_EQ(file["files"].size(), 1u);
  EXPECT_FALSE(file.contains("memory"));
  const RunResult text = RunNibble({"inspect", Model10m()});
  EXPECT_EQ(text.exit_code, 0);
  for (const char* word :
       {"LlamaForCausalLM", "model.embed_tokens.weight", "[4096, 384]", "3,145,728", "qserve"})
    EXPECT_NE(text.out.find(word), std::string::npos) << word << "\n" << text.out;
}

TEST(Cli, ExplainNamesDeviceRecipeAndKernels) {
  const RunResult r =
      RunNibble(Generate({"-p", "The", "-n", "1", "--explain", "--recipe", "qserve", "--json"}));
  EXPECT_EQ(r.exit_code, 0);
  for (const char* word : {"device: cpu", "k=int4-token", "attention:"})
    EXPECT_NE(r.err.find(word), std::string::npos) << word << "\n" << r.err;
  EXPECT_TRUE(json::accept(r.out));
}

TEST(Cli, InterruptKeepsWhatIsThere) {
  Child stream(Generate({"-p", kNight, "-n", "4000", "--ignore-eos"}));
  std::string text = stream.ReadSome();
  stream.Signal(SIGINT);
  const RunResult r = stream.Wait();
  EXPECT_EQ(r.exit_code, 130);
  text += r.out;
  ASSERT_GT(text.size(), 1u);
  EXPECT_EQ(text.back(), '\n');
  text.pop_back();
  const std::string golden = GoldenJson(Model10m())["generation"][0]["greedy64_text"];
  const size_t common = std::min(text.size(), golden.size());
  EXPECT_EQ(text.substr(0, common), golden.substr(0, common));
  EXPECT_LT(text.size(), 12000u);  // 4000 tokens would be more
}

// The bar is drawn where a person sees it, without color when asked, and is gone at the end.
TEST(Cli, ProgressBarOnTerminals) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (terminal < 0) GTEST_SKIP() << "this system gives no pseudo terminal (is /dev/pts mounted?)";
  close(terminal);
  const RunResult color = RunOnTerminal(Eval({}), {"TERM=xterm", "NO_COLOR="});
  EXPECT_EQ(color.exit_code, 0);
  EXPECT_NE(color.err.find("eval ["), std::string::npos) << color.err;
  EXPECT_NE(color.err.find('%'), std::string::npos);
  EXPECT_NE(color.err.find(" left"), std::string::npos);
  EXPECT_NE(color.err.find("\x1b[36m"), std::string::npos);
  EXPECT_EQ(color.err.substr(color.err.rfind('\r')), "\r\x1b[K");
  const RunResult plain = RunOnTerminal(Eval({}), {"TERM=xterm", "NO_COLOR=1"});
  EXPECT_NE(plain.err.find("eval ["), std::string::npos);
  EXPECT_EQ(plain.err.find("\x1b[36m"), std::string::npos);
  EXPECT_EQ(RunOnTerminal(Eval({"--quiet"}), {"TERM=xterm"}).err, "");
  EXPECT_EQ(RunOnTerminal(Eval({}), {"TERM=dumb"}).err, "");
}

}  // namespace
}  // namespace nibble::test
