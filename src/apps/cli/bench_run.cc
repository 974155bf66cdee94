// SPDX-License-Identifier: Apache-2.0
// Floor 9. The measuring part of `nibble bench`.
#include "apps/cli/bench_run.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "apps/cli/bench_weights.h"
#include "cache/kv_sizes.h"
#include "model/work_plan.h"

namespace nibble::cli {
namespace {

using Clock = std::chrono::steady_clock;

Status Cancelled() { return Error(Code::kCancelled, "bench: interrupted"); }

}  // namespace

BenchRun::~BenchRun() {
  model_.reset();
  backend_->Free(kv_rows_);
  backend_->Free(ids_);
}

Result<std::unique_ptr<BenchRun>> BenchRun::Make(const BenchModelOptions& options) {
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(options.recipe, options.dtype));
  NIBBLE_ASSIGN(std::unique_ptr<Backend> backend, MakeBackend(options.device, options.threads, options.numa));
  std::unique_ptr<BenchRun> run(new BenchRun(options, recipe, std::move(backend)));
  NIBBLE_RETURN_IF_ERROR(run->Init());
  return run;
}

Status BenchRun::Init() {
  const ModelOptions model{.arithmetic = options_.dtype,
                           .max_step_rows = std::max(options_.batch, options_.max_seqs),
                           .max_logit_rows = options_.max_seqs,
                           .pack_cache = options_.pack_cache};
  const auto began = Clock::now();
  if (options_.shape.empty()) {
    NIBBLE_ASSIGN(model_, Model::Load(options_.model, *backend_, model));
  } else {
    const ModelConfig config = FindShape(options_.shape, options_.storage);
    const RandomWeights weights(config, options_.storage);
    NIBBLE_ASSIGN(model_, Model::FromWeights(config, weights, *backend_, model));
  }
  load_seconds_ = std::chrono::duration<double>(Clock::now() - began).count();
  const ModelConfig& c = config();
  NIBBLE_RETURN_IF_ERROR(CheckHeadSize(recipe_, c.head_dim));
  NIBBLE_RETURN_IF_ERROR(backend_->CheckRecipe(recipe_, c.head_dim));
  std::mt19937 random(1);
  const size_t values = size_t(options_.batch) * size_t(c.kv_heads) * size_t(c.head_dim);
  NIBBLE_ASSIGN(kv_rows_, backend_->Alloc(values * sizeof(float)));
  std::vector<float> rows(values);
  for (float& x : rows) x = std::normal_distribution<float>()(random);
  backend_->Upload(rows.data(), kv_rows_.data, kv_rows_.bytes);
  NIBBLE_ASSIGN(ids_, backend_->Alloc(size_t(options_.max_seqs) * sizeof(int32_t)));
  // Steps start anywhere in the list, so it is as long as two of the largest.
  tokens_.resize(size_t(std::max(options_.batch, options_.max_seqs)) * 2);
  for (int32_t& t : tokens_) t = int32_t(random() % uint32_t(c.vocab));
  return {};
}

bool BenchRun::FillsByModel() const {
  return recipe_.k == kv::CodecId::kQaq || recipe_.v == kv::CodecId::kQaq ||
         recipe_.select.kind == SelectKind::kH2o;
}

std::span<const int32_t> BenchRun::NextTokens(int64_t count) {
  if (next_token_ + size_t(count) > tokens_.size()) next_token_ = 0;
  const std::span<const int32_t> part(tokens_.data() + next_token_, size_t(count));
  next_token_ += size_t(count);
  return part;
}

Status BenchRun::Process(KvCache& cache, SeqId seq, int64_t tokens, const std::atomic<bool>& cancel) {
  for (int64_t done = 0; done < tokens;) {
    if (cancel) return Cancelled();
    const auto count = int32_t(std::min<int64_t>(options_.batch, tokens - done));
    done += count;
    NIBBLE_RETURN_IF_ERROR(cache.BeginStep({&seq, 1}, {&count, 1}));
    const int32_t last = count - 1;
    const size_t logit_rows = done == tokens ? 1 : 0;
    model_->Forward({NextTokens(count), {&last, logit_rows}}, cache);
  }
  backend_->Sync();
  return {};
}

