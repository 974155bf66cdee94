// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>

#include "engine/generation.h"

namespace nibble {
namespace {

// Work memory for logits stays near 16 MiB whatever the vocabulary; at least one row a sequence.
int LogitRows(int vocab, int max_seqs, int step_rows) {
  const int fit = static_cast<int>((int64_t{16} << 20) / (int64_t{4} * vocab));
  return std::clamp(fit, std::min(max_seqs, step_rows), step_rows);
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineOptions options, AttentionRecipe recipe, std::unique_ptr<Backend> backend)
      : options_(std::move(options)), recipe_(recipe), backend_(std::move(backend)) {}

  Status Init();
  Result<std::vector<Completion>> Generate(std::span<const Request> requests,
                                           const std::atomic<bool>* cancel) override {
    return RunGeneration({*model_, *tokenizer_, *backend_, recipe_, options_}, requests, cancel);
  }
  Status Score(std::span<const int32_t> tokens,
               const std::function<Status(int64_t first, Tensor logits)>& on_logits) override;

  const ModelConfig& config() const override { return model_->config(); }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const AttentionRecipe& recipe() const override { return recipe_; }
  Backend& backend() override { return *backend_; }
  size_t weight_bytes() const override { return model_->weight_bytes(); }
  KvSizes kv_sizes() const override {
    return PlanKv(Shape(), recipe_, options_.max_seqs, model_->config().max_position);
  }
  std::vector<std::string> Explain() const override;
  std::vector<std::string> Notes() const override { return model_->config().notes; }

 private:
  KvShape Shape() const {
    const ModelConfig& c = model_->config();
    return {c.layers, c.kv_heads, c.head_dim};
  }

  EngineOptions options_;
  AttentionRecipe recipe_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

Status EngineImpl::Init() {
  // The config is read first for the vocabulary, which bounds the logit buffer.
  NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(options_.model));
  ModelOptions model{.arithmetic = options_.dtype,
                     .max_step_rows = options_.prefill_chunk + options_.max_seqs};
  model.max_logit_rows = LogitRows(config.vocab, options_.max_seqs, model.max_step_rows);
  NIBBLE_ASSIGN(model_, Model::Load(options_.model, *backend_, model));
  NIBBLE_ASSIGN(tokenizer_, Tokenizer::Load(options_.model));
  if (tokenizer_->vocab_size() > config.vocab) {
    return Error(Code::kCorrupt, "{}: tokenizer.json has ids up to {}, but vocab_size is {}", options_.model,
                 tokenizer_->vocab_size() - 1, config.vocab);
  }
  return {};
}

Status EngineImpl::Score(std::span<const int32_t> tokens,
                         const std::function<Status(int64_t first, Tensor logits)>& on_logits) {
  NIBBLE_RETURN_IF_ERROR(CheckPrompt(tokens, model_->config(), 0));
  const int chunk = std::min(model_->max_logit_rows(), options_.prefill_chunk);
  NIBBLE_ASSIGN(std::unique_ptr<KvCache> cache,
                KvCache::Make(*backend_, {.shape = Shape(),
                                          .recipe = recipe_,
                                          .max_seqs = 1,
                                          .max_step_tokens = chunk,
                                          .max_tokens = static_cast<int64_t>(tokens.size())}));
  NIBBLE_ASSIGN(const SeqId seq, cache->Open());
  std::vector<int32_t> rows(static_cast<size_t>(chunk));
  for (int i = 0; i < chunk; ++i) rows[i] = i;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
    const auto part = tokens.subspan(first, std::min(tokens.size() - first, static_cast<size_t>(chunk)));
    const auto count = static_cast<int32_t>(part.size());
    NIBBLE_RETURN_IF_ERROR(cache->BeginStep({&seq, 1}, {&count, 1}));
    const Tensor logits = model_->Forward({part, std::span(rows).first(part.size())}, *cache);
    backend_->Sync();
    NIBBLE_RETURN_IF_ERROR(on_logits(static_cast<int64_t>(first), logits));
  }
  cache->Close(seq);
  return {};
}

std::vector<std::string> EngineImpl::Explain() const {
  std::vector<std::string> lines{"device: " + backend_->Info().name, "recipe: " + ToString(recipe_),
                                 "attention: " + backend_->ExplainAttention(recipe_)};
  for (std::string& line : model_->Explain()) lines.push_back(std::move(line));
  return lines;
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options) {
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(options.recipe, options.dtype));
  NIBBLE_ASSIGN(std::unique_ptr<Backend> backend, MakeCpuBackend(options.threads));
  auto engine = std::make_unique<EngineImpl>(options, recipe, std::move(backend));
  NIBBLE_RETURN_IF_ERROR(engine->Init());
  return std::unique_ptr<Engine>(std::move(engine));
}

const char* ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "?";
}

}  // namespace nibble
