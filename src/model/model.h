// SPDX-License-Identifier: Apache-2.0
// Floor 7. A decoder in terms of Backend ops. One file an architecture (llama.cc, mistral.cc, qwen2.cc,
// qwen3.cc).
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_cache.h"
#include "io/weights.h"
#include "model/config.h"
#include "model/observer.h"

namespace nibble {

// A file of packed weights beside the model (docs/formats/packed_weights.md). kOn: mapped, or written where
// there is none; one that does not fit is an error. kRebuild: written, in place of all that were there for
// this arithmetic.
enum class PackCache : uint8_t { kOff, kOn, kRebuild };

struct ModelOptions {
  DType arithmetic = DType::kF32;          // kF32 or kBF16: of the float path
  int max_step_rows = 512;                 // rows of one forward pass
  int max_logit_rows = 64;                 // rows whose logits one step may ask for
  const Plan* plan = nullptr;              // its channel balance is applied; or null. Must outlive the model
  PackCache pack_cache = PackCache::kOff;  // of Load on the CPU
};

// One forward pass over a ragged batch: rows are the new tokens, sequence after sequence, as in
// KvCache::BeginStep.
struct Step {
  std::span<const int32_t> tokens;      // [rows], each in [0, vocab)
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
};

class Model {
 public:
  static Result<std::unique_ptr<Model>> Load(const std::string& dir, Backend&, const ModelOptions&);
  // The same from weights that are open already, or were never in a file. `weights` is not kept, and
  // pack_cache not looked at.
  static Result<std::unique_ptr<Model>> FromWeights(ModelConfig config, const io::Weights& weights, Backend&,
                                                    const ModelOptions&);
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual size_t weight_bytes() const = 0;  // packed, as the kernels read them
  virtual int max_logit_rows() const = 0;
  virtual std::vector<std::string> Explain() const = 0;  // one line a weight: layout and kernel
  // Shows every later pass to `observer`, layer by layer; null ends that.
  virtual void Observe(Observer* observer) = 0;
  // REQUIRES cache.BeginStep for the same rows. Returns logits [logit_rows, vocab] f32, valid until the next
  // call.
  virtual Tensor Forward(const Step&, KvCache&) = 0;
  // Of the last Forward: hidden states behind the last norm, [logit_rows, hidden] f32.
  virtual Tensor Hidden() const = 0;
};

}  // namespace nibble