// The greedy tokens come back every step, as where the next one hangs on them.
Status BenchRun::Generate(KvCache& cache, std::span<const SeqId> seqs, int tokens,
                          const std::atomic<bool>& cancel) {
  const std::vector<int32_t> counts(seqs.size(), 1);
  std::vector<int32_t> rows(seqs.size()), ids(seqs.size());
  std::iota(rows.begin(), rows.end(), 0);
  for (int i = 0; i < tokens; ++i) {
    if (cancel) return Cancelled();
    NIBBLE_RETURN_IF_ERROR(cache.BeginStep(seqs, counts));
    const Tensor logits = model_->Forward({NextTokens(int64_t(seqs.size())), rows}, cache);
    backend_->ArgMax(logits, reinterpret_cast<int32_t*>(ids_.data));
    backend_->Download(ids_.data, ids.data(), ids.size() * sizeof(int32_t));
    backend_->Sync();
  }
  return {};
}

Status BenchRun::Fill(KvCache& cache, SeqId seq, int64_t tokens, const std::atomic<bool>& cancel) {
  if (FillsByModel()) return Process(cache, seq, tokens, cancel);
  const ModelConfig& c = config();
  for (int64_t done = 0; done < tokens;) {
    if (cancel) return Cancelled();
    const auto count = int32_t(std::min<int64_t>(options_.batch, tokens - done));
    done += count;
    NIBBLE_RETURN_IF_ERROR(cache.BeginStep({&seq, 1}, {&count, 1}));
    const Tensor rows =
        Tensor::Dense(kv_rows_.data, DType::kF32, backend_->Info().device, {count, c.kv_heads, c.head_dim});
    for (int layer = 0; layer < c.layers; ++layer) backend_->KvAppend({cache.View(layer), rows, rows});
  }
  backend_->Sync();
  return {};
}

Status BenchRun::Start(KvCache& cache, const BenchCase& bench, int64_t most, std::vector<SeqId>* seqs,
                       const std::atomic<bool>& cancel) {
  for (SeqId seq : *seqs) cache.Close(seq);
  seqs->clear();
  for (int i = 0; i < bench.seqs; ++i) {
    NIBBLE_ASSIGN(const SeqId seq, cache.Open());
    seqs->push_back(seq);
    const int64_t depth = std::max<int64_t>(0, bench.depth - i);
    // Prompts attend to everything; generated tokens go through the recipe's selection.
    cache.SetPrefill(seq, bench.prompt > 0 ? most : depth);
    NIBBLE_RETURN_IF_ERROR(Fill(cache, seq, depth, cancel));
  }
  return {};
}

Result<BenchResult> BenchRun::Run(const BenchCase& bench, int repetitions, const std::atomic<bool>& cancel) {
  const ModelConfig& c = config();
  const KvShape shape{c.layers, c.kv_heads, c.head_dim};
  const bool stay = bench.depth > 0;
  const int64_t each = bench.tokens() / bench.seqs,
                most = PagesFor(bench.depth + each * (stay ? repetitions + 1 : 1)) * kv::kPageTokens;
  NIBBLE_ASSIGN(const std::unique_ptr<KvCache> cache,
                KvCache::Make(*backend_, {.shape = shape,
                                          .heads = c.heads,
                                          .recipe = recipe_,
                                          .max_seqs = bench.seqs,
                                          .max_step_tokens = std::max(options_.batch, bench.seqs),
                                          .max_tokens = most * bench.seqs}));
  BenchResult result;
  const KvSizes sizes = PlanKv(shape, c.heads, recipe_, 1, bench.depth + each);
  result.kv_bytes = (sizes.pool_bytes + sizes.tail_bytes_per_seq) * bench.seqs;
  const bool gpu = backend_->Info().device == Device::kCuda;
  const KvSizes pool =
      PlanKv(shape, c.heads, recipe_, bench.seqs, most * bench.seqs, std::max(options_.batch, bench.seqs));
  result.planned_bytes =
      int64_t(model_->weight_bytes()) + pool.pool_bytes + (gpu ? pool.prompt_bytes : 0) +
      PlanWork(c).Bytes(std::max(options_.batch, options_.max_seqs), options_.max_seqs, gpu);
  result.seconds.reserve(size_t(repetitions));
  std::vector<SeqId> seqs;
  for (int i = -1; i < repetitions; ++i) {  // -1: the warm-up
    if (seqs.empty() || !stay) NIBBLE_RETURN_IF_ERROR(Start(*cache, bench, most, &seqs, cancel));
    const auto start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(bench.prompt > 0 ? Process(*cache, seqs[0], bench.prompt, cancel)
                                            : Generate(*cache, seqs, bench.generate, cancel));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i >= 0) result.seconds.push_back(seconds);
  }
  result.memory = backend_->ExplainMemory();
  return result;
}

}  // namespace nibble::cli
