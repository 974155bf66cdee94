// SPDX-License-Identifier: Apache-2.0
// Folders whose files are each well formed but do not fit together: rows C04, C05, C07, C15, S23, S30 and S31
// of the table of bad inputs, which the loader of a model decides.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "backend/backend.h"
#include "model/model.h"
#include "model/quantize_folder.h"
#include "tests/support/bad_files.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using Words = std::vector<std::string>;
using JsonText = nlohmann::ordered_json;

struct TestTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A Llama with random weights, any part of which a test may change before it is written.
struct TestModel {
  JsonText config = {{"architectures", {"LlamaForCausalLM"}},
                     {"vocab_size", 48},
                     {"hidden_size", 128},
                     {"intermediate_size", 256},
                     {"num_hidden_layers", 2},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"head_dim", 32},
                     {"rms_norm_eps", 1e-5},
                     {"max_position_embeddings", 64},
                     {"tie_word_embeddings", false}};
  std::map<std::string, TestTensor> tensors;
  uint64_t seed = 7;

  TestModel() {
    Random("model.embed_tokens.weight", {48, 128});
    Random("lm_head.weight", {48, 128});
    Random("model.norm.weight", {128});
    for (const char* layer : {"model.layers.0.", "model.layers.1."}) AddLayer(layer);
  }
  void AddLayer(const std::string& layer) {
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
      Random(layer + norm + ".weight", {128});
    for (const char* name : {"q", "o"}) Random(layer + "self_attn." + name + "_proj.weight", {128, 128});
    for (const char* name : {"k", "v"}) Random(layer + "self_attn." + name + "_proj.weight", {64, 128});
    for (const char* name : {"gate", "up"}) Random(layer + "mlp." + name + "_proj.weight", {256, 128});
    Random(layer + "mlp.down_proj.weight", {128, 256});
  }
  void Random(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    tensors[name] = {"BF16", shape, RandomBf16(static_cast<size_t>(count), &seed)};
  }
  void Write(const std::string& dir) const {
    std::filesystem::create_directory(dir);
    HonestFile file;
    for (const auto& [name, t] : tensors) file.Add(name, t.dtype, t.shape, t.bytes);
    WriteTestFile(dir + "/model.safetensors", file.Text());
    WriteTestFile(dir + "/config.json", config.dump());
  }
};

// The tensors and config of a folder, to be changed and written again.
TestModel ReadBack(const std::string& dir) {
  TestModel m;
  m.tensors.clear();
  m.config = JsonText::parse(ReadTestFile(dir + "/config.json"));
  const auto weights = io::Weights::Open(dir);
  if (!weights.ok()) return m;
  for (const io::TensorInfo& t : (*weights)->tensors()) {
    m.tensors[t.name] = {t.dtype, t.shape, {reinterpret_cast<const char*>(t.data), t.bytes}};
  }
  return m;
}

// Loads in the child only: the threads of a backend do not live through a fork.
Status Load(const std::string& dir) {
  NIBBLE_ASSIGN(const std::unique_ptr<Backend> backend, MakeCpuBackend(1));
  NIBBLE_ASSIGN(const auto model, Model::Load(dir, *backend, {DType::kF32, 8, 8}));
  return {};
}

class BadModels : public testing::Test {
 protected:
  static void SetUpTestSuite() { family_ = new Family("C and S (whole models)"); }
  static void TearDownTestSuite() { delete std::exchange(family_, nullptr); }

  void Refused(const std::string& id, const TestModel& model, Words words) {
    const std::string dir = Save(model);
    words.push_back(dir);
    family_->Refused(
        id, [&] { return Load(dir); }, words);
  }
  void Accepted(const std::string& id, const TestModel& model) {
    const std::string dir = Save(model);
    family_->Accepted(id, [&] { return Load(dir); });
  }
  std::string Save(const TestModel& model) {
    const std::string dir = dir_ / ("m" + std::to_string(models_++));
    model.Write(dir);
    return dir;
  }
  TestModel Quantized(weight::Storage storage, bool int8_embedding = false) {
    const std::string out = dir_ / ("q" + std::to_string(models_));
    const auto report =
        QuantizeFolder(Save(TestModel()), out, {.storage = storage, .int8_embedding = int8_embedding});
    EXPECT_TRUE(report.ok()) << report.status().message();
    return ReadBack(out);
  }

  static Family* family_;
  TempDir dir_;
  int models_ = 0;
};
Family* BadModels::family_ = nullptr;

TEST_F(BadModels, Controls) {
  Accepted("float", TestModel());
  for (const auto storage :
       {weight::Storage::kW4A8Group, weight::Storage::kW4A8Channel, weight::Storage::kW8A8}) {
    Accepted("quantized", Quantized(storage));
    Accepted("quantized with embedding", Quantized(storage, true));
  }
}

