// SPDX-License-Identifier: Apache-2.0
// Floor 8. Many requests on one loaded model that come and go while others run: a bounded queue in front of
// one engine thread, which batches continuously over the pages of one KV cache. What a request returns are
// the bytes that it gets alone, whatever runs beside it, was cached before it or took its pages from it.
// docs/serving.md.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/fair_turns.h"
#include "engine/engine.h"

namespace nibble {

// What must be free for a request to be admitted. kPrompt: pages for its prompt, so that the pool is full of
// work and a request may lose its pages to one before it, which costs time and changes no byte. kWhole: pages
// for the prompt and all of max_tokens; nothing is ever preempted.
enum class Admission : uint8_t { kPrompt, kWhole };

// What becomes of a request that loses its pages. kRecompute: its tokens are run again when it comes back.
// kSwap: what it has is copied to host memory and back. kAuto: swapped, but for one that has not completed a
// page yet, which is computed sooner than copied. All give the same bytes. A request that finds no room in
// the swap space is recomputed, and counted.
enum class Preemption : uint8_t { kRecompute, kSwap, kAuto };

// Prompt lookup: what followed the last time that the newest tokens occurred is guessed to follow again, and
// the guess is checked in the step that would have run anyway. The output is the same without.
struct NgramOptions {
  int max_draft = 0;  // tokens guessed a step and sequence; 0: off
  int longest = 4;    // how many of the newest tokens must have occurred before: the most tried first
  int shortest = 2;
};

struct ServingOptions {
  EngineOptions engine{};            // its max_seqs, prefill_chunk and max_tokens come from the fields below
  int max_num_seqs = 16;             // sequences in flight
  int max_num_batched_tokens = 512;  // rows of a step; more than max_num_seqs
  // Tokens for which the pool has pages; 0: what fits in kv_bytes; with that 0 too, max_num_seqs times the
  // model's context or 4096, whichever is less. A request that cannot fit is refused when it is submitted.
  int64_t kv_tokens = 0;
  int64_t kv_bytes = 0;
  Admission admission = Admission::kPrompt;
  Preemption preemption = Preemption::kRecompute;
  int64_t swap_bytes = int64_t{4} << 30;  // host memory for those that were swapped out, at most
  bool prefix_cache = true;   // share pages of equal prefixes where the recipe allows it: Explain says
  std::string prefix_salt{};  // part of every key of the prefix cache
  int max_waiting = 256;      // requests that wait
  int64_t max_waiting_tokens = int64_t{1} << 20;  // their prompt tokens
  // One unit of priority is worth so many seconds of waiting. Finite, so that nothing waits for ever.
  double priority_seconds = 10;
  NgramOptions ngram{};
};
// kInvalidArgument names the option, its value and its range. Also done by Start.
Status CheckServing(const ServingOptions&);

using RequestId = uint64_t;

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // natural, of the model's own distribution: before penalties, masks and temperature
};
struct TokenLogprobs {
  TokenLogprob token;                 // what was chosen, or stands in the prompt
  std::span<const TokenLogprob> top;  // best first; of equal ones the lower id
};

struct ServingUsage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of these, taken from the prefix cache when the request was first admitted
  int64_t new_tokens = 0;     // the token that ended it included
  int64_t drafted = 0, accepted = 0;  // tokens guessed, and of these right
  int preemptions = 0;
  double queued_seconds = 0;   // until first admitted
  double prefill_seconds = 0;  // from then to the first new token
  double decode_seconds = 0;   // from then on
};

// What one step brought one request. All views are valid during the call only.
struct ServingEvent {
  RequestId id = 0;
  std::string_view text{};            // complete UTF-8 characters, nothing that may begin a stop string
  std::span<const int32_t> tokens{};  // new tokens, the one that ended it included; `text` may lag behind
  std::span<const TokenLogprobs> logprobs{};  // one for each of `tokens`, where asked for
  // For the prompt tokens from the second on, in order, over as many events as the prompt takes steps.
  std::span<const TokenLogprobs> prompt_logprobs{};
  std::span<const TokenLogprob> prompt_logits{};  // logits, with the first event that has them
  std::span<const float> embedding{};             // with the last event, where asked for
  std::optional<FinishReason> finish{};           // set in the last event, and only there
  int stop_index = -1;                            // which of ServingRequest::stop ended it; -1: none
  std::string_view error{};                       // with FinishReason::kError
  ServingUsage usage{};                           // so far
};

enum class Pooling : uint8_t { kNone, kLast, kMean };

