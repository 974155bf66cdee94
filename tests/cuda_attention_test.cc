// SPDX-License-Identifier: Apache-2.0
// The KV cache and attention on the GPU against the CPU, for every codec and every arithmetic: the bytes of
// sealed pages, outputs, what was counted, and that a prompt may be cut anywhere. Skips without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "meets_integers.h"
#include "quant/kv/registry.h"
#include "recipe/prompt_pages.h"
#include "tests/support/cuda.h"

namespace nibble {
namespace {

using test::Difference;
using test::Random;
using Shape = test::AttentionShape;

struct Outcome {
  std::vector<float> out;       // of all rows: step after step
  std::vector<std::byte> k, v;  // pools
  AttentionCounters counters{};
};

// The rows of a sequence from a position on; every sequence has its own. K has a mean, as in real models.
std::vector<float> Rows(int seq, int64_t position, int rows, int width, uint32_t which) {
  std::vector<float> x;
  const auto mean = Random(size_t(width), 900 + which, which == 1 ? 2.0f : 0.1f);
  for (int r = 0; r < rows; ++r) {
    const auto row = Random(size_t(width), uint32_t(10007 * (position + r) + 31 * seq) + which);
    for (int i = 0; i < width; ++i) x.push_back(row[size_t(i)] + mean[size_t(i)]);
  }
  return x;
}

class Runner {
 public:
  Runner(Backend& backend, const std::string& recipe, Shape shape, int seqs, int64_t tokens,
         int64_t prefill = 0, DType dtype = DType::kF32)
      : backend_(backend), shape_(shape), recipe_(*ParseRecipe(recipe, dtype)) {
    NIBBLE_CHECK(backend.Reserve(512, 1024, shape.heads, shape.kv_heads, shape.head_dim).ok(), "Reserve");
    cache_ = *KvCache::Make(backend, {.shape = {1, shape.kv_heads, shape.head_dim},
                                      .heads = shape.heads,
                                      .recipe = recipe_,
                                      .max_seqs = seqs,
                                      .max_step_tokens = 512,
                                      .max_tokens = tokens});
    for (int i = 0; i < seqs; ++i) {
      seqs_.push_back(*cache_->Open());
      cache_->SetPrefill(seqs_.back(), prefill);
    }
    backend.TakeCounters();
  }

  void Step(const std::vector<int32_t>& counts) {
    const int q_width = shape_.heads * shape_.head_dim, kv_width = shape_.kv_heads * shape_.head_dim;
    std::vector<float> q, k, v;
    for (size_t i = 0; i < seqs_.size(); ++i) {
      const int64_t at = cache_->Length(seqs_[i]);
      for (auto& [to, width, which] :
           {std::tuple{&q, q_width, 0u}, std::tuple{&k, kv_width, 1u}, std::tuple{&v, kv_width, 2u}}) {
        const auto rows = Rows(int(i), at, counts[i], width, which);
        to->insert(to->end(), rows.begin(), rows.end());
      }
    }
    NIBBLE_CHECK(cache_->BeginStep(seqs_, counts).ok(), "BeginStep");
    const std::vector<float> out = test::AppendAndAttend(backend_, *cache_, shape_, q, k, v);
    outcome_.out.insert(outcome_.out.end(), out.begin(), out.end());
  }

  Outcome Finish(int64_t pages) {
    const KvView view = cache_->View(0);
    const auto pool = [&](const std::byte* from, kv::CodecId id) {
      std::vector<std::byte> bytes(size_t(pages * shape_.kv_heads * kv::Get(id).pool_bytes(view.page)));
      backend_.Download(from, bytes.data(), bytes.size());
      return bytes;
    };
    outcome_.k = pool(view.k_pool, recipe_.k), outcome_.v = pool(view.v_pool, recipe_.v);
    backend_.Sync();
    outcome_.counters = backend_.TakeCounters();
    return std::move(outcome_);
  }

