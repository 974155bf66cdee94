// SPDX-License-Identifier: Apache-2.0
// Tests. The file of packed weights beside a model: a model that is mapped from it gives the bytes of one
// that was packed, and no file that is damaged, cut, foreign or stale is used.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cache/kv_cache.h"
#include "io/packed_file.h"
#include "model/model.h"
#include "model/quantize_folder.h"
#include "tests/support/bad_files.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Logits = std::vector<float>;

constexpr int kVocab = 48, kHidden = 128;

void WriteModel(const std::string& dir, uint64_t seed) {
  fs::create_directory(dir);
  HonestFile file;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    file.Add(name, "BF16", shape, RandomBf16(static_cast<size_t>(count), &seed));
  };
  add("model.embed_tokens.weight", {kVocab, kHidden});
  add("lm_head.weight", {kVocab, kHidden});
  add("model.norm.weight", {kHidden});
  const std::string layer = "model.layers.0.";
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
    add(layer + norm + ".weight", {kHidden});
  for (const char* name : {"q", "o"}) add(layer + "self_attn." + name + "_proj.weight", {128, kHidden});
  for (const char* name : {"k", "v"}) add(layer + "self_attn." + name + "_proj.weight", {64, kHidden});
  for (const char* name : {"gate", "up"}) add(layer + "mlp." + name + "_proj.weight", {256, kHidden});
  add(layer + "mlp.down_proj.weight", {kHidden, 256});
  WriteTestFile(dir + "/model.safetensors", file.Text());
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"vocab_size", kVocab},
                                 {"hidden_size", kHidden},
                                 {"intermediate_size", 256},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", 4},
                                 {"num_key_value_heads", 2},
                                 {"head_dim", 32},
                                 {"rms_norm_eps", 1e-5},
                                 {"max_position_embeddings", 64},
                                 {"tie_word_embeddings", false}};
  WriteTestFile(dir + "/config.json", config.dump());
}

struct Ran {
  Logits logits;
  std::vector<std::string> notes, explained;
};

// Loads the folder and runs five tokens through it.
Result<Ran> RunModel(const std::string& dir, PackCache mode, DType arithmetic = DType::kF32,
                     int threads = 1) {
  NIBBLE_ASSIGN(const std::unique_ptr<Backend> backend, MakeCpuBackend(threads));
  NIBBLE_ASSIGN(
      const auto model,
      Model::Load(dir, *backend,
                  {.arithmetic = arithmetic, .max_step_rows = 8, .max_logit_rows = 8, .pack_cache = mode}));
  const ModelConfig& c = model->config();
  NIBBLE_ASSIGN(const auto cache, KvCache::Make(*backend, {.shape = {c.layers, c.kv_heads, c.head_dim},
                                                           .heads = c.heads,
                                                           .recipe = {},
                                                           .max_seqs = 1,
                                                           .max_step_tokens = 8,
                                                           .max_tokens = 64}));
  NIBBLE_ASSIGN(const SeqId seq, cache->Open());
  const std::vector<int32_t> tokens{1, 7, 3, 47, 12}, rows{0, 1, 2, 3, 4};
  const auto count = static_cast<int32_t>(tokens.size());
  NIBBLE_RETURN_IF_ERROR(cache->BeginStep({&seq, 1}, {&count, 1}));
  const Tensor y = model->Forward({tokens, rows}, *cache);
  return Ran{{y.as<float>(), y.as<float>() + y.dim[0] * y.dim[1]}, c.notes, model->Explain()};
}

std::vector<std::string> PackedFiles(const std::string& dir) {
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(dir))
    if (entry.path().string().find(".packed") != std::string::npos) paths.push_back(entry.path().string());
  return paths;
}