struct ServingRequest {
  std::vector<int32_t> prompt{};  // at least one token
  SamplingParams sampling{};
  int max_tokens = 128;  // new tokens; 0: the prompt alone is run, for its logprobs or its embedding
  bool ignore_eos = false;
  std::vector<std::string> stop{};     // text that ends generation and is not returned; none empty
  std::vector<int32_t> stop_tokens{};  // beside the model's end tokens; ignore_eos does not concern them
  std::shared_ptr<Constraint> constraint{};  // as in Request. Engine thread only, once it is submitted
  int priority = 0;                          // lower is sooner, see priority_seconds
  int logprobs = -1;            // of new tokens: -1 none, else the chosen one's and those of so many best
  int prompt_logprobs = -1;     // of the prompt's. The prefix cache is not asked then: all rows must run
  int logits_top = 0;           // how many of the last prompt position's logits to return, best first
  int64_t prefill_tokens = -1;  // as in Request
  Pooling pooling = Pooling::kNone;  // embedding: hidden states behind the last norm, of the last prompt
                                     // token or averaged over all; needs max_tokens 0
  std::string cache_salt{};          // requests with different ones share no page
  // Called on the engine thread, which waits for it: hand over and return, call nothing of this class but
  // Cancel. May be called before Submit has returned. Always ends with one event that has `finish`.
  std::function<void(const ServingEvent&)> on_event{};
};

// Counts by upper bound, the last without one.
struct StepHistogram {
  static constexpr std::array<double, 12> kBounds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                  0.1,   0.25,   0.5,   1,    2.5,   10};
  std::array<uint64_t, kBounds.size() + 1> counts{};
  double sum = 0;
  void Add(double value);
};

// Counters grow from the start of the engine; the rest is of now.
struct ServingStats {
  int running = 0, waiting = 0;
  int64_t waiting_tokens = 0;
  int64_t pages_total = 0;   // of 64 tokens
  int64_t pages_used = 0;    // held by running requests
  int64_t pages_cached = 0;  // held by nobody, kept for a prefix; given away when needed
  uint64_t submitted = 0, refused = 0;
  std::array<uint64_t, kFinishReasons> finished{};  // by FinishReason
  uint64_t preemptions = 0;                         // swapped or recomputed
  uint64_t swapped = 0;                             // of these, copied to host memory
  uint64_t swap_full = 0;                           // recomputed for want of room there
  int64_t swap_bytes = 0;                           // that are taken now
  uint64_t prompt_tokens = 0, new_tokens = 0;
  uint64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;  // prompt tokens looked up, and found
  uint64_t drafted = 0, accepted = 0;
  uint64_t steps = 0, step_rows = 0;
  StepHistogram step_seconds{};
  double kv_bits = 0;                 // a value, as Engine::kv_sizes
  double attended_fraction = 1;       // of the tokens that decode rows could see, what they read
  double step_under_way_seconds = 0;  // of the step that runs now: what a watchdog looks at; 0: idle
  bool draining = false;
};

// Thread-safe.
class ServingEngine {
 public:
  // Loads the model and starts the engine thread. `plan` as in Engine::Load.
  static Result<std::unique_ptr<ServingEngine>> Start(const ServingOptions&, std::optional<Plan> plan = {});
  // An engine for each of `recipes` (in the place of the options' recipe) over one copy of the weights, each
  // with an engine thread, a queue and a pool of pages as the options say. Their steps take turns, by time:
  // also with those of other models that were started with the same `turns`, which outlives them all.
  static Result<std::vector<std::unique_ptr<ServingEngine>>> StartAll(const ServingOptions&,
                                                                      std::span<const std::string> recipes,
                                                                      FairTurns* turns);
  virtual ~ServingEngine() = default;  // as Stop

  // All or none: what one API call asks for (n choices, many prompts) takes its places in the queue together.
  // kInvalidArgument: a request that can never run, kBusy: the queue is full, try again later, kUnavailable:
  // draining or stopped.
  virtual Result<std::vector<RequestId>> Submit(std::vector<ServingRequest>) = 0;
  Result<RequestId> Submit(ServingRequest);
  // What Submit would say of a request for reasons of its own (not busy, not draining).
  virtual Status Check(const ServingRequest&) const = 0;
  // Ends a request with kCancelled and frees its pages within one step. Unknown or finished ids: nothing.
  virtual void Cancel(RequestId) = 0;

  virtual void Drain() = 0;  // from now on Submit is refused; what was submitted goes on
  virtual bool WaitIdle(std::chrono::milliseconds limit) = 0;  // true: nothing runs or waits
  virtual void Stop() = 0;  // cancels all, with their last events, and ends the thread. Not from on_event

  virtual ServingStats Stats() const = 0;
  virtual Status Health() const = 0;  // not ok after an error that ended the engine thread's work

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const AttentionRecipe& recipe() const = 0;
  virtual const ServingOptions& options() const = 0;  // kv_tokens filled in
  virtual KvSizes kv_sizes() const = 0;               // of the pool as it is
  virtual size_t weight_bytes() const = 0;
  virtual std::vector<std::string> Explain() const = 0;  // as Engine, and what serving does about the recipe
  virtual std::vector<std::string> Notes() const = 0;
};

}  // namespace nibble
