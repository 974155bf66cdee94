// SPDX-License-Identifier: Apache-2.0
// Bad config.json files, the rows C01 to C17 of the table of bad inputs that the reader of the config
// decides. Those that need tensors beside the config (C04's second half, C05, C07, C15) are in
// bad_models_test.cc.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/config.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using JsonText = nlohmann::ordered_json;
using Words = std::vector<std::string>;

JsonText Good(const std::string& architecture) {
  JsonText c = {{"architectures", {architecture}},
                {"vocab_size", 512},
                {"hidden_size", 256},
                {"intermediate_size", 512},
                {"num_hidden_layers", 4},
                {"num_attention_heads", 8},
                {"num_key_value_heads", 2},
                {"head_dim", 32},
                {"hidden_act", "silu"},
                {"rms_norm_eps", 1e-5},
                {"rope_theta", 500000.0},
                {"max_position_embeddings", 4096},
                {"tie_word_embeddings", true},
                {"bos_token_id", 1},
                {"eos_token_id", {2, 3}},
                {"torch_dtype", "bfloat16"},
                {"initializer_range", 0.02},
                {"use_cache", true},
                {"transformers_version", "4.40.0"}};
  if (architecture == "LlamaForCausalLM") {
    c["model_type"] = "llama";
    c["attention_bias"] = false;
    c["mlp_bias"] = false;
    c["pretraining_tp"] = 1;
    c["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", 8.0},
                         {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0},
                         {"original_max_position_embeddings", 1024}};
  } else {
    c["sliding_window"] = 1024;
  }
  if (architecture[0] == 'Q') {
    c["use_sliding_window"] = true;
    c["max_window_layers"] = 2;
    c["layer_types"] = {"full_attention", "full_attention", "sliding_attention", "sliding_attention"};
    c["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 10000.0}};
  }
  return c;
}

// What every accepted config promises to those who read shapes from it. A breach is a crash in the child.
void CheckPromises(const ModelConfig& c) {
  const bool ok = c.layers >= 1 && c.layers <= 1024 && c.hidden >= 1 && c.hidden <= 1 << 20 &&
                  c.intermediate >= 1 && c.intermediate <= 1 << 22 && c.heads >= 1 && c.heads <= 4096 &&
                  c.kv_heads >= 1 && c.heads % c.kv_heads == 0 && c.head_dim >= 8 && c.head_dim <= 1024 &&
                  c.head_dim % 2 == 0 && c.vocab >= 1 && c.vocab <= 1 << 24 && c.max_position >= 1 &&
                  c.max_position <= 1 << 27 && c.norm_eps > 0 && c.norm_eps < 1 && c.rope.theta > 0 &&
                  std::isfinite(float(c.rope.theta)) && c.rope.factor > 0 &&
                  c.rope.high_freq_factor > c.rope.low_freq_factor && c.rope.low_freq_factor > 0 &&
                  c.sliding_window >= 0 && c.layer_uses_window.size() == size_t(c.layers) &&
                  c.bos_token < c.vocab && c.bos_token >= -1;
  if (!ok) abort();
  for (const int32_t id : c.eos_tokens) {
    if (id < 0 || id >= c.vocab) abort();
  }
}

class BadConfigs : public testing::Test {
 protected:
  static void SetUpTestSuite() { family_ = new Family("C (config)"); }
  static void TearDownTestSuite() { delete std::exchange(family_, nullptr); }

