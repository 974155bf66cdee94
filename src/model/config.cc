// SPDX-License-Identifier: Apache-2.0
// Floor 7. config.json and generation_config.json: typed, ranged, with the defaults that Hugging Face
// transformers (5.x) gives an absent key. Limits: docs/formats/model_folder.md.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "base/file.h"
#include "base/printable.h"
#include "io/model_path.h"
#include "model/config_rope.h"

namespace nibble {
namespace {

constexpr JsonLimits kLimits = {.max_bytes = size_t{16} << 20, .max_depth = 64, .max_nodes = size_t{1} << 17};
constexpr size_t kMaxStopTokens = 1024;

// What the transformers class of an architecture sets when config.json does not say.
struct Family {
  const char* architecture;
  const char* model_type;
  int kv_heads;  // 0: as many as heads
  int head_dim;  // 0: hidden / heads
  int64_t max_position;
  int64_t window;      // of sliding_window; 0: the class has no such key
  bool window_switch;  // has use_sliding_window, max_window_layers and layer_types
  int bos, eos;        // -1: none
};

constexpr std::array<Family, 4> kFamilies = {{
    {"LlamaForCausalLM", "llama", 0, 0, 2048, 0, false, 1, 2},
    {"MistralForCausalLM", "mistral", 8, 0, 131072, 4096, false, 1, 2},
    {"Qwen2ForCausalLM", "qwen2", 32, 0, 32768, 4096, true, -1, -1},
    {"Qwen3ForCausalLM", "qwen3", 32, 128, 32768, 4096, true, -1, -1},
}};

std::string KnownArchitectures() {
  std::string out;
  for (const Family& f : kFamilies) out += (out.empty() ? "" : ", ") + std::string(f.architecture);
  return out;
}

Result<const Family*> FindFamily(JsonRef config, ModelConfig* c) {
  std::string name;
  const auto list = config.Find("architectures");
  if (list && list->is_array() && list->size() > 0) {
    NIBBLE_ASSIGN(name, (*list)[0].String());
  } else if (list && !list->is_null()) {
    return Error(Code::kInvalidArgument, "{}: expected a list of names such as {}", list->Where(),
                 KnownArchitectures());
  } else {  // older folders name only the type
    NIBBLE_ASSIGN(const std::string_view type, config.GetString("model_type"));
    for (const Family& f : kFamilies) {
      if (type == f.model_type) name = f.architecture;
    }
    if (name.empty()) name = type;
    c->notes.push_back(
        fmt::format("{}: no architectures, model_type \"{}\" is taken", config.Where(), Printable(type)));
  }
  for (const Family& f : kFamilies) {
    if (name == f.architecture) return &f;
  }
  const char* hint =
      config.Find("auto_map") ? " (auto_map asks for code from the folder; none is ever run)" : "";
  return Error(Code::kUnsupported, "{}: architectures: \"{}\" is not known{}; known are {}", config.Where(),
               Printable(name), hint, KnownArchitectures());
}

Result<int> GetSize(JsonRef config, std::string_view key, int64_t max) {
  NIBBLE_ASSIGN(const int64_t value, config.GetInt(key, 1, max));
  return static_cast<int>(value);
}

Status ReadSizes(JsonRef config, const Family& family, ModelConfig* c) {
  NIBBLE_ASSIGN(c->layers, GetSize(config, "num_hidden_layers", 1024));
  NIBBLE_ASSIGN(c->hidden, GetSize(config, "hidden_size", 1 << 20));
  NIBBLE_ASSIGN(c->intermediate, GetSize(config, "intermediate_size", 1 << 22));
  NIBBLE_ASSIGN(c->heads, GetSize(config, "num_attention_heads", 4096));
  NIBBLE_ASSIGN(c->vocab, GetSize(config, "vocab_size", 1 << 24));

  const auto kv_heads =
      config.Find("num_key_value_heads");  // null means heads, absent the default of the class
  const int kv_default = !kv_heads && family.kv_heads > 0 ? family.kv_heads : c->heads;
  NIBBLE_ASSIGN(const int64_t kv, config.GetIntOr("num_key_value_heads", kv_default, 1, 4096));
  c->kv_heads = static_cast<int>(kv);
  if (c->heads % c->kv_heads != 0) {
    return Error(Code::kInvalidArgument,
                 "{}: num_attention_heads {} is no multiple of num_key_value_heads {}", config.Where(),
                 c->heads, c->kv_heads);
  }

  const bool given = config.Find("head_dim") && !config.Find("head_dim")->is_null();
  if (!given && family.head_dim == 0 && c->hidden % c->heads != 0) {
    return Error(Code::kInvalidArgument,
                 "{}: no head_dim, and hidden_size {} is no multiple of num_attention_heads {}",
                 config.Where(), c->hidden, c->heads);
  }
  const int64_t head_default = family.head_dim > 0 ? family.head_dim : c->hidden / c->heads;
  NIBBLE_ASSIGN(const int64_t head_dim, config.GetIntOr("head_dim", head_default, 8, 1024));
  if (head_dim < 8 || head_dim > 1024 || head_dim % 2 != 0) {
    return Error(Code::kInvalidArgument, "{}: head_dim {}: expected an even number in [8, 1024]",
                 config.Where(), head_dim);
  }
  c->head_dim = static_cast<int>(head_dim);
  return {};
}

// The length that the model was made for says nothing about memory here: too large is cut, with a note.
Status ReadMaxPosition(JsonRef config, const Family& family, ModelConfig* c) {
  NIBBLE_ASSIGN(const double value,
                config.GetNumberOr("max_position_embeddings", static_cast<double>(family.max_position)));
  if (value < 1 || value != std::floor(value)) {
    return Error(Code::kInvalidArgument, "{}: max_position_embeddings {}: expected a whole number above 0",
                 config.Where(), value);
  }
  c->max_position = value > double(kMaxPositions) ? kMaxPositions : static_cast<int64_t>(value);
  if (value > double(kMaxPositions)) {
    c->notes.push_back(
        fmt::format("{}: max_position_embeddings {} is taken as {}", config.Where(), value, kMaxPositions));
  }
  return {};
}

Status ReadNumbers(JsonRef config, ModelConfig* c) {
  NIBBLE_ASSIGN(c->norm_eps, config.GetNumberOr("rms_norm_eps", 1e-6));
  if (!(c->norm_eps > 0 && c->norm_eps < 1)) {
    return Error(Code::kInvalidArgument, "{}: rms_norm_eps {}: expected a number in (0, 1)", config.Where(),
                 c->norm_eps);
  }
  NIBBLE_ASSIGN(const std::string_view name, config.GetStringOr("hidden_act", "silu"));
  if (name == "silu" || name == "swish") {
    c->activation = Activation::kSilu;
  } else if (name == "gelu" || name == "gelu_python") {
    c->activation = Activation::kGelu;
  } else if (name == "gelu_pytorch_tanh" || name == "gelu_python_tanh" || name == "gelu_new") {
    c->activation = Activation::kGeluTanh;
  } else {
    return Error(Code::kUnsupported,
                 "{}: hidden_act \"{}\" is not known; known are silu, gelu, gelu_pytorch_tanh",
                 config.Where(), Printable(name));
  }
  NIBBLE_ASSIGN(c->tied_head, config.GetBoolOr("tie_word_embeddings", false));
  return {};
}

Status ReadBiases(JsonRef config, ModelConfig* c) {
  if (c->architecture == "Qwen2ForCausalLM") c->qkv_bias = true;
  if (c->architecture == "LlamaForCausalLM" || c->architecture == "Qwen3ForCausalLM") {
    NIBBLE_ASSIGN(c->qkv_bias, config.GetBoolOr("attention_bias", false));
    c->out_bias = c->qkv_bias;
  }
  if (c->architecture == "LlamaForCausalLM") {
    NIBBLE_ASSIGN(c->mlp_bias, config.GetBoolOr("mlp_bias", false));
  }
  return {};
}

// layer_types, or every layer from max_window_layers on.
Status ReadWindowLayers(JsonRef config, ModelConfig* c) {
  const auto types = config.Find("layer_types");
  if (!types || types->is_null()) {
    NIBBLE_ASSIGN(const int64_t first, config.GetIntOr("max_window_layers", 28, 0, kMaxPositions));
    for (int i = 0; i < c->layers; ++i) c->layer_uses_window[static_cast<size_t>(i)] = i >= first;
    return {};
  }
  if (!types->is_array() || types->size() != static_cast<size_t>(c->layers)) {
    return Error(Code::kInvalidArgument, "{}: expected a list of {} names, one a layer", types->Where(),
                 c->layers);
  }
  for (size_t i = 0; i < types->size(); ++i) {
    NIBBLE_ASSIGN(const std::string_view type, (*types)[i].String());
    if (type != "sliding_attention" && type != "full_attention") {
      return Error(Code::kUnsupported, "{}: \"{}\" is not known; known are full_attention, sliding_attention",
                   (*types)[i].Where(), Printable(type));
    }
    c->layer_uses_window[i] = type == "sliding_attention";
  }
  return {};
}

Status ReadWindow(JsonRef config, const Family& family, ModelConfig* c) {
  c->layer_uses_window.assign(static_cast<size_t>(c->layers), false);
  if (family.window == 0) return {};
  const auto given = config.Find("sliding_window");
  const bool none = given && given->is_null();
  NIBBLE_ASSIGN(const int64_t window, config.GetIntOr("sliding_window", family.window, 1, kMaxPositions));
  bool on = true;
  if (family.window_switch) {
    NIBBLE_ASSIGN(on, config.GetBoolOr("use_sliding_window", false));
    NIBBLE_RETURN_IF_ERROR(ReadWindowLayers(config, c));
  } else {
    c->layer_uses_window.assign(static_cast<size_t>(c->layers), true);
  }
  const auto& uses = c->layer_uses_window;
  if (none || !on || std::find(uses.begin(), uses.end(), true) == uses.end()) {
    c->layer_uses_window.assign(static_cast<size_t>(c->layers), false);
    return {};
  }
  c->sliding_window = window;
  return {};
}

Status AddStopToken(JsonRef value, ModelConfig* c) {
  NIBBLE_ASSIGN(const int64_t id, value.Int(0, c->vocab - 1));
  auto& all = c->eos_tokens;
  if (std::find(all.begin(), all.end(), id) == all.end()) all.push_back(static_cast<int32_t>(id));
  return {};
}

// An id, a list of ids, or null. Sets *given when the key is there at all.
Status AddStopTokens(JsonRef config, bool* given, ModelConfig* c) {
  const auto eos = config.Find("eos_token_id");
  if (!eos) return {};
  *given = true;
  if (eos->is_null()) return {};
  if (!eos->is_array()) return AddStopToken(*eos, c);
  if (eos->size() > kMaxStopTokens) {
    return Error(Code::kInvalidArgument, "{}: {} ids, at most {} are read", eos->Where(), eos->size(),
                 kMaxStopTokens);
  }
  for (size_t i = 0; i < eos->size(); ++i) NIBBLE_RETURN_IF_ERROR(AddStopToken((*eos)[i], c));
  return {};
}

Status ReadTokens(JsonRef config, const JsonRef* generation, const Family& family, ModelConfig* c) {
  const bool bos_given = config.Find("bos_token_id").has_value();
  const int bos_default = !bos_given && family.bos < c->vocab ? family.bos : -1;
  const auto bos = config.Find("bos_token_id");
  c->bos_token = bos_default;
  if (bos && !bos->is_null()) {
    NIBBLE_ASSIGN(const int64_t id, bos->Int(0, c->vocab - 1));
    c->bos_token = static_cast<int32_t>(id);
  }
  bool given = false;
  NIBBLE_RETURN_IF_ERROR(AddStopTokens(config, &given, c));
  if (generation) NIBBLE_RETURN_IF_ERROR(AddStopTokens(*generation, &given, c));
  if (!given && family.eos >= 0 && family.eos < c->vocab) c->eos_tokens.push_back(family.eos);
  return {};
}

Status ReadQuantization(JsonRef config, ModelConfig* c) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const auto q = config.Find(key);
    if (!q || q->is_null()) continue;
    NIBBLE_ASSIGN(const std::string_view method, q->GetString("quant_method"));
    if (method != "nibble") {
      return Error(Code::kUnsupported,
                   "{}: quant_method \"{}\" is not read; only \"nibble\" and float weights are", q->Where(),
                   Printable(method));
    }
    NIBBLE_ASSIGN(const std::string_view format, q->GetString("format"));
    if (format != "w4a8-g128" && format != "w4a8-chn" && format != "w8a8") {
      return Error(Code::kUnsupported, "{}: format \"{}\" is not known; known are w4a8-g128, w4a8-chn, w8a8",
                   q->Where(), Printable(format));
    }
    if (format == "w4a8-g128") NIBBLE_RETURN_IF_ERROR(q->GetIntOr("group_size", 128, 128, 128).status());
    NIBBLE_ASSIGN(const std::string_view embedding, q->GetStringOr("embedding", "none"));
    if (embedding != "none" && embedding != "int8") {
      return Error(Code::kUnsupported, "{}: embedding \"{}\" is not known; known are none, int8", q->Where(),
                   Printable(embedding));
    }
    c->weights.format = format;
    c->weights.int8_embedding = embedding == "int8";
  }
  return {};
}

