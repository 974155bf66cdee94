// SPDX-License-Identifier: Apache-2.0
// QoQ on whole folders: better than rounding to nearest, the same for any number of threads, resumable after
// a kill to the same bytes, and one clear line for input that cannot be used.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "engine/evaluate.h"
#include "io/manifest.h"
#include "model/qoq/folder.h"
#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string& Text() {
  static const std::string text = ReadTestFile(NIBBLE_SOURCE_DIR "/texts/Stevenson_Treasure_1883.txt");
  return text;
}

constexpr int kSmallLayers = 6;

// A random model of 6 small layers with the tokenizer of the embedded one, so that a run takes a moment.
const std::string& SmallModel() {
  static const TempDir dir;
  static const std::string model = [] {
    nlohmann::json golden = {{"dtype", "BF16"}, {"files", 1}};
    golden["config"] = {{"architectures", {"LlamaForCausalLM"}},
                        {"vocab_size", 4096},
                        {"hidden_size", 128},
                        {"intermediate_size", 128},
                        {"num_hidden_layers", kSmallLayers},
                        {"num_attention_heads", 2},
                        {"num_key_value_heads", 1},
                        {"head_dim", 64},
                        {"tie_word_embeddings", true},
                        {"bos_token_id", 4091},
                        {"rms_norm_eps", 1e-5}};
    nlohmann::json& tensors = golden["tensors"];
    tensors["model.embed_tokens.weight"] = {4096, 128};
    tensors["model.norm.weight"] = {128};
    for (int i = 0; i < kSmallLayers; ++i) {
      const std::string prefix = qoq::LayerPrefix(i);
      tensors[prefix + "input_layernorm.weight"] = {128};
      tensors[prefix + "post_attention_layernorm.weight"] = {128};
      for (const auto name : qoq::kLinearNames) tensors[prefix + std::string(name) + ".weight"] = {128, 128};
      tensors[prefix + "self_attn.k_proj.weight"] = {64, 128};
      tensors[prefix + "self_attn.v_proj.weight"] = {64, 128};
    }
    test::WriteTinyModel(golden, nlohmann::json::object(), dir.path());
    fs::copy(test::Model10m() + "/tokenizer.json", dir.path());
    return dir.path();
  }();
  return model;
}

// Few tokens.
QuantizeOptions Quick(int threads = 2) {
  QuantizeOptions options;
  options.qoq.emplace();
  options.qoq->text = Text();
  options.qoq->tokens = 512;
  options.qoq->window = 256;
  options.threads = threads;
  return options;
}

double Kld(const std::string& folder, const std::string& recipe, const std::string& text) {
  const auto model = Engine::Load({.model = folder, .recipe = recipe, .max_seqs = 1});
  const auto reference = Engine::Load({.model = test::Model10m(), .max_seqs = 1});
  EXPECT_TRUE(model.ok()) << model.status().message();
  EvaluateOptions options;
  options.window = 512;
  options.max_windows = 4;
  const auto report = Evaluate(**model, reference->get(), text, options);
  EXPECT_TRUE(report.ok()) << report.status().message();
  return report.ok() ? report->reference->kld.mean : INFINITY;
}

TEST(QoqFolder, HalvesTheErrorOfRoundingToNearest) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "minutes under a sanitizer; the other tests of this file run the same code";
#endif
  const TempDir dir;
  const std::string hound = ReadTestFile(test::Hound());
  QuantizeOptions options = Quick();
  options.qoq->tokens = 8192;
  options.qoq->window = 1024;
  const auto report = QuantizeFolder(test::Model10m(), dir / "qoq", options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_TRUE(QuantizeFolder(test::Model10m(), dir / "rtn", {.threads = 2}).ok());
  const double qoq = Kld(dir / "qoq", "qserve", hound), rtn = Kld(dir / "rtn", "qserve", hound);
  std::printf("[ figures  ] novelist-10m, qserve: kld %.4f, round to nearest %.4f, %.1f s\n", qoq, rtn,
              report->seconds);
  EXPECT_LT(qoq, 0.6 * rtn);
  EXPECT_TRUE(io::VerifyManifest(dir / "qoq").ok());
  EXPECT_EQ(report->tensors, 42);
  ASSERT_EQ(report->layers.size(), 6u);
  for (const qoq::LayerReport& layer : report->layers) {
    EXPECT_LT(layer.linear[qoq::kGate].error, layer.linear[qoq::kGate].nearest) << layer.index;
    EXPECT_LE(layer.key_error_after, layer.key_error_before) << layer.index;
  }
}