  void Save(const std::string& text) { WriteTestFile(path_, text); }
  Status Read() const {
    NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(dir_.path()));
    CheckPromises(config);
    return {};
  }
  void RefusedText(const std::string& id, const std::string& text, Words words = {}) {
    Save(text);
    words.push_back(path_);
    family_->Refused(
        id, [&] { return Read(); }, words);
  }
  // The good Llama config with one value replaced; `value` is JSON text, so that it may be anything.
  void Refused(const std::string& id, const std::string& key, const std::string& value, Words words = {},
               const std::string& architecture = "LlamaForCausalLM") {
    words.push_back(key);
    RefusedText(id + " " + key + " " + value, With(key, value, architecture), words);
  }
  void Accepted(const std::string& id, const std::string& key, const std::string& value,
                const std::string& architecture = "LlamaForCausalLM") {
    Save(With(key, value, architecture));
    family_->Accepted(id + " " + key + " " + value, [&] { return Read(); });
  }
  static std::string With(const std::string& key, const std::string& value, const std::string& architecture) {
    JsonText c = Good(architecture);
    c[key] = "@";
    std::string text = c.dump();
    const std::string mark = "\"@\"";
    return text.replace(text.find(mark), mark.size(), value);
  }

  static Family* family_;
  TempDir dir_;
  const std::string path_ = dir_ / "config.json";
};
Family* BadConfigs::family_ = nullptr;

TEST_F(BadConfigs, Sizes) {
  for (const char* bad :
       {"0", "-1", "2147483648", "9223372036854775808", "1e3", "4.0", "\"8\"", "null", "true"}) {
    for (const char* key :
         {"num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"}) {
      Refused("C01/C04", key, bad, {"wanted an integer in [1, "});
    }
  }
  Refused("C02", "num_key_value_heads", "5", {"8", "5"});
  Refused("C02", "num_key_value_heads", "0");
  Refused("C02", "num_key_value_heads", "16");
  for (const char* bad : {"3", "1000000000", "-128", "128.5", "33", "0", "6", "1026"})
    Refused("C03", "head_dim", bad);
  for (const char* good : {"8", "64", "80", "96", "128", "256", "1024", "null"})
    Accepted("C03", "head_dim", good);
  Refused("C04", "num_hidden_layers", "1025");
  JsonText c = Good("LlamaForCausalLM");
  c.erase("head_dim");
  c["hidden_size"] = 257;
  RefusedText("no head_dim", c.dump(), {"257", "head_dim"});
}

TEST_F(BadConfigs, Rope) {
  for (const char* bad : {"0", "-1.0", "1e300", "\"1\"", "[]"}) Refused("C06", "rope_theta", bad);
  for (const char* bad : {"NaN", "1e400", "Infinity", "-Infinity"}) {
    RefusedText(std::string("C06 ") + bad, With("rope_theta", bad, "LlamaForCausalLM"), {"not valid JSON"});
  }
  const auto scaling = [](const std::string& type, const std::string& rest) {
    return "{\"rope_type\":\"" + type + "\"" + rest + "}";
  };
  Refused("C06", "rope_scaling", scaling("linear", ",\"factor\":0"), {"factor"});
  Refused("C06", "rope_scaling", scaling("linear", ",\"factor\":-2"), {"factor"});
  Refused("C06", "rope_scaling", scaling("linear", ""), {"factor is missing"});
  for (const char* type : {"yarn", "dynamic", "longrope", "su", "mrope", "x\\u202e", ""}) {
    Refused("C06", "rope_scaling", scaling(type, ",\"factor\":2"), {"rope type", "default, linear, llama3"});
  }
  Refused("C06", "rope_scaling", "{\"type\":\"yarn\",\"factor\":2}", {"\"yarn\""});
  const std::string bands = ",\"low_freq_factor\":4.0,\"high_freq_factor\":4.0,\"factor\":8";
  Refused("C06", "rope_scaling", scaling("llama3", bands), {"high_freq_factor 4 is not above"});
  Refused("C06", "rope_scaling", scaling("llama3", ",\"factor\":8"), {"low_freq_factor is missing"});
  Refused("C06", "rope_scaling", "[]");
  Refused("C06", "rope_parameters", "{\"full_attention\":{\"rope_type\":\"default\"}}", {"layer type"},
          "Qwen3ForCausalLM");
  Refused("C06", "partial_rotary_factor", "0.5", {"in part"});
  Accepted("C06", "rope_scaling", scaling("linear", ",\"factor\":4"));
  Accepted("C06", "rope_scaling", "{\"type\":\"linear\",\"factor\":4}");
  Accepted("C06", "rope_scaling", "{}");
  Accepted("C06", "rope_scaling", "null");
}

