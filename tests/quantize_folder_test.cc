// SPDX-License-Identifier: Apache-2.0
// Quantizing a model folder: what comes out, that threads do not matter, and that no run leaves half a
// folder.
#include "model/quantize_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/half.h"
#include "io/manifest.h"
#include "io/weights.h"
#include "model/config.h"
#include "quant/weight/quantize.h"
#include "quant/weight/storage.h"
#include "tests/support/bad_files.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using weight::Storage;

constexpr int kHidden = 256, kInner = 384, kVocab = 64, kLayers = 2;

const std::string kConfig = R"({
  "architectures": ["LlamaForCausalLM"], "zebra": 1e-05, "vocab_size": 64, "hidden_size": 256,
  "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "apple": "\u00e9", "tie_word_embeddings": false, "quantization_config": null
})";

// Half of the layers in each of two shards; data at odd addresses in the second.
std::string MakeModel(const std::string& dir, uint64_t seed = 1) {
  fs::create_directory(dir);
  HonestFile files[2];
  nlohmann::json index;
  const auto add = [&](int shard, const std::string& name, const std::vector<int64_t>& shape) {
    const int64_t count = shape[0] * (shape.size() > 1 ? shape[1] : 1);
    files[shard].Add(name, "BF16", shape, RandomBf16(static_cast<size_t>(count), &seed));
    index["weight_map"][name] = std::to_string(shard) + ".safetensors";
  };
  files[1].Add("odd", "U8", {1}, "x");
  index["weight_map"]["odd"] = "1.safetensors";
  add(0, "model.embed_tokens.weight", {kVocab, kHidden});
  add(1, "lm_head.weight", {kVocab, kHidden});
  add(1, "model.norm.weight", {kHidden});
  for (int i = 0; i < kLayers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    add(i, layer + ".input_layernorm.weight", {kHidden});
    add(i, layer + ".post_attention_layernorm.weight", {kHidden});
    for (const char* name : {"q", "o"})
      add(i, layer + ".self_attn." + name + "_proj.weight", {kHidden, kHidden});
    for (const char* name : {"k", "v"})
      add(i, layer + ".self_attn." + name + "_proj.weight", {kHidden / 2, kHidden});
    for (const char* name : {"gate", "up"})
      add(i, layer + ".mlp." + name + "_proj.weight", {kInner, kHidden});
    add(i, layer + ".mlp.down_proj.weight", {kHidden, kInner});
  }
  WriteTestFile(dir + "/0.safetensors", files[0].Text());
  WriteTestFile(dir + "/1.safetensors", files[1].Text());
  WriteTestFile(dir + "/model.safetensors.index.json", index.dump());
  WriteTestFile(dir + "/config.json", kConfig);
  WriteTestFile(dir + "/tokenizer.json", "{\"a tokenizer\": true}");
  WriteTestFile(dir + "/LICENSE", "text");
  WriteTestFile(dir + "/pytorch_model.bin", "a pickle");
  fs::create_directory(dir + "/folder");
  return dir;
}

std::vector<float> Floats(const io::TensorInfo& t) {
  std::vector<float> out(t.bytes / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    memcpy(&bits, t.data + 2 * i, 2);
    out[i] = BitsToFloat(uint32_t{bits} << 16);
  }
  return out;
}

template <class T>
void ExpectTensor(const io::Weights& weights, const std::string& name, const char* dtype,
                  const std::vector<int64_t>& shape, const std::vector<T>& values) {
  const io::TensorInfo* t = weights.Find(name);
  ASSERT_NE(t, nullptr) << name;
  EXPECT_EQ(t->dtype, dtype) << name;
  EXPECT_EQ(t->shape, shape) << name;
  ASSERT_EQ(t->bytes, values.size() * sizeof(T)) << name;
  EXPECT_EQ(memcmp(t->data, values.data(), t->bytes), 0) << name;
}

// Everything that `name` became, against the quantizer given the whole matrix at once.
void ExpectQuantized(const io::Weights& before, const io::Weights& after, const std::string& name,
                     Storage storage) {
  const io::TensorInfo* t = before.Find(name);
  ASSERT_NE(t, nullptr) << name;
  const int64_t n = t->shape[0], k = t->shape[1];
  const auto q = weight::Quantize(Floats(*t).data(), static_cast<int>(n), static_cast<int>(k), storage);
  ASSERT_TRUE(q.ok());
  ExpectTensor(after, name + "_scale", "F16", {n}, q->scale);
  switch (storage) {
    case Storage::kW4A8Group:
      ExpectTensor(after, name + "_packed", "U8", {n, k / 2}, q->codes);
      ExpectTensor(after, name + "_group_scale", "U8", {n, k / 128}, q->group_scale);
      ExpectTensor(after, name + "_group_zero", "U8", {n, k / 128}, q->zero);
      break;
    case Storage::kW4A8Channel:
      ExpectTensor(after, name + "_packed", "U8", {n, k / 2}, q->codes);
      ExpectTensor(after, name + "_zero", "U8", {n}, q->zero);
      break;
    default:
      ExpectTensor(after, name, "I8", {n, k}, q->codes);
      return;
  }
  EXPECT_EQ(after.Find(name), nullptr);
}

