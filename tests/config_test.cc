// SPDX-License-Identifier: Apache-2.0
// What a good config.json means: every architecture, the defaults of absent keys, both spellings of RoPE.
#include "model/config.h"

#include <gtest/gtest.h>

#include <numeric>

namespace nibble {
namespace {

const std::string kSizes =
    R"("hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,)"
    R"("vocab_size":151936)";

Result<ModelConfig> Parse(const std::string& text, const std::string& generation = "") {
  NIBBLE_ASSIGN(const Json config, Json::Parse(text, {}, "config.json"));
  if (generation.empty()) return ParseModelConfig(config.root(), nullptr);
  NIBBLE_ASSIGN(const Json other, Json::Parse(generation, {}, "generation_config.json"));
  const JsonRef root = other.root();
  return ParseModelConfig(config.root(), &root);
}

ModelConfig Good(const std::string& architecture, const std::string& rest = "",
                 const std::string& generation = "") {
  const auto config =
      Parse("{\"architectures\":[\"" + architecture + "\"]," + kSizes + rest + "}", generation);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : ModelConfig{};
}

int Windows(const ModelConfig& c) {
  return std::accumulate(c.layer_uses_window.begin(), c.layer_uses_window.end(), 0);
}

// The values of the configuration classes of transformers 5.
TEST(Config, DefaultsOfEachArchitecture) {
  const ModelConfig llama = Good("LlamaForCausalLM");
  EXPECT_EQ(llama.kv_heads, 32);
  EXPECT_EQ(llama.head_dim, 128);
  EXPECT_EQ(llama.max_position, 2048);
  EXPECT_EQ(llama.norm_eps, 1e-6);
  EXPECT_EQ(llama.rope.theta, 10000.0);
  EXPECT_EQ(llama.rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(llama.activation, Activation::kSilu);
  EXPECT_FALSE(llama.tied_head || llama.qkv_bias || llama.out_bias || llama.mlp_bias);
  EXPECT_EQ(llama.sliding_window, 0);
  EXPECT_EQ(llama.layer_uses_window, std::vector<bool>(32, false));
  EXPECT_EQ(llama.bos_token, 1);
  EXPECT_EQ(llama.eos_tokens, std::vector<int32_t>{2});
  EXPECT_EQ(llama.weights.format, "");

  const ModelConfig mistral = Good("MistralForCausalLM");
  EXPECT_EQ(mistral.kv_heads, 8);
  EXPECT_EQ(mistral.max_position, 131072);
  EXPECT_EQ(mistral.sliding_window, 4096);
  EXPECT_EQ(Windows(mistral), 32);
  EXPECT_FALSE(mistral.qkv_bias);

  const ModelConfig qwen2 = Good("Qwen2ForCausalLM");
  EXPECT_EQ(qwen2.kv_heads, 32);
  EXPECT_EQ(qwen2.head_dim, 128);
  EXPECT_EQ(qwen2.max_position, 32768);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.out_bias);
  EXPECT_EQ(qwen2.sliding_window, 0);
  EXPECT_EQ(qwen2.bos_token, -1);
  EXPECT_TRUE(qwen2.eos_tokens.empty());

  const ModelConfig qwen3 = Good("Qwen3ForCausalLM", ",\"hidden_size_of_something\":1");
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(Windows(qwen3), 0);
}

TEST(Config, HeadsAndBiases) {
  EXPECT_EQ(Good("MistralForCausalLM", ",\"num_key_value_heads\":null").kv_heads, 32);
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"num_key_value_heads\":1").kv_heads, 1);
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"head_dim\":80").head_dim, 80);
  EXPECT_EQ(Good("Qwen3ForCausalLM", ",\"head_dim\":64").head_dim, 64);
  const ModelConfig llama = Good("LlamaForCausalLM", ",\"attention_bias\":true,\"mlp_bias\":true");
  EXPECT_TRUE(llama.qkv_bias && llama.out_bias && llama.mlp_bias);
  const ModelConfig qwen3 = Good("Qwen3ForCausalLM", ",\"attention_bias\":true,\"mlp_bias\":true");
  EXPECT_TRUE(qwen3.qkv_bias && qwen3.out_bias && !qwen3.mlp_bias);
  EXPECT_FALSE(Good("MistralForCausalLM", ",\"attention_bias\":true").qkv_bias);
  EXPECT_TRUE(Good("LlamaForCausalLM", ",\"tie_word_embeddings\":true").tied_head);
}

TEST(Config, Activations) {
  const auto of = [](const std::string& name) {
    return Good("LlamaForCausalLM", ",\"hidden_act\":\"" + name + "\"").activation;
  };
  EXPECT_EQ(of("swish"), Activation::kSilu);
  EXPECT_EQ(of("gelu"), Activation::kGelu);
  EXPECT_EQ(of("gelu_pytorch_tanh"), Activation::kGeluTanh);
  EXPECT_EQ(of("gelu_new"), Activation::kGeluTanh);
}

