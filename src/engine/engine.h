// SPDX-License-Identifier: Apache-2.0
// Floor 8. A loaded model with tokenizer, cache and sampler: prompts in, tokens out.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/row_reads.h"
#include "engine/sampler.h"
#include "model/model.h"
#include "recipe/plan.h"
#include "text/token_mask.h"
#include "text/tokenizer.h"

namespace nibble {

struct EngineOptions {
  std::string model = {};  // folder
  std::string recipe = "exact";
  std::string plan = "";      // file that `nibble calibrate` wrote for this model; "": none
  DType dtype = DType::kF32;  // arithmetic of the exact path
  DeviceChoice device = DeviceChoice::kCpu;
  int threads = 0;  // of the CPU; 0: all available
  NumaMode numa = NumaMode::kOff;
  PackCache pack_cache = PackCache::kOff;
  int max_seqs = 8;              // sequences in flight together
  int prefill_chunk = 256;       // prompt tokens a step
  bool score_as_prompt = false;  // Score's rows are a prompt's: no selection, and its kernels
  int64_t max_tokens = 0;        // KV tokens over all sequences; 0: what the requests of a call need
};

// kConstraint: the constraint cannot go on, which takes a long text of a very ambiguous grammar. kError: the
// model's logits are no numbers, or the engine failed.
enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kConstraint, kError };
inline constexpr size_t kFinishReasons = 5;
const char* ToString(FinishReason);

struct Request {
  std::vector<int32_t> prompt{};  // at least one token
  SamplingParams sampling{};
  int max_tokens = 128;  // new tokens
  // Prompt tokens that attend to everything; those after them and all new ones go through the recipe's token
  // selection. -1: the whole prompt.
  int64_t prefill_tokens = -1;
  bool ignore_eos = false;
  std::vector<std::string> stop{};  // text that ends generation and is not returned
  // What the answer must be; null: anything. Made for this engine's tokenizer, shared by requests that want
  // the same. The answer ends when nothing can follow it. Not with ignore_eos.
  std::shared_ptr<Constraint> constraint{};
  int logits_top = 0;  // how many of the last prompt position's logits to return
  std::function<void(std::string_view text)> on_text{};  // streamed text, complete UTF-8 characters only
};

struct Completion {
  std::vector<int32_t> token_ids;  // new tokens, the stop token included when one ended it
  std::string text;
  FinishReason finish = FinishReason::kLength;
  std::vector<std::pair<int32_t, float>> last_prompt_logits;  // best first
  double prefill_seconds = 0, decode_seconds = 0;
};

// Rows with logits in a step: work memory for them stays near 16 MiB whatever the vocabulary; at least one a
// sequence.
int LogitRows(int vocab, int max_seqs, int step_rows);

// What an engine is made of, for those who run steps of their own.
struct EngineParts {
  Model& model;
  const Tokenizer& tokenizer;
  Backend& backend;
  const AttentionRecipe& recipe;
  const EngineOptions& options;
  const Plan* plan;  // or null
};

class Engine {
 public:
  // `plan`: one that is in memory, in place of the file that the options name.
  static Result<std::unique_ptr<Engine>> Load(const EngineOptions&, std::optional<Plan> plan = {});
  virtual ~Engine() = default;

  // An engine with another recipe over the same weights, plan and device: nothing is loaded. Its work memory
  // is shared too, so calls on engines of one model must not overlap. kInvalidArgument, kUnsupported: what
  // the model or the device says against the recipe.
  virtual Result<std::unique_ptr<Engine>> WithRecipe(const std::string& recipe) const = 0;

  // Runs all requests as one ragged batch; each gets the bytes it would get alone. `cancel`, when set, ends
  // the call at the next step with what is there. kInvalidArgument for an empty prompt, an id outside the
  // vocabulary or prompt + max_tokens beyond the model's context (names the numbers).
  virtual Result<std::vector<Completion>> Generate(std::span<const Request>,
                                                   const std::atomic<bool>* cancel = nullptr) = 0;

  // Feeds `tokens` as one sequence through the cache and hands over logits, a block of rows at a time:
  // on_logits(first position, logits [rows, vocab] f32). Logits are valid during the call only. The first
  // `prefill_tokens` positions attend to everything and their logits are not computed, except those of the
  // last one, which predicts the first of the rest; the rest go through the recipe's token selection.
  using OnLogits = std::function<Status(int64_t first, Tensor logits)>;
  virtual Status Score(std::span<const int32_t> tokens, int64_t prefill_tokens,
                       const OnLogits& on_logits) = 0;
  Status Score(std::span<const int32_t> tokens, const OnLogits& on_logits) {
    return Score(tokens, /*prefill_tokens=*/0, on_logits);
  }

  // Shows the passes of later Score calls to `observer`, layer by layer; null ends that.
  virtual void Observe(Observer* observer) = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const AttentionRecipe& recipe() const = 0;
  virtual Backend& backend() = 0;
  virtual EngineParts parts() = 0;
  // What attention read since the last call: of rows after the prefill, in Generate and Score alike.
  virtual RowReads TakeReads() = 0;
  virtual size_t weight_bytes() const = 0;
  // Under a recipe that requantizes (QAQ) the bits a value are what the calls so far used on average, those
  // on other engines of the model included; before the first page is complete, the most there can be.
  virtual KvSizes kv_sizes() const = 0;
  virtual std::vector<std::string> Explain() const = 0;  // device, recipe, kernels: one line each
  virtual std::vector<std::string> Notes() const = 0;    // warnings from reading the folder
};

// What a codec that requantizes took, in the place of the most it may take.
void TakeUsage(const KvUsage& k, const KvUsage& v, KvSizes* sizes);

}  // namespace nibble