// Keys that would change the computation in ways that no architecture here has.
Status RefuseExperts(JsonRef config) {
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"}) {
    const auto value = config.Find(key);
    if (!value || value->is_null()) continue;
    return Error(Code::kUnsupported, "{}: mixtures of experts are not supported", value->Where());
  }
  return {};
}

// Parses DIR/NAME; the messages show that name, not where a link of a download cache leads.
Result<Json> ReadInModel(const std::string& dir, const char* name) {
  NIBBLE_ASSIGN(const std::string path, io::ResolveInModel(dir, name));
  NIBBLE_ASSIGN(const std::string text, ReadWholeFile(path, kLimits.max_bytes));
  return Json::Parse(text, kLimits, dir + "/" + name);
}

}  // namespace

Result<ModelConfig> ParseModelConfig(JsonRef config, const JsonRef* generation_config) {
  if (!config.is_object()) return Error(Code::kCorrupt, "{}: expected a JSON object", config.Where());
  ModelConfig c;
  NIBBLE_ASSIGN(const Family* family, FindFamily(config, &c));
  c.architecture = family->architecture;
  NIBBLE_RETURN_IF_ERROR(RefuseExperts(config));
  NIBBLE_RETURN_IF_ERROR(ReadSizes(config, *family, &c));
  NIBBLE_RETURN_IF_ERROR(ReadMaxPosition(config, *family, &c));
  NIBBLE_RETURN_IF_ERROR(ReadNumbers(config, &c));
  NIBBLE_RETURN_IF_ERROR(ReadBiases(config, &c));
  NIBBLE_RETURN_IF_ERROR(ReadWindow(config, *family, &c));
  NIBBLE_RETURN_IF_ERROR(ReadRope(config, c.max_position, &c.rope));
  NIBBLE_RETURN_IF_ERROR(ReadTokens(config, generation_config, *family, &c));
  NIBBLE_RETURN_IF_ERROR(ReadQuantization(config, &c));
  if (config.Find("auto_map")) {
    c.notes.push_back(
        fmt::format("{}: auto_map is ignored, code from a model folder is never run", config.Where()));
  }
  return c;
}

Result<ModelConfig> ReadModelConfig(const std::string& dir) {
  NIBBLE_ASSIGN(const Json config, ReadInModel(dir, "config.json"));
  const auto generation = ReadInModel(dir, "generation_config.json");
  if (!generation.ok() && generation.status().code() != Code::kNotFound) return generation.status();
  if (!generation.ok()) return ParseModelConfig(config.root(), nullptr);
  const JsonRef root = generation->root();
  if (!root.is_object()) return Error(Code::kCorrupt, "{}: expected a JSON object", root.Where());
  return ParseModelConfig(config.root(), &root);
}

}  // namespace nibble
