// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "engine/check_request.h"
#include "engine/generation.h"
#include "io/fingerprint.h"
#include "io/weights.h"
#include "model/plan_file.h"
#include "quant/kv/registry.h"
#include "recipe/grammar.h"
#include "recipe/two_bit_heads.h"

namespace nibble {
namespace {

// What engines of one model share. The model is built on the backend and reads the plan.
struct LoadedModel {
  std::unique_ptr<Backend> backend;
  std::optional<Plan> plan;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineOptions options, AttentionRecipe recipe, std::shared_ptr<LoadedModel> loaded)
      : options_(std::move(options)),
        recipe_(recipe),
        loaded_(std::move(loaded)),
        backend_(loaded_->backend.get()),
        plan_(loaded_->plan) {}

  Status LoadModel();
  Status CheckShapes(const ModelConfig& config) const;
  Result<std::unique_ptr<Engine>> WithRecipe(const std::string& recipe) const override;
  Result<std::vector<Completion>> Generate(std::span<const Request> requests,
                                           const std::atomic<bool>* cancel) override {
    return RunGeneration(parts(), requests, cancel);
  }
  using Engine::Score;
  Status Score(std::span<const int32_t> tokens, int64_t prefill_tokens, const OnLogits& on_logits) override;

  void Observe(Observer* observer) override { loaded_->model->Observe(observer); }

  const ModelConfig& config() const override { return loaded_->model->config(); }
  const Tokenizer& tokenizer() const override { return *loaded_->tokenizer; }
  const AttentionRecipe& recipe() const override { return recipe_; }
  Backend& backend() override { return *backend_; }
  EngineParts parts() override {
    return {*loaded_->model, *loaded_->tokenizer, *backend_, recipe_, options_, plan_ ? &*plan_ : nullptr};
  }
  RowReads TakeReads() override { return PerRow(backend_->TakeCounters(), config()); }
  size_t weight_bytes() const override { return loaded_->model->weight_bytes(); }
  KvSizes kv_sizes() const override;
  std::vector<std::string> Explain() const override;
  std::vector<std::string> Notes() const override;

 private:
  KvShape Shape() const {
    const ModelConfig& c = config();
    return {c.layers, c.kv_heads, c.head_dim};
  }

  EngineOptions options_;
  AttentionRecipe recipe_;
  const std::shared_ptr<LoadedModel> loaded_;
  Backend* const backend_;
  const std::optional<Plan>& plan_;
};

Status EngineImpl::LoadModel() {
  // The config is read first for the vocabulary, which bounds the logit buffer.
  NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(options_.model));
  if (!plan_ && !options_.plan.empty()) {
    NIBBLE_ASSIGN(const std::unique_ptr<io::Weights> weights, io::Weights::Open(options_.model));
    NIBBLE_ASSIGN(const std::string fingerprint, io::Fingerprint(*weights));
    NIBBLE_ASSIGN(loaded_->plan, ReadPlan(options_.plan, config, fingerprint));
  }
  NIBBLE_RETURN_IF_ERROR(CheckShapes(config));
  ModelOptions model{.arithmetic = options_.dtype,
                     .max_step_rows = options_.prefill_chunk + options_.max_seqs,
                     .plan = plan_ ? &*plan_ : nullptr,
                     .pack_cache = options_.pack_cache};
  model.max_logit_rows = LogitRows(config.vocab, options_.max_seqs, model.max_step_rows);
  NIBBLE_ASSIGN(loaded_->model, Model::Load(options_.model, *backend_, model));
  NIBBLE_ASSIGN(loaded_->tokenizer, Tokenizer::Load(options_.model));
  if (const int size = loaded_->tokenizer->vocab_size(); size > config.vocab)
    return Error(Code::kCorrupt, "{}: tokenizer.json has ids up to {}, but vocab_size is {}", options_.model,
                 size - 1, config.vocab);
  return {};
}

Result<std::unique_ptr<Engine>> EngineImpl::WithRecipe(const std::string& recipe) const {
  NIBBLE_ASSIGN(const AttentionRecipe parsed, ParseRecipe(recipe, options_.dtype));
  EngineOptions options = options_;
  options.recipe = recipe;
  auto engine = std::make_unique<EngineImpl>(std::move(options), parsed, loaded_);
  NIBBLE_RETURN_IF_ERROR(engine->CheckShapes(config()));
  return std::unique_ptr<Engine>(std::move(engine));
}

// What the recipe, and each layer's where a plan changes it, needs of the heads.
Status EngineImpl::CheckShapes(const ModelConfig& config) const {
  NIBBLE_RETURN_IF_ERROR(CheckHeadSize(recipe_, config.head_dim));
  NIBBLE_RETURN_IF_ERROR(backend_->CheckRecipe(recipe_, config.head_dim));
  if (!plan_) return {};
  for (const LayerPlan& layer : plan_->layers) {
    const AttentionRecipe recipe = Apply(recipe_, layer);
    NIBBLE_RETURN_IF_ERROR(recipe::CheckCombination(recipe, options_.dtype));
    NIBBLE_RETURN_IF_ERROR(backend_->CheckRecipe(recipe, config.head_dim));
    NIBBLE_RETURN_IF_ERROR(CheckHeads(recipe, layer, config.kv_heads, config.head_dim));
  }
  return CheckTwoBitHeads(recipe_, *plan_);
}