bool SameBytes(const Logits& a, const Logits& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool IsMapped(const Ran& ran) { return ran.explained.front().starts_with("weights: mapped from "); }

class PackedWeightFile : public testing::Test {
 protected:
  PackedWeightFile() { WriteModel(model_, 7); }
  // The folder in another format.
  std::string Quantized(weight::Storage storage) {
    const std::string out = dir_ / "quantized";
    fs::remove_all(out);
    const auto report = QuantizeFolder(model_, out, {.storage = storage, .int8_embedding = true});
    EXPECT_TRUE(report.ok()) << report.status().message();
    return out;
  }
  TempDir dir_;
  std::string model_ = dir_ / "model";
};

void MapsWhatItWrote(const std::string& dir, DType arithmetic) {
  const auto plain = RunModel(dir, PackCache::kOff, arithmetic);
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_TRUE(PackedFiles(dir).empty()) << "nobody asked for a file";
  const auto written = RunModel(dir, PackCache::kOn, arithmetic);
  ASSERT_TRUE(written.ok()) << written.status().message();
  EXPECT_FALSE(IsMapped(*written));
  ASSERT_EQ(PackedFiles(dir).size(), 1u);
  ASSERT_FALSE(written->notes.empty());
  EXPECT_NE(written->notes.back().find("packed weights written"), std::string::npos) << written->notes.back();
  for (const int threads : {1, 2}) {
    const auto mapped = RunModel(dir, PackCache::kOn, arithmetic, threads);
    ASSERT_TRUE(mapped.ok()) << mapped.status().message();
    EXPECT_TRUE(IsMapped(*mapped));
    EXPECT_TRUE(SameBytes(plain->logits, written->logits));
    EXPECT_TRUE(SameBytes(plain->logits, mapped->logits));
  }
  fs::remove(PackedFiles(dir)[0]);
}

TEST_F(PackedWeightFile, MappedFloatsGiveTheSameBytes) {
  MapsWhatItWrote(model_, DType::kF32);
  MapsWhatItWrote(model_, DType::kBF16);
}

TEST_F(PackedWeightFile, MappedCodesGiveTheSameBytes) {
  for (const auto storage :
       {weight::Storage::kW4A8Group, weight::Storage::kW4A8Channel, weight::Storage::kW8A8}) {
    SCOPED_TRACE(weight::Name(storage));
    MapsWhatItWrote(Quantized(storage), DType::kF32);
  }
}

TEST_F(PackedWeightFile, ArithmeticsHaveFilesOfTheirOwn) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn, DType::kF32).ok());
  ASSERT_TRUE(RunModel(model_, PackCache::kOn, DType::kBF16).ok());
  EXPECT_EQ(PackedFiles(model_).size(), 2u);
}

TEST_F(PackedWeightFile, QuantizeLeavesTheFileBehind) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  EXPECT_TRUE(PackedFiles(Quantized(weight::Storage::kW8A8)).empty());
}

TEST_F(PackedWeightFile, UnfinishedFilesOfDeadRunsGo) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  const std::string path = PackedFiles(model_)[0], rest = path + ".tmp-1-0";
  WriteTestFile(rest, "half");
  ASSERT_TRUE(RunModel(model_, PackCache::kRebuild).ok());
  EXPECT_FALSE(fs::exists(rest));
  EXPECT_TRUE(fs::exists(path));
}

// Other weights under the same name of the folder.
TEST_F(PackedWeightFile, StaleFilesAreRefusedAndReplacedWhenAsked) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  const std::string old_file = PackedFiles(model_)[0];
  fs::remove(model_ + "/model.safetensors");
  WriteModel(model_, 8);
  const auto refused = RunModel(model_, PackCache::kOn);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kCorrupt);
  for (const std::string& word : {old_file, std::string("stale"), std::string("--pack-cache rebuild")})
    EXPECT_NE(refused.status().message().find(word), std::string::npos) << refused.status().message();
  ASSERT_TRUE(RunModel(model_, PackCache::kOff).ok()) << "nobody asked for the file";
  const auto rebuilt = RunModel(model_, PackCache::kRebuild);
  ASSERT_TRUE(rebuilt.ok()) << rebuilt.status().message();
  EXPECT_FALSE(fs::exists(old_file));
  const auto mapped = RunModel(model_, PackCache::kOn);
  ASSERT_TRUE(mapped.ok()) << mapped.status().message();
  EXPECT_TRUE(IsMapped(*mapped) && SameBytes(mapped->logits, rebuilt->logits));
}

TEST_F(PackedWeightFile, FoldersThatAreNoneAreNamed) {
  const std::string nowhere = dir_ / "nowhere";
  const auto weights = io::Weights::Open(model_);
  ASSERT_TRUE(weights.ok());
  const auto key = io::MakePackedKey(**weights, false);
  ASSERT_TRUE(key.ok());
  const auto writer = io::PackedWriter::Create(nowhere, *key);
  ASSERT_FALSE(writer.ok());
  EXPECT_NE(writer.status().message().find(nowhere), std::string::npos) << writer.status().message();
}