TEST_F(BadConfigs, Quantization) {
  const auto q = [&](const std::string& text, const Words& words) {
    Refused("C08/C09", "quantization_config", text, words);
  };
  q(R"({"quant_method":"gptq","bits":4,"group_size":0,"desc_act":true})", {"\"gptq\" is not read"});
  q(R"({"quant_method":"awq","bits":5})", {"\"awq\" is not read"});
  q(R"({"quant_method":"gptq","group_size":7})", {"\"gptq\""});
  q(R"({"quant_method":"compressed-tensors"})", {"compressed-tensors"});
  q(R"({})", {"quant_method is missing"});
  q(R"({"quant_method":"nibble"})", {"format is missing"});
  q(R"({"quant_method":"nibble","format":"w3a8"})", {"\"w3a8\" is not known"});
  for (const char* size : {"0", "7", "-1", "64", "256", "4096", "128.0", "\"128\""}) {
    q(R"({"quant_method":"nibble","format":"w4a8-g128","group_size":)" + std::string(size) + "}",
      {"group_size"});
  }
  q(R"({"quant_method":"nibble","format":"w8a8","embedding":"int4"})", {"embedding"});
  q("7", {});
  q("\"nibble\"", {});
  Refused("C08", "compression_config", R"({"quant_method":"x"})", {"\"x\" is not read"});
  Accepted("ours", "quantization_config",
           R"({"quant_method":"nibble","format":"w4a8-g128","group_size":128,"embedding":"int8"})");
}

TEST_F(BadConfigs, Architecture) {
  Refused("C10", "architectures", "[\"EvilForCausalLM\"]",
          {"\"EvilForCausalLM\" is not known", "Qwen3ForCausalLM"});
  for (const char* bad : {"[\"\"]", "[7]", "[null]", "\"LlamaForCausalLM\"", "{}", "7"}) {
    RefusedText(std::string("architectures ") + bad, With("architectures", bad, "LlamaForCausalLM"));
  }
  JsonText c = Good("LlamaForCausalLM");
  c["auto_map"] = {{"AutoModelForCausalLM", "evil.Model"}};
  Save(c.dump());
  family_->Accepted("C10 auto_map", [&] { return Read(); });
  const auto config = ReadModelConfig(dir_.path());
  ASSERT_TRUE(config.ok());
  ASSERT_EQ(config->notes.size(), 1u);
  EXPECT_NE(config->notes[0].find("auto_map is ignored"), std::string::npos);
  c["architectures"] = {"EvilForCausalLM"};
  RefusedText("C10 unknown with auto_map", c.dump(), {"none is ever run"});
  Refused("C14", "num_experts_per_tok", "9", {"experts"});
  Refused("C14", "num_local_experts", "8", {"experts"});
}