 private:
  Backend& backend_;
  const Shape shape_;
  const AttentionRecipe recipe_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SeqId> seqs_;
  Outcome outcome_;
};

// Two sequences: a prompt of several pages with decode steps, and a short one.
Outcome RunMixed(Backend& backend, const std::string& recipe, Shape shape, DType dtype = DType::kF32) {
  Runner run(backend, recipe, shape, 2, 512, /*prefill=*/130, dtype);
  for (const auto& counts : std::vector<std::vector<int32_t>>{{150, 30}, {1, 1}, {40, 40}, {1, 0}, {3, 1}})
    run.Step(counts);
  return run.Finish(4);
}

Outcome RunChunks(Backend& backend, const std::string& recipe, Shape shape, int chunk,
                  DType dtype = DType::kF32, int64_t prefill = 0) {
  Runner run(backend, recipe, shape, 1, 256, prefill, dtype);
  for (int done = 0; done < 200; done += chunk) run.Step({std::min(chunk, 200 - done)});
  return run.Finish(3);
}

// Prompts of several pages beside each other, cut between pages and within, then other rows.
Outcome RunPrompts(Backend& backend, const std::string& recipe, Shape shape) {
  Runner run(backend, recipe, shape, 2, 1024, /*prefill=*/300, DType::kBF16);
  for (const auto& counts : std::vector<std::vector<int32_t>>{{70, 200}, {220, 0}, {12, 101}, {1, 1}, {5, 2}})
    run.Step(counts);
  return run.Finish(4);
}

void ExpectCounters(const AttentionCounters& got, const AttentionCounters& want, const std::string& what) {
  EXPECT_EQ(got.rows, want.rows) << what;
  EXPECT_EQ(got.tokens_read, want.tokens_read) << what;
  EXPECT_EQ(got.scalars_read, want.scalars_read) << what;
  EXPECT_EQ(got.bytes_read, want.bytes_read) << what;
  EXPECT_EQ(got.dense_fallbacks, want.dense_fallbacks) << what;
  EXPECT_EQ(got.tail_values, want.tail_values) << what;
  EXPECT_EQ(got.tail_clamped, want.tail_clamped) << what;
  EXPECT_EQ(got.sas_rows, want.sas_rows) << what;
  EXPECT_NEAR(double(got.sas_dropped), double(want.sas_dropped), 2 + 1e-3 * double(want.sas_dropped)) << what;
  EXPECT_NEAR(double(got.sas_dropped_mass), double(want.sas_dropped_mass),
              1e5 + 1e-3 * double(want.sas_dropped_mass))
      << what;
}

class CudaAttention : public test::OnGpu {};

// What outputs may differ by: `tolerance`, or what the CPU's rounding of queries and weights to 16 bits
// explains where codes meet integers there.
double BoundOf(const std::string& recipe, int head_dim, double tolerance) {
  const AttentionRecipe parsed = *ParseRecipe(recipe, DType::kF32);
  return test::MeetsIntegers(parsed.k, head_dim) || test::MeetsIntegers(parsed.v, head_dim)
             ? std::max(tolerance, 1e-3)
             : tolerance;
}

// Prompts on INT8 tensor cores: queries and weights of the own page in bf16, SAS in f16, which moves codes of
// P to their neighbours; and rows there are not counted.
bool ByIntegers(const std::string& recipe, const Shape& shape) {
  return TurboPrompts(*ParseRecipe(recipe, DType::kF32), shape.head_dim) && shape.window == 0;
}
constexpr double kByIntegers = 8e-3;

void ExpectUncounted(AttentionCounters got, const AttentionCounters& want, const std::string& what) {
  EXPECT_LT(got.sas_rows, want.sas_rows) << what << ": the prompt's";
  got.sas_rows = want.sas_rows, got.sas_dropped = want.sas_dropped,
  got.sas_dropped_mass = want.sas_dropped_mass;
  ExpectCounters(got, want, what);
}

constexpr Shape kShapes[] = {{4, 2, 64}, {4, 1, 80}, {2, 2, 128, 100}, {6, 2, 8}, {2, 1, 256}};

TEST_F(CudaAttention, EveryCodecHasTheBytesOfTheCpu) {
  for (const kv::CodecInfo& codec : kv::kRegistry) {
    const std::string recipe = fmt::format("k={} v={}", codec.name, codec.name);
    if (codec.requantizes) continue;  // its pages hold addresses: cuda_qaq_test
    for (const Shape& shape : kShapes) {
      if (!CheckHeadSize(*ParseRecipe(recipe, DType::kF32), shape.head_dim).ok()) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunMixed(*cpu_, recipe, shape);
      Outcome gpu = RunMixed(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k) << what << ": pages of K";
      EXPECT_TRUE(gpu.v == cpu.v) << what << ": pages of V";
      EXPECT_LT(Difference(gpu.out, cpu.out), BoundOf(recipe, shape.head_dim, 5e-6)) << what;
      ExpectCounters(gpu.counters, cpu.counters, what);
      gpu.out[5] += 1.0f;
      EXPECT_GT(Difference(gpu.out, cpu.out), BoundOf(recipe, shape.head_dim, 5e-6))
          << "a value that is off is seen";
    }
  }
}

TEST_F(CudaAttention, EveryArithmetic) {
  // Codes that two devices round to neighbours (sums of scores differ in the last bits) move an output by a
  // share of one weight.
  for (const auto& [recipe, tolerance] :
       std::vector<std::pair<std::string, double>>{{"sage1", 1e-3},
                                                   {"sage2-8b", 2e-3},
                                                   {"sage2-4b", 2e-3},
                                                   {"sage2pp-8b", 2e-3},
                                                   {"qk=int8-block", 1e-4},
                                                   {"qserve+sage2-8b", 2e-3},
                                                   {"turbo", 1e-3},
                                                   {"turbo tail=float", 1e-3},
                                                   {"turbo-mixed", 1e-3},
                                                   {"flashq2 qk=int4-thread pv=int8 smooth=none", 1e-3},
                                                   {"sas", 2e-5},
                                                   {"sas2", 2e-5},
                                                   {"softmax=sas:cubic=base2", 2e-5},
                                                   {"flashq4 tail=int8", 5e-6}})
    for (const Shape& shape : kShapes) {
      const auto parsed = ParseRecipe(recipe, DType::kF32);
      ASSERT_TRUE(parsed.ok()) << parsed.status().message();
      if (!CheckHeadSize(*parsed, shape.head_dim).ok()) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunMixed(*cpu_, recipe, shape), gpu = RunMixed(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      const double difference = Difference(gpu.out, cpu.out);
      RecordProperty(what, std::to_string(difference));
      if (ByIntegers(recipe, shape)) {
        EXPECT_LT(difference, kByIntegers) << what;
        ExpectUncounted(gpu.counters, cpu.counters, what);
        continue;
      }
      EXPECT_LT(difference, BoundOf(recipe, shape.head_dim, tolerance)) << what;
      ExpectCounters(gpu.counters, cpu.counters, what);
    }
}

// Random scores are far enough apart that both devices take the same tokens.
TEST_F(CudaAttention, EverySelection) {
  for (const std::string recipe :
       {"window:k=50,sinks=4", "h2o:k=40", "qserve+h2o:k=40,local=3", "sparq:r=8,k=32",
        "sparq:r=8,k=32,mean=mean", "sparq:r=8,k=32,sinks=3,mean=unselected",
        "sparq:r=8,k=32,mean=blocks,copy=int8", "sparq:r=8,k=32,copy=int4,rank-logits=yes",
        "sparq:r=8,k=48,rho=0.3", "sparq:r=8,k=64,eps=0.3", "kivi4+sparq:r=8,k=24,mean=mean",
        "turboquant4+sparq:r=8,k=24,mean=mean", "turbo+sparq:r=8,k=24"}) {
    const auto parsed = ParseRecipe(recipe, DType::kF32);
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    for (const Shape& shape : kShapes) {
      if (!CheckHeadSize(*parsed, shape.head_dim).ok()) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunMixed(*cpu_, recipe, shape), gpu = RunMixed(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      if (ByIntegers(recipe, shape)) {
        EXPECT_LT(Difference(gpu.out, cpu.out), kByIntegers) << what;
        ExpectUncounted(gpu.counters, cpu.counters, what);
        continue;
      }
      EXPECT_LT(Difference(gpu.out, cpu.out),
                BoundOf(recipe, shape.head_dim, recipe.starts_with("turbo+") ? 1e-3 : 1e-5))
          << what;
      ExpectCounters(gpu.counters, cpu.counters, what);
    }
  }
}

// bf16 arithmetic on tensor cores: weights and queries are rounded there and not on the CPU.
TEST_F(CudaAttention, Bf16OnTensorCores) {
  for (const std::string recipe : {"exact", "kv16", "kv8", "qserve", "flashq4", "flashq2"})
    for (const Shape& shape : kShapes) {
      if (!CheckHeadSize(*ParseRecipe(recipe, DType::kBF16), shape.head_dim).ok()) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunMixed(*cpu_, recipe, shape, DType::kBF16),
                    gpu = RunMixed(*gpu_, recipe, shape, DType::kBF16);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      EXPECT_LT(Difference(gpu.out, cpu.out), 8e-3) << what;
      ExpectCounters(gpu.counters, cpu.counters, what);
    }
}

// Prompts have kernels of their own, which read pages decoded ahead: every codec, a prompt that ends within
// a page, two sequences and rows behind the prompt.
TEST_F(CudaAttention, PromptsOfEveryCodecInBf16) {
  constexpr Shape kPrompts[] = {{4, 2, 64}, {8, 2, 128}};
  std::vector<std::string> recipes = {"flashq4 tail=int8", "qserve+sparq:r=8,k=32,mean=mean",
                                      "kivi4 select=h2o:k=40"};
  for (const kv::CodecInfo& codec : kv::kRegistry)
    if (!codec.requantizes) recipes.push_back(fmt::format("k={} v={}", codec.name, codec.name));
  recipes.emplace_back("k=int4-token v=kivi2"), recipes.emplace_back("k=bf16 v=int8-token");
  for (const std::string& recipe : recipes) {
    const auto parsed = ParseRecipe(recipe, DType::kBF16);
    if (!parsed.ok()) continue;
    for (const Shape& shape : kPrompts) {
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      Outcome cpu = RunPrompts(*cpu_, recipe, shape), gpu = RunPrompts(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      const double difference = Difference(gpu.out, cpu.out);
      EXPECT_LT(difference, recipe.find("sparq") != recipe.npos ? 0.1 : 8e-3) << what;
      RecordProperty(what, std::to_string(difference));
      for (size_t i = 64; i < gpu.out.size(); i += 128) gpu.out[i] = cpu.out[i - 64];
      EXPECT_GT(Difference(gpu.out, cpu.out), 0.05) << "a channel of another head is seen";
    }
  }
}

// FP8 rounds a weight by up to 1/16, elsewhere on the GPU than on the CPU: V has another scale, P another
// maximum.
TEST_F(CudaAttention, SagePromptsInBf16) {
  constexpr Shape kPrompts[] = {{4, 2, 64}, {8, 2, 128}};
  for (const std::string recipe :
       {"sage2-8b", "sage2-8b smooth=none", "qk=int8-block smooth=k pv=fp8", "sage2-4b", "sage2-4b smooth=k"})
    for (const Shape& shape : kPrompts) {
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunPrompts(*cpu_, recipe, shape), exact = RunPrompts(*cpu_, "exact", shape);
      Outcome gpu = RunPrompts(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      const double of_cpu = Difference(cpu.out, exact.out), of_gpu = Difference(gpu.out, exact.out);
      EXPECT_LT(of_gpu, 1.2 * of_cpu + 2e-3) << what << ": as near to exact attention as the CPU";
      // Codes of Q and K are the same on both: FP8 is what they differ by, in INT4 too.
      const double fp8 = Difference(RunPrompts(*cpu_, "sage2-8b", shape).out, exact.out);
      EXPECT_LT(Difference(gpu.out, cpu.out), 1.6 * fp8) << what;
      RecordProperty(
          what, fmt::format("from exact {} and {}, apart {}", of_cpu, of_gpu, Difference(gpu.out, cpu.out)));
    }
}

TEST_F(CudaAttention, TurboPromptsByIntegers) {
  constexpr Shape kPrompts[] = {{4, 2, 64}, {8, 2, 128}};
  for (const std::string recipe : {"turbo", "turbo tail=float", "turbo-mixed", "turbo k=flashq2 v=flashq2",
                                   "turbo softmax=sas:threshold=-4", "turbo softmax=sas:cubic=endpoint"})
    for (const Shape& shape : kPrompts) {
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      ASSERT_TRUE(ByIntegers(recipe, shape)) << what;
      const Outcome cpu = RunPrompts(*cpu_, recipe, shape);
      Outcome gpu = RunPrompts(*gpu_, recipe, shape);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      const double difference = Difference(gpu.out, cpu.out);
      EXPECT_LT(difference, kByIntegers) << what;
      RecordProperty(what, std::to_string(difference));
      for (size_t i = 64; i < gpu.out.size(); i += 128) gpu.out[i] = cpu.out[i - 64];
      EXPECT_GT(Difference(gpu.out, cpu.out), 0.05) << "a channel of another head is seen";
    }
  for (const std::string recipe :
       {"turbo softmax=sas:threshold=-2.5", "turbo softmax=sas:cubic=base2", "turbo softmax=sas2"})
    EXPECT_FALSE(ByIntegers(recipe, kPrompts[0])) << recipe << ": not what the table of powers holds";
}

// Queries are rounded to bf16 before they rank, so that a token may be another where scores are close.
TEST_F(CudaAttention, SparqInBf16) {
  for (const std::string recipe : {"sparq:r=8,k=32", "qserve+sparq:r=8,k=32,mean=mean",
                                   "kv8+sparq:r=16,k=48,copy=int8", "flashq4+sparq:r=16,k=48,copy=int4"})
    for (const Shape& shape : kShapes) {
      const auto parsed = ParseRecipe(recipe, DType::kBF16);
      ASSERT_TRUE(parsed.ok()) << parsed.status().message();
      if (!CheckHeadSize(*parsed, shape.head_dim).ok() || shape.head_dim < 16) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = RunMixed(*cpu_, recipe, shape, DType::kBF16),
                    gpu = RunMixed(*gpu_, recipe, shape, DType::kBF16);
      EXPECT_TRUE(gpu.k == cpu.k && gpu.v == cpu.v) << what << ": pages";
      const double difference = Difference(gpu.out, cpu.out);
      EXPECT_LT(difference, 0.1) << what;
      RecordProperty(what, std::to_string(difference));
      EXPECT_EQ(gpu.counters.rows, cpu.counters.rows) << what;
      EXPECT_EQ(gpu.counters.tokens_read, cpu.counters.tokens_read) << what;
      EXPECT_EQ(gpu.counters.scalars_read, cpu.counters.scalars_read) << what;
      EXPECT_NEAR(double(gpu.counters.bytes_read), double(cpu.counters.bytes_read),
                  0.02 * double(cpu.counters.bytes_read))
          << what;
    }
}

TEST_F(CudaAttention, ChunksAgreeToTheByteInBf16) {
  for (const std::string recipe :
       {"exact", "qserve", "flashq4", "kivi2", "turboquant4", "k=int4-token v=int8-token", "sage2-8b",
        "sage2-4b", "turbo", "turbo-mixed", "qserve+sparq:r=8,k=32", "sparq:r=8,k=32"})
    for (const int64_t prefill : {0, 130, 256}) {
      const Shape shape{4, 2, prefill == 256 ? 128 : 64};
      const Outcome whole = RunChunks(*gpu_, recipe, shape, 200, DType::kBF16, prefill);
      for (const int chunk : {65, 7, 1}) {
        const Outcome cut = RunChunks(*gpu_, recipe, shape, chunk, DType::kBF16, prefill);
        EXPECT_TRUE(cut.k == whole.k && cut.v == whole.v) << recipe << ", chunks of " << chunk << ": pages";
        EXPECT_EQ(std::memcmp(cut.out.data(), whole.out.data(), whole.out.size() * 4), 0)
            << recipe << ", chunks of " << chunk;
      }
    }
}

TEST_F(CudaAttention, ChunksAgreeToTheByte) {
  for (const std::string recipe :
       {"exact", "qserve", "kivi4", "turboquant4", "flashq4", "sage2-4b", "turbo", "sas2", "turbo tail=float",
        "sparq:r=8,k=32,mean=blocks", "h2o:k=40", "window:k=30"}) {
    const Shape shape{4, 2, 64, 150};
    const Outcome whole = RunChunks(*gpu_, recipe, shape, 200);
    for (const int chunk : {7, 1}) {
      const Outcome cut = RunChunks(*gpu_, recipe, shape, chunk);
      EXPECT_TRUE(cut.k == whole.k && cut.v == whole.v) << recipe << ", chunks of " << chunk << ": pages";
      EXPECT_EQ(std::memcmp(cut.out.data(), whole.out.data(), whole.out.size() * 4), 0)
          << recipe << ", chunks of " << chunk;
    }
  }
}

}  // namespace
}  // namespace nibble