// ---- damaged files ----

// Fields of the header, docs/formats/packed_weights.md.
constexpr size_t kLayouts = 8, kBf16 = 12, kWeights = 16, kSources = 20, kTableOffset = 24, kTableBytes = 32,
                 kFileBytes = 40, kFingerprint = 48, kTableHash = 80, kHash = 88, kData = 4096;

template <class T>
T Get(const std::string& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}
template <class T>
void Set(std::string* bytes, size_t at, T value) {
  std::memcpy(bytes->data() + at, &value, sizeof value);
}
// Makes both sums right again, so that what else is wrong has to be found.
void Seal(std::string* bytes) {
  const auto at = Get<uint64_t>(*bytes, kTableOffset), size = Get<uint64_t>(*bytes, kTableBytes);
  if (at <= bytes->size() && size <= bytes->size() - at)
    Set(bytes, kTableHash, uint64_t{XXH3_64bits(bytes->data() + at, size)});
  Set(bytes, kHash, uint64_t{XXH3_64bits(bytes->data(), kHash)});
}

struct Damage {
  const char* name;
  std::function<void(std::string*)> change;
  std::vector<std::string> words;  // of the message
};

// What a change of the table's first entry starts from.
size_t Entry(const std::string& bytes) { return Get<uint64_t>(bytes, kTableOffset); }

const std::vector<Damage>& Damages() {
  static const std::vector<Damage> kDamages = {
      {"empty", [](std::string* b) { b->clear(); }, {"0 bytes"}},
      {"half a header", [](std::string* b) { b->resize(50); }, {"50 bytes"}},
      {"a text", [](std::string* b) { *b = std::string(9000, 'x'); }, {"no packed file"}},
      {"magic", [](std::string* b) { (*b)[7] = '2'; }, {"no packed file of this version"}},
      {"a bit of the header", [](std::string* b) { (*b)[30] ^= 4; }, {"header is damaged"}},
      {"a bit of the header's sum", [](std::string* b) { (*b)[kHash] ^= 1; }, {"header is damaged"}},
      {"layouts", [](std::string* b) { Set(b, kLayouts, 2u), Seal(b); }, {"layouts 2"}},
      {"arithmetic", [](std::string* b) { Set(b, kBf16, 1u), Seal(b); }, {"arithmetic"}},
      {"fingerprint", [](std::string* b) { (*b)[kFingerprint] ^= 1, Seal(b); }, {"other weights"}},
      {"one byte short", [](std::string* b) { b->pop_back(); }, {"has", "of"}},
      {"half", [](std::string* b) { b->resize(b->size() / 2); }, {"has", "of"}},
      {"one byte more", [](std::string* b) { b->push_back('x'); }, {"has", "of"}},
      {"table outside", [](std::string* b) { Set(b, kTableOffset, ~uint64_t{0}), Seal(b); }, {"outside"}},
      {"table in the header",
       [](std::string* b) {
         Set(b, kTableOffset, uint64_t{96}), Set(b, kTableBytes, uint64_t{b->size() - 96}), Seal(b);
       },
       {"outside"}},
      {"table too long", [](std::string* b) { Set(b, kTableBytes, ~uint64_t{0}), Seal(b); }, {"outside"}},
      {"too many weights", [](std::string* b) { Set(b, kWeights, ~0u), Seal(b); }, {"no such length"}},
      {"too many files", [](std::string* b) { Set(b, kSources, ~0u), Seal(b); }, {"no such length"}},
      {"a weight more",
       [](std::string* b) { Set(b, kWeights, Get<uint32_t>(*b, kWeights) + 40), Seal(b); },
       {"table"}},
      {"no weights", [](std::string* b) { Set(b, kWeights, 0u), Seal(b); }, {"--pack-cache rebuild"}},
      {"no files", [](std::string* b) { Set(b, kSources, 0u), Seal(b); }, {"behind the table"}},
      {"a bit of the table", [](std::string* b) { (*b)[b->size() - 1] ^= 1; }, {"table is damaged"}},
      {"weight at an odd place",
       [](std::string* b) { Set(b, Entry(*b), uint64_t{kData + 64}), Seal(b); },
       {"weight model.embed_tokens.weight", "4160"}},
      {"weight in the header", [](std::string* b) { Set(b, Entry(*b), uint64_t{0}), Seal(b); }, {"at 0"}},
      {"weight outside", [](std::string* b) { Set(b, Entry(*b), uint64_t{1} << 62), Seal(b); }, {"weight"}},
      {"weight too long", [](std::string* b) { Set(b, Entry(*b) + 8, ~uint64_t{0}), Seal(b); }, {"bytes at"}},
      {"layout", [](std::string* b) { Set(b, Entry(*b) + 24, 6u), Seal(b); }, {"layout 6"}},
      {"other layout", [](std::string* b) { Set(b, Entry(*b) + 24, 0u), Seal(b); }, {"bytes at"}},
      {"no outputs", [](std::string* b) { Set(b, Entry(*b) + 28, 0u), Seal(b); }, {"[0, 128]"}},
      {"too many outputs", [](std::string* b) { Set(b, Entry(*b) + 28, ~0u), Seal(b); }, {"4294967295"}},
      {"many outputs",
       [](std::string* b) { Set(b, Entry(*b) + 28, uint32_t{INT32_MAX}), Seal(b); },
       {"2147483647"}},
      {"other inputs", [](std::string* b) { Set(b, Entry(*b) + 32, 64u), Seal(b); }, {"[48, 64]"}},
      {"shapes swapped",
       [](std::string* b) { Set(b, Entry(*b) + 28, 128u), Set(b, Entry(*b) + 32, 48u), Seal(b); },
       {"[128, 48]"}},
      {"name too long",
       [](std::string* b) { Set(b, Entry(*b) + 36, ~0u), Seal(b); },
       {"table ends in weight 0"}},
      {"another name",
       [](std::string* b) { (*b)[Entry(*b) + 40] = 'M', Seal(b); },
       {"weight model.embed_tokens.weight is missing"}},
      {"a bit of the first weight",
       [](std::string* b) { (*b)[kData] ^= 1; },
       {"weight model.embed_tokens.weight is damaged"}},
      {"a bit of the last weight",
       [](std::string* b) { (*b)[Entry(*b) - 4096] ^= 0x40; },
       {"weight lm_head.weight is damaged"}},
  };
  return kDamages;
}

