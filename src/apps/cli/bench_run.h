// SPDX-License-Identifier: Apache-2.0
// Floor 9. The measuring part of `nibble bench`: a model, random tokens, and the time that prompts and
// generated tokens take at a depth of the context.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"
#include "quant/weight/storage.h"

namespace nibble::cli {

struct BenchModelOptions {
  std::string model;                                      // folder, or empty:
  std::string shape;                                      // a name of kShapeNames with random weights
  weight::Storage storage = weight::Storage::kW4A8Group;  // of `shape`
  std::string recipe = "exact";
  DType dtype = DType::kF32;
  DeviceChoice device = DeviceChoice::kCpu;
  int threads = 0;
  NumaMode numa = NumaMode::kOff;
  PackCache pack_cache = PackCache::kOff;
  int batch = 512;   // rows of a step
  int max_seqs = 1;  // of any case
};

// One line of the table: `prompt` tokens processed or `generate` tokens made by each of `seqs` sequences,
// whichever is not 0, after `depth` tokens of context.
struct BenchCase {
  int prompt = 0, generate = 0;
  int64_t depth = 0;
  int seqs = 1;
  int tokens() const { return (prompt + generate) * seqs; }
};

struct BenchResult {
  std::vector<double> seconds;      // of each repetition
  int64_t kv_bytes = 0;             // sealed pages and open page of depth + tokens
  int64_t planned_bytes = 0;        // weights, steps, and the cache of this case
  std::vector<std::string> memory;  // Backend::ExplainMemory at the end, the cache in use
};

class BenchRun {
 public:
  static Result<std::unique_ptr<BenchRun>> Make(const BenchModelOptions& options);
  ~BenchRun();

  // One warm-up, then the repetitions. At depth 0 each has sequences of its own; at another one they follow
  // each other on the same sequences, the first at that depth. Of several sequences each is a token shorter
  // than the one before, so that they fill pages at different steps. kOutOfMemory names what did not fit,
  // kCancelled that `cancel` was set.
  Result<BenchResult> Run(const BenchCase& c, int repetitions, const std::atomic<bool>& cancel);

  const ModelConfig& config() const { return model_->config(); }
  Backend& backend() { return *backend_; }
  const Model& model() const { return *model_; }
  double load_seconds() const { return load_seconds_; }  // from opening the folder to packed weights
  const AttentionRecipe& recipe() const { return recipe_; }
  // The depth is filled with random keys and values, which takes seconds where a prefill takes minutes. A
  // recipe whose cache depends on what attention saw gets a real prefill.
  bool FillsByModel() const;

 private:
  BenchRun(const BenchModelOptions& options, AttentionRecipe recipe, std::unique_ptr<Backend> backend)
      : options_(options), recipe_(recipe), backend_(std::move(backend)) {}
  Status Init();
  Status Fill(KvCache& cache, SeqId seq, int64_t tokens, const std::atomic<bool>& cancel);
  Status Process(KvCache& cache, SeqId seq, int64_t tokens, const std::atomic<bool>& cancel);
  Status Generate(KvCache& cache, std::span<const SeqId> seqs, int tokens, const std::atomic<bool>& cancel);
  Status Start(KvCache& cache, const BenchCase& bench, int64_t most, std::vector<SeqId>* seqs,
               const std::atomic<bool>& cancel);
  std::span<const int32_t> NextTokens(int64_t count);

  BenchModelOptions options_;
  AttentionRecipe recipe_;
  std::unique_ptr<Backend> backend_;
  double load_seconds_ = 0;
  std::unique_ptr<Model> model_;
  Buffer kv_rows_;               // [batch, kv_heads, head_dim] random f32, for Fill
  Buffer ids_;                   // [max_seqs] the greedy tokens of a step
  std::vector<int32_t> tokens_;  // random ids; a step takes the next ones
  size_t next_token_ = 0;
};

}  // namespace nibble::cli