bool IsLinear(const std::string& name) { return name.find("_proj.weight") != std::string::npos; }
bool IsEmbedding(const std::string& name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

class QuantizeFolderTest : public testing::TestWithParam<Storage> {};

TEST_P(QuantizeFolderTest, EveryTensorAndFile) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model");
  for (const bool int8_embedding : {false, true}) {
    const std::string out = dir / ("out" + std::to_string(int8_embedding));
    int64_t last = 0, total = 0;
    const auto report = QuantizeFolder(model, out,
                                       {.storage = GetParam(),
                                        .int8_embedding = int8_embedding,
                                        .threads = 2,
                                        .on_progress =
                                            [&](int64_t done, int64_t all) {
                                              EXPECT_GT(done, last);
                                              last = done;
                                              total = all;
                                            },
                                        .cancel = nullptr});
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_EQ(last, total);
    EXPECT_EQ(report->tensors, 7 * kLayers + (int8_embedding ? 2 : 0));
    EXPECT_EQ(report->bytes_after, fs::file_size(out + "/model.safetensors"));

    const auto before = io::Weights::Open(model), after = io::Weights::Open(out);
    ASSERT_TRUE(before.ok() && after.ok());
    for (const io::TensorInfo& t : (*before)->tensors()) {
      if (IsLinear(t.name)) {
        ExpectQuantized(**before, **after, t.name, GetParam());
      } else if (int8_embedding && IsEmbedding(t.name)) {
        ExpectQuantized(**before, **after, t.name, Storage::kW8A8);
      } else {
        ExpectTensor(**after, t.name, t.dtype.c_str(), t.shape,
                     std::vector<std::byte>(t.data, t.data + t.bytes));
      }
    }
    EXPECT_EQ(ReadTestFile(out + "/tokenizer.json"), "{\"a tokenizer\": true}");
    EXPECT_EQ(ReadTestFile(out + "/LICENSE"), "text");
    for (const char* gone :
         {"0.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "folder"}) {
      EXPECT_FALSE(fs::exists(out + "/" + gone)) << gone;
    }
    const auto config = ReadModelConfig(out);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config->weights.format, weight::Name(GetParam()));
    EXPECT_EQ(config->weights.int8_embedding, int8_embedding);
    const std::string text = ReadTestFile(out + "/config.json");  // keys in their order, ours last
    EXPECT_LT(text.find("zebra"), text.find("vocab_size"));
    EXPECT_LT(text.find("vocab_size"), text.find("apple"));
    EXPECT_LT(text.find("tie_word_embeddings"), text.find("quantization_config"));
    EXPECT_NE(text.find("1e-05"), std::string::npos);
    EXPECT_TRUE(io::VerifyManifest(out).ok()) << io::VerifyManifest(out).message();
    EXPECT_NE(QuantizeFolder(out, dir / "twice", {}).status().message().find("already"), std::string::npos);
  }
}

TEST_P(QuantizeFolderTest, ThreadsDoNotMatter) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model");
  for (const int threads : {1, 2, 5}) {
    ASSERT_TRUE(
        QuantizeFolder(model, dir / std::to_string(threads), {.storage = GetParam(), .threads = threads})
            .ok());
  }
  for (const char* file : {"/model.safetensors", "/config.json", "/nibble_manifest.json"}) {
    EXPECT_EQ(ReadTestFile(dir / "1" + file), ReadTestFile(dir / "2" + file)) << file;
    EXPECT_EQ(ReadTestFile(dir / "1" + file), ReadTestFile(dir / "5" + file)) << file;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeFolderTest,
                         testing::Values(Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8));

// Names in the folder of a model except the model itself.
std::vector<std::string> Leftovers(const TempDir& dir) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(dir.path())) {
    if (entry.path().filename() != "model") out.push_back(entry.path().filename());
  }
  return out;
}

TEST(QuantizeFolder, RefusesWithoutATrace) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model");
  EXPECT_FALSE(QuantizeFolder(model, model, {}).ok());
  EXPECT_FALSE(QuantizeFolder(dir / "none", dir / "out", {}).ok());
  EXPECT_FALSE(QuantizeFolder(model, dir / "out", {.storage = Storage::kBF16}).ok());

  const auto expect = [&](const std::string& word) {
    const auto report = QuantizeFolder(model, dir / "out", {.threads = 2});
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.status().message().find(word), std::string::npos) << report.status().message();
    EXPECT_EQ(Leftovers(dir), std::vector<std::string>{});
  };
  const std::string good = ReadTestFile(model + "/1.safetensors");
  std::string bad = good;  // the last bf16 values: a NaN in down_proj of layer 1
  bad[bad.size() - 1] = '\x7f', bad[bad.size() - 2] = '\xc1';
  WriteTestFile(model + "/1.safetensors", bad);
  expect("model.layers.1.mlp.down_proj.weight");
  WriteTestFile(model + "/1.safetensors", good);

  std::string config = kConfig;
  config.replace(config.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 3");
  WriteTestFile(model + "/config.json", config);
  expect("14 weights of decoder layers, expected 21 for 3 layers");
}