TEST_F(BadConfigs, TokensAndLengths) {
  for (const char* bad :
       {"512", "-1", "2147483648", "1.5", "[2,512]", "[-1]", "[[1]]", "[null]", "\"2\"", "{}"}) {
    Refused("C11", "eos_token_id", bad);
  }
  for (const char* good : {"[1,2]", "null", "511", "[]"}) Accepted("C11", "eos_token_id", good);
  for (const char* bad : {"512", "-1", "1.5", "[1]"}) Refused("C11", "bos_token_id", bad);
  Save(Good("LlamaForCausalLM").dump());
  WriteTestFile(dir_ / "generation_config.json", "{\"eos_token_id\":[5,512]}");
  family_->Refused("C11 generation", [&] { return Read(); },
                   {"generation_config.json: eos_token_id[1]", "512"});
  WriteTestFile(dir_ / "generation_config.json", "[]");
  family_->Refused("generation is no object", [&] { return Read(); }, {"generation_config.json"});
  unlink((dir_ / "generation_config.json").c_str());

  for (const char* big : {"1e12", "1000000000000", "9223372036854775808", "1e308"}) {
    Accepted("C12", "max_position_embeddings", big);
    const auto config = ReadModelConfig(dir_.path());
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->max_position, 1 << 27);
    ASSERT_EQ(config->notes.size(), 1u);
    EXPECT_NE(config->notes[0].find("134217728"), std::string::npos);
  }
  for (const char* bad : {"0", "-1", "0.5", "10.5", "\"x\""}) Refused("C12", "max_position_embeddings", bad);
  for (const char* arch : {"MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    for (const char* bad : {"-1", "0", "1.5", "\"x\"", "1000000000"})
      Refused("C16", "sliding_window", bad, {}, arch);
    Accepted("C16", "sliding_window", "null", arch);
  }
  for (const char* bad :
       {"[\"full_attention\"]", "[1,2,3,4]", "\"x\"",
        "[\"full_attention\",\"full_attention\",\"full_attention\",\"chunked_attention\"]"}) {
    Refused("layer types", "layer_types", bad, {}, "Qwen3ForCausalLM");
  }
}

TEST_F(BadConfigs, Documents) {
  const std::string good = Good("LlamaForCausalLM").dump();
  Save(good);
  ASSERT_EQ(truncate(path_.c_str(), 500'000'000), 0);  // sparse
  family_->Refused("C13 500 MB", [&] { return Read(); }, {path_, "500000000 bytes"});
  std::string deep;
  for (int i = 0; i < 10'000; ++i) deep += "{\"a\":";
  RefusedText("C13 deep", deep, {"nested 10000 deep"});
  RefusedText("C13 deep arrays", "{\"a\":" + std::string(10'000, '[') + std::string(10'000, ']') + "}",
              {"deep"});
  std::string wide = "[0";
  for (int i = 0; i < 8'000'000; ++i) wide += ",0";
  RefusedText("C13 wide", wide + "]", {"JSON values"});
  RefusedText("C13 twice", good.substr(0, good.size() - 1) + ",\"vocab_size\":512}",
              {"\"vocab_size\" appears twice"});
  RefusedText("C13 twice inside",
              With("rope_scaling", "{\"type\":\"linear\",\"type\":\"linear\"}", "LlamaForCausalLM"),
              {"rope_scaling", "twice"});
  for (const char* bad : {"", "[]", "null", "7", "\"x\"", "{", "{\"a\":1,}", "\xff", "{}"}) {
    RefusedText(std::string("document ") + bad, bad);
  }
  for (size_t n = 1; n < good.size(); n += 7) RefusedText("cut", good.substr(0, n));
  unlink(path_.c_str());
  family_->Refused("absent", [&] { return Read(); }, {"config.json"});
  std::filesystem::create_symlink("/etc/hostname", path_);
  family_->Refused("link", [&] { return Read(); }, {"leads out of the model folder"});
}

// C17: each key of a good config removed, then replaced by each of eight values.
TEST_F(BadConfigs, EveryKey) {
  const std::vector<std::string> values = {"null",  "\"\"", "-1", "0", "9223372036854775808",
                                           "1e308", "[]",   "{}"};
  int accepted = 0, refused = 0;
  for (const char* architecture :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const JsonText good = Good(architecture);
    const auto run = [&](const std::string& id, const std::string& text) {
      Save(text);
      ++(family_->Settled("C17 " + id, [&] { return Read(); }).verdict == Verdict::kAccepted ? accepted
                                                                                             : refused);
    };
    for (const auto& [key, unused] : good.items()) {
      JsonText without = good;
      without.erase(key);
      run(key + " removed", without.dump());
      for (const std::string& value : values) run(key + " " + value, With(key, value, architecture));
    }
  }
  std::printf("[ C17      ] %d refused, %d accepted\n", refused, accepted);
  EXPECT_GT(refused, 300);  // a reader that looks at nothing would accept everything
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace nibble