TEST(QoqFolder, ThreadsDoNotMatterAndEveryFormatLoads) {
  const TempDir dir;
  for (const auto storage :
       {weight::Storage::kW4A8Group, weight::Storage::kW4A8Channel, weight::Storage::kW8A8}) {
    std::string bytes;
    for (const int threads : {1, 3}) {
      QuantizeOptions options = Quick(threads);
      options.storage = storage;
      options.int8_embedding = storage == weight::Storage::kW8A8;
      const std::string out = dir / (std::to_string(int(storage)) + "-" + std::to_string(threads));
      const auto report = QuantizeFolder(SmallModel(), out, options);
      ASSERT_TRUE(report.ok()) << report.status().message();
      const std::string now = ReadTestFile(out + "/model.safetensors");
      if (threads == 1) bytes = now;
      EXPECT_TRUE(bytes == now) << "threads " << threads;
      EXPECT_FALSE(fs::exists(out + ".qoq-state"));
      const auto engine = Engine::Load({.model = out, .max_seqs = 1});
      EXPECT_TRUE(engine.ok()) << engine.status().message();
    }
  }
}

TEST(QoqFolder, PassesAloneAndNone) {
  const TempDir dir;
  int n = 0;
  const std::vector<std::vector<std::string>> sets = {
      {},       {"fold"}, {"fold", "rotate"}, {"reorder"}, {"smooth-attention"}, {"smooth-output"},
      {"clip"}, {"gptq"}};
  for (const auto& names : sets) {
    QuantizeOptions options = Quick();
    const auto passes = qoq::ParsePasses(names);
    ASSERT_TRUE(passes.ok());
    EXPECT_EQ(qoq::PassNames(*passes), names);
    options.qoq->passes = *passes;
    const std::string out = dir / std::to_string(n++);
    const auto report = QuantizeFolder(SmallModel(), out, options);
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_TRUE(io::VerifyManifest(out).ok());
    const auto config = ReadModelConfig(out);
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->tied_head, !passes->fold) << "a folded final norm needs a head of its own";
    const auto weights = io::Weights::Open(out);
    ASSERT_TRUE(weights.ok());
    EXPECT_EQ((*weights)->Find("model.embed_tokens.weight")->dtype, passes->rotate ? "F16" : "BF16");
  }
  EXPECT_NE(qoq::ParsePasses(std::vector<std::string>{"rotate"}).status().message().find("fold"),
            std::string::npos);
  EXPECT_NE(qoq::ParsePasses(std::vector<std::string>{"spin"}).status().message().find("smooth-attention"),
            std::string::npos);
}

// Ends a run in a child by SIGKILL at its step-th progress report.
void KillAt(const std::string& out, int step) {
  const pid_t child = fork();
  if (child == 0) {
    int steps = 0;
    QuantizeOptions options = Quick(1);
    options.on_progress = [&](int64_t, int64_t) {
      if (++steps == step) kill(getpid(), SIGKILL);
    };
    (void)QuantizeFolder(SmallModel(), out, options).ok();
    _exit(0);
  }
  int how = 0;
  waitpid(child, &how, 0);
  ASSERT_TRUE(WIFSIGNALED(how)) << step;
}