TEST(QuantizeFolder, RefusesOddShapes) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model");
  // 0.safetensors again with a k of 100, and everything else left out of the index.
  HonestFile file;
  nlohmann::json index;
  uint64_t seed = 3;
  for (const char* name :
       {"self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"}) {
    const std::string full = std::string("model.layers.0.") + name + "_proj.weight";
    file.Add(full, "BF16", {8, 100}, RandomBf16(800, &seed));
    index["weight_map"][full] = "0.safetensors";
  }
  WriteTestFile(model + "/0.safetensors", file.Text());
  WriteTestFile(model + "/model.safetensors.index.json", index.dump());
  std::string config = kConfig;
  config.replace(config.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 1");
  WriteTestFile(model + "/config.json", config);
  const auto report = QuantizeFolder(model, dir / "out", {});
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.status().message().find("model.layers.0.mlp.down_proj.weight"), std::string::npos);
  EXPECT_EQ(Leftovers(dir), std::vector<std::string>{});
}

TEST(QuantizeFolder, Cancelled) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model");
  std::atomic<bool> cancel = false;
  const auto report = QuantizeFolder(
      model, dir / "out", {.on_progress = [&](int64_t, int64_t) { cancel = true; }, .cancel = &cancel});
  EXPECT_EQ(report.status().code(), Code::kCancelled);
  EXPECT_EQ(Leftovers(dir), std::vector<std::string>{});
}

// Ends a run in a child at its step-th tensor by `end`; returns the wait status.
int EndAt(const std::string& model, const std::string& out, int step, void (*end)()) {
  const pid_t child = fork();
  if (child == 0) {
    int steps = 0;
    (void)QuantizeFolder(model, out,
                         {.threads = 1,
                          .on_progress =
                              [&](int64_t, int64_t) {
                                if (++steps == step) end();
                              }})
        .ok();
    _exit(0);
  }
  int how = 0;
  waitpid(child, &how, 0);
  return how;
}

TEST(QuantizeFolder, KilledRunLeavesNoHalfFolder) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model"), out = dir / "out";
  for (const int step : {1, 7, 14}) {
    const int how = EndAt(model, out, step, [] { kill(getpid(), SIGKILL); });
    ASSERT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL) << step;
    EXPECT_FALSE(fs::exists(out)) << step;
    EXPECT_EQ(Leftovers(dir).size(), 1u) << step;  // the temporary folder; that of the step before is gone
  }
  ASSERT_TRUE(QuantizeFolder(model, out, {}).ok());
  EXPECT_EQ(Leftovers(dir), std::vector<std::string>{"out"});
  EXPECT_TRUE(io::VerifyManifest(out).ok());
}

TEST(QuantizeFolder, FullDiskLeavesNoHalfFolder) {
  const TempDir dir;
  const std::string model = MakeModel(dir / "model"), out = dir / "out";
  ASSERT_TRUE(QuantizeFolder(model, dir / "good", {}).ok());
  const auto size = static_cast<rlim_t>(fs::file_size(dir / "good/model.safetensors"));
  fs::remove_all(dir / "good");
  for (const rlim_t limit : {size - 1, size / 2, rlim_t{4}}) {  // at the weights, before them
    const pid_t child = fork();
    if (child == 0) {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit full = {limit, limit};
      setrlimit(RLIMIT_FSIZE, &full);
      const auto report = QuantizeFolder(model, out, {});
      _exit(report.ok() ? 1 : report.status().code() == Code::kIo ? 0 : 2);
    }
    int how = 0;
    waitpid(child, &how, 0);
    EXPECT_EQ(how, 0) << limit;
    EXPECT_EQ(Leftovers(dir), std::vector<std::string>{}) << limit;
  }
}

TEST(QuantizeFolder, TrainedModel) {
  const char* models = std::getenv("NIBBLE_TEST_MODELS");
  const fs::path model = fs::path(models == nullptr ? "" : models) / "novelist-29m";
  if (!fs::exists(model)) GTEST_SKIP() << "novelist-29m is not here: set NIBBLE_TEST_MODELS";
  const TempDir dir;
  const auto report = QuantizeFolder(model, dir / "out", {.threads = 2});
  ASSERT_TRUE(report.ok()) << report.status().message();
  uintmax_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(dir / "out")) bytes += entry.file_size();
  std::printf("[ figures  ] novelist-29m: %.2f s on 2 threads, folder %.2f MB\n", report->seconds,
              double(bytes) / 1e6);
  EXPECT_LE(bytes, 24'000'000u);
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LE(report->seconds, 3.0);
#endif
}

}  // namespace
}  // namespace nibble