Status EngineImpl::Score(std::span<const int32_t> tokens, int64_t prefill_tokens, const OnLogits& on_logits) {
  NIBBLE_RETURN_IF_ERROR(CheckPrompt(tokens, config(), 0));
  NIBBLE_CHECK(prefill_tokens >= 0 && prefill_tokens <= int64_t(tokens.size()), "prefill of a scored text");
  const int chunk = std::min(loaded_->model->max_logit_rows(), options_.prefill_chunk);
  NIBBLE_ASSIGN(std::unique_ptr<KvCache> cache,
                KvCache::Make(*backend_, {.shape = Shape(),
                                          .heads = config().heads,
                                          .recipe = recipe_,
                                          .plan = plan_ ? &*plan_ : nullptr,
                                          .max_seqs = 1,
                                          .max_step_tokens = chunk,
                                          .max_tokens = static_cast<int64_t>(tokens.size())}));
  NIBBLE_ASSIGN(const SeqId seq, cache->Open());
  cache->SetPrefill(seq, options_.score_as_prompt ? int64_t(tokens.size()) : prefill_tokens);
  const auto wanted = static_cast<size_t>(std::max<int64_t>(prefill_tokens - 1, 0));  // first with logits
  std::vector<int32_t> rows(static_cast<size_t>(chunk));
  for (int i = 0; i < chunk; ++i) rows[i] = i;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
    const auto part = tokens.subspan(first, std::min(tokens.size() - first, static_cast<size_t>(chunk)));
    const auto count = static_cast<int32_t>(part.size());
    const size_t skip = std::min(wanted > first ? wanted - first : 0, part.size());
    NIBBLE_RETURN_IF_ERROR(cache->BeginStep({&seq, 1}, {&count, 1}));
    const auto logit_rows = std::span(rows).subspan(skip, part.size() - skip);
    const Tensor logits = loaded_->model->Forward({part, logit_rows}, *cache);
    backend_->Sync();
    if (!logit_rows.empty()) NIBBLE_RETURN_IF_ERROR(on_logits(static_cast<int64_t>(first + skip), logits));
  }
  cache->Close(seq);
  return {};
}

std::vector<std::string> EngineImpl::Notes() const {
  std::vector<std::string> notes = config().notes;
  if (plan_ && plan_->recipe != ToString(recipe_))
    notes.push_back(fmt::format("plan {} was made for another recipe: {}", options_.plan, plan_->recipe));
  for (std::string& note : TwoBitNotes(recipe_, config().kv_heads)) notes.push_back(std::move(note));
  return notes;
}

KvSizes EngineImpl::kv_sizes() const {
  KvSizes sizes = PlanKv(Shape(), config().heads, recipe_, options_.max_seqs, config().max_position);
  // The device counts for all engines of the model: pages of another recipe say nothing of this one's.
  const auto usage = [this](KvSide side, kv::CodecId codec) {
    return kv::Get(codec).requantizes ? backend_->Usage(side) : KvUsage{};
  };
  TakeUsage(usage(KvSide::kK, recipe_.k), usage(KvSide::kV, recipe_.v), &sizes);
  return sizes;
}

std::vector<std::string> EngineImpl::Explain() const {
  std::vector<std::string> lines{"device: " + backend_->Info().name, "recipe: " + ToString(recipe_),
                                 "attention: " + backend_->ExplainAttention(recipe_)};
  for (std::string& line : backend_->ExplainMemory()) lines.push_back(std::move(line));
  for (std::string& line : ExplainTwoBitHeads(recipe_, config().kv_heads, plan_ ? &*plan_ : nullptr))
    lines.push_back(std::move(line));
  if (plan_) lines.push_back(fmt::format("plan: {} (made for {})", options_.plan, plan_->recipe));
  for (size_t i = 0; plan_ && i < plan_->layers.size(); ++i) {
    const AttentionRecipe layer = Apply(recipe_, plan_->layers[i]);
    if (layer != recipe_)
      lines.push_back(fmt::format("layer {} attention: {}", i, backend_->ExplainAttention(layer)));
  }
  for (std::string& line : loaded_->model->Explain()) lines.push_back(std::move(line));
  return lines;
}

}  // namespace

int LogitRows(int vocab, int max_seqs, int step_rows) {
  const int fit = static_cast<int>((int64_t{16} << 20) / (int64_t{4} * vocab));
  return std::clamp(fit, std::min(max_seqs, step_rows), step_rows);
}

Result<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options, std::optional<Plan> plan) {
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(options.recipe, options.dtype));
  auto loaded = std::make_shared<LoadedModel>();
  NIBBLE_ASSIGN(loaded->backend, MakeBackend(options.device, options.threads, options.numa));
  loaded->plan = std::move(plan);
  auto engine = std::make_unique<EngineImpl>(options, recipe, std::move(loaded));
  NIBBLE_RETURN_IF_ERROR(engine->LoadModel());
  return std::unique_ptr<Engine>(std::move(engine));
}

void TakeUsage(const KvUsage& k, const KvUsage& v, KvSizes* sizes) {
  const double most = sizes->bits_per_value;
  sizes->k_usage = k, sizes->v_usage = v;
  const auto use = [sizes](const KvUsage& usage, double& bits) {
    if (usage.values == 0) return;
    const double used = double(usage.bits) / double(usage.values);
    sizes->bits_per_value -= (bits - used) / 2;
    bits = used;
  };
  use(k, sizes->k_bits), use(v, sizes->v_bits);
  sizes->bytes_per_token = int64_t(std::ceil(double(sizes->bytes_per_token) * sizes->bits_per_value / most));
}

const char* ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kConstraint:
      return "constraint";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

}  // namespace nibble
