// SPDX-License-Identifier: Apache-2.0
// Good inputs broken at random, with a fixed seed: bits flipped, numbers replaced by those at which
// arithmetic breaks, pieces cut out, repeated and spliced. Run under the sanitizers, where every slip is an
// abort.
#include <gtest/gtest.h>

#include <memory>

#include "base/json.h"
#include "base/printable.h"
#include "io/check_weights.h"
#include "io/safetensors.h"
#include "model/config.h"
#include "tests/support/bad_files.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/mutator.h"

namespace nibble {
namespace {

constexpr int kRounds = kSanitized ? 20'000 : 200'000;

TEST(FuzzReaders, Safetensors) {
  const std::string header =
      Header({{.name = "\"a\"", .shape = "[2,1]"},
              {.name = "\"b\"", .dtype = "\"BF16\"", .shape = "[4]", .offsets = "[8,16]"},
              {.name = R"("\u00e9\n")", .dtype = "\"F4\"", .shape = "[2,2]", .offsets = "[16,18]"}},
             R"("__metadata__":{"format":"pt"},)");
  const std::string data(18, '\x7f');
  Mutator mutator(1);
  int accepted = 0;
  for (int i = 0; i < kRounds; ++i) {
    // Half of the time the length tells the truth, or few inputs would get past it.
    const bool honest = mutator.Below(2) == 0;
    const std::string text =
        honest ? FakeFile(mutator.Break(header), data) : mutator.Break(FakeFile(header, data));
    // An exact heap block: reading one byte beyond it is seen.
    const auto block = std::make_unique<std::byte[]>(text.size());
    memcpy(block.get(), text.data(), text.size());
    const auto file = io::ReadSafetensors({block.get(), text.size()}, "f", 0);
    if (!file.ok()) {
      ASSERT_FALSE(file.status().message().empty());
      continue;
    }
    ++accepted;
    for (const io::TensorInfo& t : file->tensors) {
      ASSERT_TRUE(t.data >= block.get() && t.data + t.bytes <= block.get() + text.size()) << Printable(text);
      (void)io::CheckFinite(t).ok();
    }
  }
  std::printf("[ fuzz     ] safetensors: %d inputs, %d accepted\n", kRounds, accepted);
  EXPECT_GT(accepted, kRounds / 1000);
  EXPECT_LT(accepted, kRounds / 2);
}

TEST(FuzzReaders, Config) {
  const std::string good =
      R"({"architectures":["Qwen3ForCausalLM"],"vocab_size":512,"hidden_size":256,"intermediate_size":512,)"
      R"("num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":32,"rms_norm_eps":1e-05,)"
      R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0},)"
      R"("rope_theta":500000.0,"max_position_embeddings":4096,"use_sliding_window":true,"sliding_window":64,)"
      R"("layer_types":["full_attention","sliding_attention"],"eos_token_id":[2,3],"bos_token_id":1,)"
      R"("quantization_config":{"quant_method":"nibble","format":"w4a8-g128","group_size":128}})";
  ASSERT_TRUE(ParseModelConfig(Json::Parse(good, {}, "f")->root(), nullptr).ok());
  Mutator mutator(2);
  int parsed = 0, accepted = 0;
  for (int i = 0; i < kRounds / 4; ++i) {
    const std::string text = mutator.Break(good);
    const auto json = Json::Parse(text, {}, "f");
    if (!json.ok()) continue;
    ++parsed;
    const auto config = ParseModelConfig(json->root(), nullptr);
    if (!config.ok()) continue;
    ++accepted;
    ASSERT_TRUE(config->heads % config->kv_heads == 0 && config->head_dim % 2 == 0 && config->layers <= 1024);
    ASSERT_EQ(config->layer_uses_window.size(), static_cast<size_t>(config->layers));
  }
  std::printf("[ fuzz     ] config: %d inputs, %d JSON, %d accepted\n", kRounds / 4, parsed, accepted);
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, parsed);
}

}  // namespace
}  // namespace nibble