TEST(QoqFolder, KilledRunContinuesToTheSameBytes) {
  const TempDir dir;
  const std::string whole = dir / "whole", out = dir / "out";
  ASSERT_TRUE(QuantizeFolder(SmallModel(), whole, Quick()).ok());
  KillAt(out, 2 * qoq::kLayerParts + 2);  // inside the third layer
  EXPECT_FALSE(fs::exists(out));
  EXPECT_TRUE(fs::exists(out + ".qoq-state"));
  KillAt(out, 2 * qoq::kLayerParts + 2);  // reports what is there, and dies at the start of the fifth
  EXPECT_FALSE(fs::exists(out));

  int64_t first = 0;
  QuantizeOptions options = Quick();
  options.on_progress = [&](int64_t done, int64_t) { first = first == 0 ? done : first; };
  const auto report = QuantizeFolder(SmallModel(), out, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->resumed_layers, 4);
  EXPECT_EQ(first, report->resumed_layers * qoq::kLayerParts);
  EXPECT_EQ(report->layers.size(), 6u);
  for (const char* file : {"/model.safetensors", "/config.json", "/nibble_manifest.json"})
    EXPECT_TRUE(ReadTestFile(whole + file) == ReadTestFile(out + file)) << file;
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(dir.path())) left.push_back(entry.path().filename());
  std::sort(left.begin(), left.end());
  EXPECT_EQ(left, (std::vector<std::string>{"out", "whole"}));
}

TEST(QoqFolder, OtherOptionsOrTextStartAfresh) {
  const TempDir dir;
  const std::string out = dir / "out";
  KillAt(out, qoq::kLayerParts + 1);
  QuantizeOptions options = Quick();
  options.qoq->tokens = 256;
  const auto report = QuantizeFolder(SmallModel(), out, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->resumed_layers, 0);
}

TEST(QoqFolder, CancelledRunKeepsFinishedLayers) {
  const TempDir dir;
  const std::string out = dir / "out";
  std::atomic<bool> cancel = false;
  QuantizeOptions options = Quick();
  options.cancel = &cancel;
  options.on_progress = [&](int64_t done, int64_t) { cancel = done > qoq::kLayerParts; };
  EXPECT_EQ(QuantizeFolder(SmallModel(), out, options).status().code(), Code::kCancelled);
  EXPECT_FALSE(fs::exists(out));
  cancel = false;
  options.on_progress = {};
  const auto report = QuantizeFolder(SmallModel(), out, options);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->resumed_layers, 1);
}

class QoqBadInput : public testing::Test {
 protected:
  void Expect(const std::string& model, const QuantizeOptions& options, const std::string& word) {
    const auto report = QuantizeFolder(model, dir_ / "out", options);
    ASSERT_FALSE(report.ok()) << word;
    EXPECT_NE(report.status().message().find(word), std::string::npos) << report.status().message();
    EXPECT_EQ(report.status().message().find('\n'), std::string::npos);
    for (const auto& entry : fs::directory_iterator(dir_.path()))
      EXPECT_EQ(entry.path().filename().string().substr(0, 3) == "out", false) << entry.path();
  }
  TempDir dir_;
};

TEST_F(QoqBadInput, Texts) {
  QuantizeOptions options = Quick();
  options.qoq->text = "";
  Expect(SmallModel(), options, "calibration text: empty");
  options.qoq->text = "Too short.";
  Expect(SmallModel(), options, "expected at least one window of 255");
  options.qoq->text = "\xff\xfe not UTF-8";
  Expect(SmallModel(), options, "UTF-8");
}

TEST_F(QoqBadInput, Weights) {
  const std::string model = dir_ / "model";
  fs::copy(SmallModel(), model, fs::copy_options::recursive);
  const auto weights = io::Weights::Open(model);
  ASSERT_TRUE(weights.ok());
  const io::TensorInfo* t = (*weights)->Find("model.layers.2.mlp.up_proj.weight");
  const std::string path = (*weights)->files()[size_t(t->file)];
  std::string bytes = ReadTestFile(path);
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(t->data), 64));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 6] = '\xc1', bytes[at + 7] = '\x7f';  // row 0, column 3
  fs::remove(path);
  WriteTestFile(path, bytes);
  Expect(model, Quick(), "model.layers.2.mlp.up_proj.weight\": row 0, column 3: weight is nan");
  EXPECT_FALSE(fs::exists(dir_ / "out.qoq-state"));
}

TEST_F(QoqBadInput, AlreadyQuantized) {
  const TempDir other;
  ASSERT_TRUE(QuantizeFolder(SmallModel(), other / "rtn", {}).ok());
  Expect(other / "rtn", Quick(), "already");
}

}  // namespace
}  // namespace nibble
