// SPDX-License-Identifier: Apache-2.0
// Floor 7. Rotary embedding: base, and the scalings "default", "linear" and "llama3".
#include "model/config_rope.h"

#include "base/printable.h"

namespace nibble {
namespace {

// A number in (0, max]. Above max a float32 frequency would be 0 or infinite.
Result<double> Positive(JsonRef value, double max) {
  NIBBLE_ASSIGN(const double number, value.Number());
  if (number > 0 && number <= max) return number;
  return Error(Code::kInvalidArgument, "{}: wanted a number in (0, {}], found {}", value.Where(), max,
               number);
}

Result<double> GetPositive(JsonRef object, std::string_view key, double max) {
  NIBBLE_ASSIGN(const JsonRef value, object.Get(key));
  return Positive(value, max);
}

std::optional<JsonRef> Given(JsonRef object, std::string_view key) {
  const auto value = object.Find(key);
  return value && !value->is_null() ? value : std::nullopt;
}

Status ReadTheta(JsonRef config, std::optional<JsonRef> scaling, RopeConfig* rope) {
  auto theta = scaling ? Given(*scaling, "rope_theta") : std::nullopt;
  if (!theta) theta = Given(config, "rope_theta");
  if (!theta) return {};
  NIBBLE_ASSIGN(rope->theta, Positive(*theta, 1e15));
  return {};
}

Status RefusePartial(JsonRef object) {
  const auto partial = Given(object, "partial_rotary_factor");
  if (!partial) return {};
  NIBBLE_ASSIGN(const double factor, partial->Number());
  if (factor == 1.0) return {};
  return Error(Code::kUnsupported, "{} {}: heads that are rotated in part are not supported",
               partial->Where(), factor);
}

Status ReadLlama3(JsonRef config, JsonRef scaling, int64_t max_position, RopeConfig* rope) {
  rope->scaling = RopeScaling::kLlama3;
  NIBBLE_ASSIGN(rope->factor, GetPositive(scaling, "factor", 1e6));
  NIBBLE_ASSIGN(rope->low_freq_factor, GetPositive(scaling, "low_freq_factor", 1e6));
  NIBBLE_ASSIGN(rope->high_freq_factor, GetPositive(scaling, "high_freq_factor", 1e6));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return Error(Code::kInvalidArgument, "{}: high_freq_factor {} is not above low_freq_factor {}",
                 scaling.Where(), rope->high_freq_factor, rope->low_freq_factor);
  }
  constexpr char kKey[] = "original_max_position_embeddings";
  const JsonRef holder = Given(config, kKey) ? config : scaling;  // transformers lets the outer one win
  NIBBLE_ASSIGN(rope->original_max_position, holder.GetIntOr(kKey, max_position, 1, kMaxPositions));
  return {};
}

}  // namespace

Status ReadRope(JsonRef config, int64_t max_position, RopeConfig* rope) {
  auto scaling = Given(config, "rope_scaling");
  if (!scaling || (scaling->is_object() && scaling->size() == 0)) scaling = Given(config, "rope_parameters");
  if (scaling && !scaling->is_object()) {
    return Error(Code::kInvalidArgument, "{}: expected an object or null", scaling->Where());
  }
  NIBBLE_RETURN_IF_ERROR(ReadTheta(config, scaling, rope));
  NIBBLE_RETURN_IF_ERROR(RefusePartial(config));
  if (!scaling) return {};
  NIBBLE_RETURN_IF_ERROR(RefusePartial(*scaling));
  for (size_t i = 0; i < scaling->size(); ++i) {
    if ((*scaling)[i].is_object()) {
      return Error(Code::kUnsupported, "{}: rotary parameters by layer type are not supported",
                   (*scaling)[i].Where());
    }
  }

  NIBBLE_ASSIGN(const std::string_view old_type, scaling->GetStringOr("type", "default"));
  NIBBLE_ASSIGN(const std::string_view type, scaling->GetStringOr("rope_type", old_type));
  if (type == "default") return {};
  if (type == "llama3") return ReadLlama3(config, *scaling, max_position, rope);
  if (type != "linear") {
    return Error(Code::kUnsupported, "{}: rope type \"{}\" is not known; known are default, linear, llama3",
                 scaling->Where(), Printable(type));
  }
  rope->scaling = RopeScaling::kLinear;
  NIBBLE_ASSIGN(rope->factor, GetPositive(*scaling, "factor", 1e6));
  return {};
}

}  // namespace nibble
