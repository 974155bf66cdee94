// SPDX-License-Identifier: Apache-2.0
// Tests. Tiny random models of every architecture against transformers, and against themselves: however a
// prompt is cut, batched or spread over threads, the logits are the same bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "model/model.h"
#include "quant/kv/registry.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using nlohmann::json;
using test::TempDir;

constexpr float kTolerance = 1e-4f;  // float32 here against float32 there: sums run in another order
constexpr int kMaxRows = 512;

using Ids = std::vector<int32_t>;
using Rows = std::vector<std::vector<float>>;

// A loaded model with the backend it lives on.
struct Loaded {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

Loaded Load(const json& golden, const json& config_patch = json::object(), int threads = 1,
            DType arithmetic = DType::kF32) {
  const TempDir dir;
  test::WriteTinyModel(golden, config_patch, dir.path());
  Loaded loaded;
  auto backend = MakeCpuBackend(threads);
  EXPECT_TRUE(backend.ok()) << backend.status().message();
  if (!backend.ok()) return loaded;
  loaded.backend = *std::move(backend);
  auto model = Model::Load(dir.path(), *loaded.backend, {arithmetic, kMaxRows, kMaxRows});
  EXPECT_TRUE(model.ok()) << model.status().message();
  if (model.ok()) loaded.model = *std::move(model);
  return loaded;
}

AttentionRecipe Recipe(kv::CodecId codec) { return {.k = codec, .v = codec}; }

std::unique_ptr<KvCache> MakeCache(const Loaded& loaded, const AttentionRecipe& recipe, int seqs) {
  const ModelConfig& c = loaded.model->config();
  KvCacheOptions options;
  options.shape = {c.layers, c.kv_heads, c.head_dim};
  options.heads = c.heads;
  options.recipe = recipe;
  options.max_seqs = seqs;
  options.max_step_tokens = kMaxRows;
  options.max_tokens = int64_t{256} * seqs;
  auto cache = KvCache::Make(*loaded.backend, options);
  EXPECT_TRUE(cache.ok()) << cache.status().message();
  return cache.ok() ? *std::move(cache) : nullptr;
}

Rows CopyRows(const Tensor& logits, const Loaded& loaded) {
  loaded.backend->Sync();
  Rows rows;
  for (int64_t r = 0; r < logits.dim[0]; ++r) {
    const float* row = logits.as<float>() + r * logits.stride[0];
    rows.emplace_back(row, row + logits.dim[1]);
  }
  return rows;
}

// Logits of every new token, after the sequence got all of them in steps of `chunk`.
Rows Feed(const Loaded& loaded, KvCache& cache, SeqId seq, const Ids& tokens, size_t chunk) {
  Rows rows;
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const size_t count = std::min(chunk, tokens.size() - begin);
    const int32_t counts[] = {static_cast<int32_t>(count)};
    const Status status = cache.BeginStep({&seq, 1}, counts);
    EXPECT_TRUE(status.ok()) << status.message();
    Ids wanted(count);
    std::iota(wanted.begin(), wanted.end(), 0);
    for (auto& row : CopyRows(loaded.model->Forward({{tokens.data() + begin, count}, wanted}, cache), loaded))
      rows.push_back(std::move(row));
  }
  return rows;
}

Rows Logits(const Loaded& loaded, const AttentionRecipe& recipe, const Ids& tokens, size_t chunk) {
  const auto cache = MakeCache(loaded, recipe, 1);
  const auto seq = cache->Open();
  EXPECT_TRUE(seq.ok());
  return Feed(loaded, *cache, *seq, tokens, chunk);
}

bool SameBytes(const Rows& a, const Rows& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].size() != b[i].size() || std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0)
      return false;
  return true;
}

// Largest difference to the golden logits; infinite when a value is not a number or a size differs.
float Difference(const json& golden, const Rows& rows) {
  float worst = 0;
  for (size_t i = 0; i < golden["positions"].size(); ++i) {
    const std::vector<float> wanted = golden["logits"][i];
    const std::vector<float>& got = rows.at(golden["positions"][i].get<size_t>());
    if (got.size() != wanted.size()) return INFINITY;
    for (size_t j = 0; j < wanted.size(); ++j) {
      const float difference = std::fabs(got[j] - wanted[j]);
      if (!(difference <= worst)) worst = std::isnan(difference) ? INFINITY : difference;
    }
  }
  return worst;
}