TEST(Config, RopeInBothSpellings) {
  const std::string llama3 = R"("factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0)";
  for (
      const std::string& text :
      {R"(,"rope_theta":500000,"rope_scaling":{"rope_type":"llama3","original_max_position_embeddings":8192,)" +
           llama3 + "}",
       R"(,"rope_theta":500000,"rope_scaling":{"type":"llama3","original_max_position_embeddings":8192,)" +
           llama3 + "}",
       R"(,"rope_parameters":{"rope_theta":500000,"rope_type":"llama3","original_max_position_embeddings":8192,)" +
           llama3 + "}",
       R"(,"rope_theta":500000,"original_max_position_embeddings":8192,"rope_scaling":{"rope_type":"llama3",)" +
           llama3 + "}",
       R"(,"rope_theta":500000,"max_position_embeddings":8192,"rope_scaling":{"rope_type":"llama3",)" +
           llama3 + "}"}) {
    const RopeConfig rope = Good("LlamaForCausalLM", text).rope;
    EXPECT_EQ(rope.theta, 500000.0) << text;
    EXPECT_EQ(rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.low_freq_factor, 1.0);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
    EXPECT_EQ(rope.original_max_position, 8192) << text;
  }
  // The object wins over the top level, and rope_scaling over rope_parameters.
  const RopeConfig both =
      Good("LlamaForCausalLM",
           R"(,"rope_theta":1.0,"rope_scaling":{"type":"linear","factor":2,"rope_theta":5.0},)"
           R"("rope_parameters":{"rope_type":"default"})")
          .rope;
  EXPECT_EQ(both.scaling, RopeScaling::kLinear);
  EXPECT_EQ(both.theta, 5.0);
  EXPECT_EQ(both.factor, 2.0);
}

TEST(Config, SlidingWindows) {
  EXPECT_EQ(Good("MistralForCausalLM", ",\"sliding_window\":null").sliding_window, 0);
  EXPECT_EQ(Windows(Good("MistralForCausalLM", ",\"sliding_window\":null")), 0);
  const ModelConfig on =
      Good("Qwen2ForCausalLM", ",\"use_sliding_window\":true,\"sliding_window\":64,\"max_window_layers\":30");
  EXPECT_EQ(on.sliding_window, 64);
  EXPECT_EQ(Windows(on), 2);
  EXPECT_TRUE(on.layer_uses_window[30] && on.layer_uses_window[31]);
  EXPECT_EQ(Good("Qwen2ForCausalLM", ",\"sliding_window\":64").sliding_window, 0);
  EXPECT_EQ(Good("Qwen2ForCausalLM", ",\"use_sliding_window\":true,\"max_window_layers\":32").sliding_window,
            0);
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"sliding_window\":64").sliding_window, 0);
  std::string types = ",\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\"";
  for (int i = 1; i < 32; ++i) types += ",\"full_attention\"";
  const ModelConfig listed = Good("Qwen3ForCausalLM", types + "]");
  EXPECT_EQ(listed.sliding_window, 4096);
  EXPECT_EQ(Windows(listed), 1);
  EXPECT_TRUE(listed.layer_uses_window[0]);
}

TEST(Config, StopTokensOfBothFiles) {
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"eos_token_id\":[7,8]", "{\"eos_token_id\":[8,9]}").eos_tokens,
            (std::vector<int32_t>{7, 8, 9}));
  EXPECT_EQ(Good("LlamaForCausalLM", "", "{\"eos_token_id\":9}").eos_tokens, (std::vector<int32_t>{9}));
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"eos_token_id\":null").eos_tokens, (std::vector<int32_t>{}));
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"bos_token_id\":null").bos_token, -1);
}

TEST(Config, OurQuantization) {
  const ModelConfig c = Good(
      "LlamaForCausalLM",
      R"(,"quantization_config":{"quant_method":"nibble","format":"w4a8-g128","group_size":128,"embedding":"int8"})");
  EXPECT_EQ(c.weights.format, "w4a8-g128");
  EXPECT_TRUE(c.weights.int8_embedding);
  EXPECT_EQ(Good("LlamaForCausalLM", R"(,"quantization_config":{"quant_method":"nibble","format":"w8a8"})")
                .weights.format,
            "w8a8");
  EXPECT_EQ(Good("LlamaForCausalLM", ",\"quantization_config\":null").weights.format, "");
}

TEST(Config, ModelTypeWithoutArchitectures) {
  const auto config = Parse("{\"model_type\":\"mistral\"," + kSizes + "}");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->architecture, "MistralForCausalLM");
  EXPECT_EQ(config->notes.size(), 1u);
}

TEST(Config, MissingSizesAreNamed) {
  const auto config = Parse(R"({"architectures":["LlamaForCausalLM"],"num_hidden_layers":2})");
  EXPECT_EQ(config.status().message(), "config.json: hidden_size is missing");
}

}  // namespace
}  // namespace nibble