TEST_F(BadModels, ConfigAndTensorsDisagree) {
  TestModel m;
  m.config["num_hidden_layers"] = 3;  // C04: more layers than tensors
  Refused("C04", m, {"model.layers.2.", "is missing"});
  m.config["num_hidden_layers"] = 1;
  Accepted("C04 fewer layers, with a note", m);

  m = TestModel();
  m.config["vocab_size"] = 49;  // C05
  Refused("C05 larger", m, {"model.embed_tokens.weight", "48", "49"});
  m.config["vocab_size"] = 47;
  Refused("C05 smaller", m, {"model.embed_tokens.weight", "48", "47"});
  m = TestModel();
  m.Random("lm_head.weight", {49, 128});
  Refused("C05 head", m, {"lm_head.weight", "49", "48"});

  const std::string name = "model.layers.1.mlp.up_proj.weight";  // C07: one tensor a little off
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {256, 129}, {257, 128}, {128, 256}, {256 * 128}, {1, 256, 128}, {}, {0, 128}}) {
    m = TestModel();
    m.Random(name, shape);
    Refused("C07", m, {name, "256"});
  }
  m = TestModel();
  m.Random("model.layers.0.input_layernorm.weight", {129});
  Refused("C07 norm", m, {"model.layers.0.input_layernorm.weight", "129", "128"});
  m = TestModel();
  m.config["head_dim"] = 64;
  Refused("C07 head_dim", m, {"q_proj.weight", "128", "256"});

  for (const auto& [tensor, unused] : TestModel().tensors) {  // C15 and every other tensor
    m = TestModel();
    m.tensors.erase(tensor);
    Refused("C15 no " + tensor, m, {tensor, "missing"});
  }
  m = TestModel();
  m.tensors.erase("lm_head.weight");
  m.config["tie_word_embeddings"] = true;
  Accepted("C15 tied", m);
  m = TestModel();
  m.config["attention_bias"] = true;
  Refused("no bias", m, {"q_proj.bias", "missing"});
}

TEST_F(BadModels, Elements) {
  for (const char* dtype : {"F8_E8M0", "I8", "U8", "F64", "C64", "I32", "BOOL", "F8_E4M3"}) {  // S23: needed
    TestModel m;
    const std::string name = "model.layers.0.mlp.gate_proj.weight";
    TestTensor& t = m.tensors[name];
    t.dtype = dtype;
    const size_t bytes = std::string(dtype) == "F64" || std::string(dtype) == "C64" ? 8
                         : std::string(dtype) == "I32"                              ? 4
                                                                                    : 1;
    t.bytes.assign(size_t{256} * 128 * bytes, '\1');
    Refused(std::string("S23 ") + dtype, m, {name, dtype});
    m.tensors["unused"] = {dtype, {1}, std::string(bytes, 'x')};
    m.Random(name, {256, 128});
    Accepted(std::string("S23 unused ") + dtype, m);
  }
  TestModel m;  // S30: loading does not look at values unless it is asked to
  m.tensors["model.norm.weight"].bytes.replace(0, 2, "\xc1\x7f");
  Accepted("S30", m);
  m.tensors["model.norm.weight"] = {"F32", {128}, std::string(512, '\0')};
  Accepted("F32 norm", m);
}

TEST_F(BadModels, QuantizedParts) {
  const TestModel group = Quantized(weight::Storage::kW4A8Group), byte = Quantized(weight::Storage::kW8A8);
  const TestModel channel = Quantized(weight::Storage::kW4A8Channel);
  const std::string w = "model.layers.0.self_attn.q_proj.weight";
  for (const char* part : {"_packed", "_scale", "_group_scale", "_group_zero"}) {
    TestModel m = group;
    m.tensors.erase(w + part);
    Refused(std::string("no ") + part, m, {w + part, "missing"});
    m = group;
    m.tensors[w + part].shape.back() += 1;
    m.tensors[w + part].bytes += std::string(static_cast<size_t>(m.tensors[w + part].shape[0]) * 2, '\1');
    m.tensors[w + part].bytes.resize(part == std::string("_scale")
                                         ? 129 * 2
                                         : static_cast<size_t>(128 * m.tensors[w + part].shape.back()));
    Refused(std::string("shape of ") + part, m, {w + part, "shape"});
  }
  const auto poke = [&](const std::string& id, TestModel m, const std::string& part, const std::string& bytes,
                        const Words& words) {
    m.tensors[w + part].bytes.replace(0, bytes.size(), bytes);
    Refused("S31 " + id, m, words);
  };
  poke("zero point 16", group, "_group_zero", "\x10", {w, "zero point 16"});
  poke("zero point -1", group, "_group_zero", "\xff", {w, "zero point 255"});
  poke("group scale 0", group, "_group_scale", std::string(1, '\0'), {w, "group scale 0"});
  poke("group scale 17", group, "_group_scale", "\x11", {w, "group scale 17"});
  poke("channel zero point 16", channel, "_zero", "\x10", {w, "zero point 16"});
  for (const TestModel* m : {&group, &channel, &byte}) {
    poke("scale 0", *m, "_scale", std::string(2, '\0'), {w});
    poke("scale NaN", *m, "_scale", std::string("\x00\x7e", 2), {w});
    poke("scale Inf", *m, "_scale", std::string("\x00\x7c", 2), {w});
    poke("scale negative", *m, "_scale", std::string("\x00\xbc", 2), {w});
  }
  poke("code -128", byte, "", "\x80", {w, "-128"});
  TestModel m = group;
  m.config["quantization_config"]["format"] = "w8a8";
  Refused("other format", m, {w});
  m = group;
  m.config.erase("quantization_config");
  Refused("no format", m, {w, "missing"});
  m = TestModel();
  m.config["quantization_config"] = {{"quant_method", "nibble"}, {"format", "w4a8-g128"}};
  Refused("format without parts", m, {"_packed", "missing"});
}

}  // namespace
}  // namespace nibble