class TinyModel : public testing::TestWithParam<std::string> {
 protected:
  TinyModel() : golden_(test::ReadTinyGolden(GetParam())), prompt_(golden_["prompt"].get<Ids>()) {}
  json golden_;
  Ids prompt_;
};

TEST_P(TinyModel, WeightsAreThoseOfTheScript) {
  EXPECT_EQ(test::TinyChecksum(golden_), golden_["checksum"]);
  json other = golden_;
  other["tensors"]["model.norm.weight"][0] = 1;
  EXPECT_NE(test::TinyChecksum(other), golden_["checksum"]);
}

TEST_P(TinyModel, LogitsEqualTransformers) {
  const Loaded loaded = Load(golden_);
  ASSERT_TRUE(loaded.model);
  EXPECT_LE(Difference(golden_, Logits(loaded, Recipe(kv::CodecId::kF32), prompt_, prompt_.size())),
            kTolerance);
}

// A config that differs in the one thing this model is there for must not pass the test above.
TEST_P(TinyModel, BrokenConfigIsSeen) {
  const Loaded loaded = Load(golden_, golden_["broken"]);
  ASSERT_TRUE(loaded.model);
  EXPECT_GT(Difference(golden_, Logits(loaded, Recipe(kv::CodecId::kF32), prompt_, prompt_.size())),
            4 * kTolerance);
}

TEST_P(TinyModel, GreedyContinuationEqualsTransformers) {
  const Loaded loaded = Load(golden_);
  ASSERT_TRUE(loaded.model);
  const auto cache = MakeCache(loaded, Recipe(kv::CodecId::kF32), 1);
  const auto seq = cache->Open();
  ASSERT_TRUE(seq.ok());
  const Ids wanted = golden_["greedy"];
  Ids got, input = prompt_;
  while (got.size() < wanted.size()) {
    const std::vector<float> last = Feed(loaded, *cache, *seq, input, input.size()).back();
    got.push_back(static_cast<int32_t>(std::max_element(last.begin(), last.end()) - last.begin()));
    input = {got.back()};
  }
  EXPECT_EQ(got, wanted);
}

TEST_P(TinyModel, ChunksAgreeForEveryCodec) {
  const Loaded loaded = Load(golden_);
  ASSERT_TRUE(loaded.model);
  const Rows exact = Logits(loaded, Recipe(kv::CodecId::kF32), prompt_, prompt_.size());
  for (const kv::CodecInfo& codec : kv::kRegistry) {
    const Rows whole = Logits(loaded, Recipe(codec.id), prompt_, prompt_.size());
    ASSERT_EQ(whole.size(), prompt_.size());
    EXPECT_TRUE(SameBytes(whole, Logits(loaded, Recipe(codec.id), prompt_, 7)))
        << codec.name << ", chunks of 7";
    EXPECT_TRUE(SameBytes(whole, Logits(loaded, Recipe(codec.id), prompt_, 1)))
        << codec.name << ", token by token";
    // A codec that is not the exact one shows in the bytes: this comparison can fail.
    EXPECT_EQ(SameBytes(whole, exact), codec.id == kv::CodecId::kF32) << codec.name;
  }
}

TEST_P(TinyModel, ChunksAgreeForEveryArithmetic) {
  const Loaded loaded = Load(golden_), two = Load(golden_, json::object(), 2);
  ASSERT_TRUE(loaded.model && two.model);
  const Rows exact = Logits(loaded, Recipe(kv::CodecId::kF32), prompt_, prompt_.size());
  for (const char* text : {"sage1", "sage2-8b", "sage2-4b", "sage2pp-8b", "turbo", "turbo tail=float",
                           "turbo-mixed", "sas", "sas2"}) {
    const AttentionRecipe recipe = *ParseRecipe(text, DType::kF32);
    const Rows whole = Logits(loaded, recipe, prompt_, prompt_.size());
    EXPECT_TRUE(SameBytes(whole, Logits(loaded, recipe, prompt_, 7))) << text << ", chunks of 7";
    EXPECT_TRUE(SameBytes(whole, Logits(loaded, recipe, prompt_, 1))) << text << ", token by token";
    EXPECT_TRUE(SameBytes(whole, Logits(two, recipe, prompt_, 64))) << text << ", two threads";
    EXPECT_FALSE(SameBytes(whole, exact)) << text;
  }
}