TEST_F(PackedWeightFile, DamagedFilesAreRefused) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  const std::string path = PackedFiles(model_)[0], honest = ReadTestFile(path);
  for (const Damage& d : Damages()) {
    SCOPED_TRACE(d.name);
    std::string bytes = honest;
    d.change(&bytes);
    ASSERT_NE(bytes, honest) << "a damage that changes nothing";
    WriteTestFile(path, bytes);
    const auto ran = RunModel(model_, PackCache::kOn);
    ASSERT_FALSE(ran.ok());
    EXPECT_EQ(ran.status().code(), Code::kCorrupt);
    const std::string message = ran.status().message();
    EXPECT_NE(message.find(path), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& word : d.words) EXPECT_NE(message.find(word), std::string::npos) << message;
    EXPECT_EQ(ReadTestFile(path), bytes) << "a file that was refused was written";
  }
  WriteTestFile(path, honest);  // the control: what the damages start from is taken
  const auto ran = RunModel(model_, PackCache::kOn);
  ASSERT_TRUE(ran.ok()) << ran.status().message();
  EXPECT_TRUE(IsMapped(*ran));
}

TEST_F(PackedWeightFile, TouchedWeightsAndLinksAreRefused) {
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  const std::string path = PackedFiles(model_)[0], weights = model_ + "/model.safetensors";
  const auto when = fs::last_write_time(weights);
  fs::last_write_time(weights, when + std::chrono::seconds(1));
  const auto stale = RunModel(model_, PackCache::kOn);
  ASSERT_FALSE(stale.ok());
  EXPECT_NE(stale.status().message().find("stale: model.safetensors changed"), std::string::npos)
      << stale.status().message();
  fs::last_write_time(weights, when);
  ASSERT_TRUE(RunModel(model_, PackCache::kOn).ok());
  const std::string elsewhere = dir_ / "elsewhere";
  fs::rename(path, elsewhere);
  fs::create_symlink(elsewhere, path);
  EXPECT_FALSE(RunModel(model_, PackCache::kOn).ok()) << "a link may lead anywhere";
}

}  // namespace
}  // namespace nibble
