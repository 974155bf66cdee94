// SPDX-License-Identifier: Apache-2.0
// Floor 7. The list of architectures. A new one is a file and a line here.
#include <algorithm>
#include <array>
#include <string_view>

#include "model/decoder.h"

namespace nibble {
namespace {

struct Architecture {
  std::string_view name;
  std::unique_ptr<Decoder> (*make)(ModelConfig, Backend&, const ModelOptions&);
};
constexpr std::array kArchitectures{
    Architecture{"LlamaForCausalLM", &MakeLlama},
    Architecture{"MistralForCausalLM", &MakeMistral},
    Architecture{"Qwen2ForCausalLM", &MakeQwen2},
    Architecture{"Qwen3ForCausalLM", &MakeQwen3},
};

Result<std::unique_ptr<Model>> Make(ModelConfig config, const io::Weights& weights,
                                    std::unique_ptr<PackedWeights> packed, Backend& backend,
                                    const ModelOptions& options) {
  const auto it = std::find_if(kArchitectures.begin(), kArchitectures.end(),
                               [&](const Architecture& a) { return a.name == config.architecture; });
  if (it == kArchitectures.end()) {
    return Error(Code::kUnsupported, "architecture {} is not supported", config.architecture);
  }
  std::unique_ptr<Decoder> model = it->make(std::move(config), backend, options);
  NIBBLE_RETURN_IF_ERROR(model->Init(weights, std::move(packed)));
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace

Result<std::unique_ptr<Model>> Model::FromWeights(ModelConfig config, const io::Weights& weights,
                                                  Backend& backend, const ModelOptions& options) {
  return Make(std::move(config), weights, nullptr, backend, options);
}

Result<std::unique_ptr<Model>> Model::Load(const std::string& dir, Backend& backend,
                                           const ModelOptions& options) {
  NIBBLE_ASSIGN(ModelConfig config, ReadModelConfig(dir));
  NIBBLE_ASSIGN(const std::unique_ptr<io::Weights> weights, io::Weights::Open(dir));
  for (const std::string& note : weights->notes()) config.notes.push_back(note);
  std::unique_ptr<PackedWeights> packed;
  if (options.pack_cache != PackCache::kOff) {
    NIBBLE_ASSIGN(packed, OpenPackedWeights(dir, *weights, backend, options));
  }
  auto model = Make(std::move(config), *weights, std::move(packed), backend, options);
  if (!model.ok()) return Error(model.status().code(), "{}: {}", dir, model.status().message());
  return model;
}

}  // namespace nibble