TEST_P(TinyModel, ChunksAgreeInBf16Arithmetic) {
  const Loaded loaded = Load(golden_, json::object(), 1, DType::kBF16);
  ASSERT_TRUE(loaded.model);
  const AttentionRecipe recipe = Recipe(kv::CodecId::kBF16);
  const Rows whole = Logits(loaded, recipe, prompt_, prompt_.size());
  EXPECT_TRUE(SameBytes(whole, Logits(loaded, recipe, prompt_, 7)));
  EXPECT_TRUE(SameBytes(whole, Logits(loaded, recipe, prompt_, 1)));
  const float difference = Difference(golden_, whole);
  EXPECT_GT(difference, kTolerance);  // it is another arithmetic
  EXPECT_LT(difference, 1.0f);        // of the same function: logits have a standard deviation of 1 to 2
}

TEST_P(TinyModel, ThreadsAgree) {
  const Loaded one = Load(golden_), two = Load(golden_, json::object(), 2);
  ASSERT_TRUE(one.model && two.model);
  for (const kv::CodecId codec : {kv::CodecId::kF32, kv::CodecId::kInt4Token})
    EXPECT_TRUE(SameBytes(Logits(one, Recipe(codec), prompt_, 64), Logits(two, Recipe(codec), prompt_, 64)));
}

// Three sequences of different lengths in one ragged step, then a decode step each: what each gives alone.
TEST_P(TinyModel, BatchEqualsAlone) {
  const Loaded loaded = Load(golden_, json::object(), 2);
  ASSERT_TRUE(loaded.model);
  for (const char* text : {"qserve", "sage2-4b", "turbo", "turbo tail=float", "turbo-mixed"}) {
    const AttentionRecipe recipe = *ParseRecipe(text, DType::kF32);
    const std::vector<size_t> lengths = {149, 5, 64};
    const auto cache = MakeCache(loaded, recipe, 3);
    std::vector<SeqId> seqs;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const auto seq = cache->Open();
      ASSERT_TRUE(seq.ok());
      seqs.push_back(*seq);
    }
    for (const bool decode : {false, true}) {
      Ids tokens, counts, wanted;
      for (const size_t length : lengths) {
        const size_t begin = decode ? length : 0, end = decode ? length + 1 : length;
        tokens.insert(tokens.end(), prompt_.begin() + static_cast<ptrdiff_t>(begin),
                      prompt_.begin() + static_cast<ptrdiff_t>(end));
        counts.push_back(static_cast<int32_t>(end - begin));
        wanted.push_back(static_cast<int32_t>(tokens.size()) - 1);
      }
      ASSERT_TRUE(cache->BeginStep(seqs, counts).ok());
      const Rows batched = CopyRows(loaded.model->Forward({tokens, wanted}, *cache), loaded);
      for (size_t i = 0; i < lengths.size(); ++i) {
        const size_t length = lengths[i] + (decode ? 1 : 0);
        const Ids own(prompt_.begin(), prompt_.begin() + static_cast<ptrdiff_t>(length));
        const Rows alone = Logits(loaded, recipe, own, length);
        EXPECT_TRUE(SameBytes({alone.back()}, {batched[i]})) << i << (decode ? ", decoding" : ", prompt");
        EXPECT_FALSE(SameBytes({alone.front()}, {batched[i]})) << "the comparison sees no difference";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TinyModel, testing::ValuesIn(test::TinyModelNames()),
                         [](const auto& suite) { return suite.param; });

TEST(TinyModels, CoverWhatTheyAreFor) {
  const std::vector<std::string> names = test::TinyModelNames();
  EXPECT_GE(names.size(), 10U);
  std::vector<std::string> architectures;
  for (const std::string& name : names)
    architectures.push_back(test::ReadTinyGolden(name)["config"]["architectures"][0]);
  for (const char* wanted :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
    EXPECT_NE(std::find(architectures.begin(), architectures.end(), wanted), architectures.end()) << wanted;
}

}  // namespace
}  // namespace nibble
