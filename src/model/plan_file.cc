// SPDX-License-Identifier: Apache-2.0
#include "model/plan_file.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/json.h"
#include "base/printable.h"

namespace nibble {
namespace {

using Writer = nlohmann::ordered_json;

constexpr JsonLimits kLimits = {
    .max_bytes = size_t{256} << 20, .max_depth = 8, .max_nodes = size_t{32} << 20};
constexpr int kMaxQaqBits = 8;
constexpr std::string_view kQkNames[] = {"int8-block", "int8-thread", "int4-thread"};  // from kInt8Block on

struct Shape {
  int heads, kv_heads, head_dim;
};

enum class Range : uint8_t { kFinite, kPositive };

// An array of `rows` arrays of `columns` numbers; empty when the key is absent.
Result<std::vector<float>> ReadMatrix(JsonRef layer, std::string_view key, int rows, int columns,
                                      Range range) {
  std::vector<float> values;
  const auto found = layer.Find(key);
  if (!found) return values;
  if (!found->is_array() || found->size() != size_t(rows))
    return Error(Code::kInvalidArgument, "{}: expected {} arrays, one a head, found {}", found->Where(), rows,
                 found->size());
  for (size_t r = 0; r < found->size(); ++r) {
    const JsonRef row = (*found)[r];
    if (!row.is_array() || row.size() != size_t(columns))
      return Error(Code::kInvalidArgument, "{}: expected {} numbers, one a channel, found {}", row.Where(),
                   columns, row.size());
    for (size_t i = 0; i < row.size(); ++i) {
      NIBBLE_ASSIGN(const double x, row[i].Number());
      const bool fits = std::fabs(x) <= 1e30 && (range == Range::kFinite || x >= 1e-30);
      if (!fits)
        return Error(Code::kInvalidArgument, "{}: {} is not {}", row[i].Where(), x,
                     range == Range::kFinite ? "a number within 1e30" : "a scale from 1e-30 to 1e30");
      values.push_back(float(x));
    }
  }
  return values;
}

Result<std::vector<bool>> ReadFlags(JsonRef layer, std::string_view key, int count) {
  std::vector<bool> flags;
  const auto found = layer.Find(key);
  if (!found) return flags;
  if (!found->is_array() || found->size() != size_t(count))
    return Error(Code::kInvalidArgument, "{}: expected {} bit widths, one a KV head, found {}",
                 found->Where(), count, found->size());
  for (size_t i = 0; i < found->size(); ++i) {
    NIBBLE_ASSIGN(const int64_t bits, (*found)[i].Int(2, 4));
    if (bits == 3) return Error(Code::kInvalidArgument, "{}: 3 bits; a head has 2 or 4", (*found)[i].Where());
    flags.push_back(bits == 2);
  }
  return flags;
}

// An array of `count` whole numbers; empty when the key is absent.
Result<std::vector<int>> ReadInts(JsonRef layer, std::string_view key, int count, int least, int most) {
  std::vector<int> values;
  const auto found = layer.Find(key);
  if (!found) return values;
  if (!found->is_array() || found->size() != size_t(count))
    return Error(Code::kInvalidArgument, "{}: expected {} numbers, one a KV head, found {}", found->Where(),
                 count, found->size());
  for (size_t i = 0; i < found->size(); ++i) {
    NIBBLE_ASSIGN(const int64_t x, (*found)[i].Int(least, most));
    values.push_back(int(x));
  }
  return values;
}

// `side`_qaq_sigma and `side`_qaq_bits, which need each other.
Result<std::vector<QaqBounds>> ReadQaq(JsonRef layer, std::string_view side, int count) {
  std::vector<QaqBounds> bounds;
  const std::string sigma_key = fmt::format("{}_qaq_sigma", side),
                    bits_key = fmt::format("{}_qaq_bits", side);
  const auto sigma = layer.Find(sigma_key), bits = layer.Find(bits_key);
  if (!sigma && !bits) return bounds;
  if (!sigma || !bits)
    return Error(Code::kInvalidArgument, "{}: {} without {}; a head needs both", layer.Where(),
                 sigma ? sigma_key : bits_key, sigma ? bits_key : sigma_key);
  for (const auto& found : {*sigma, *bits})
    if (!found.is_array() || found.size() != size_t(count))
      return Error(Code::kInvalidArgument, "{}: expected {} entries, one a KV head, found {}", found.Where(),
                   count, found.size());
  for (size_t h = 0; h < size_t(count); ++h) {
    const JsonRef pair = (*bits)[h];
    if (!pair.is_array() || pair.size() != 2)
      return Error(Code::kInvalidArgument, "{}: expected the least and the most bits", pair.Where());
    NIBBLE_ASSIGN(const double x, (*sigma)[h].Number());
    NIBBLE_ASSIGN(const int64_t least, pair[0].Int(0, kMaxQaqBits));
    NIBBLE_ASSIGN(const int64_t most, pair[1].Int(1, kMaxQaqBits));
    if (!(x > 0 && x <= double(kMaxQaqSigma)))
      return Error(Code::kInvalidArgument, "{}: {} is not above 0 and up to {}", (*sigma)[h].Where(), x,
                   kMaxQaqSigma);
    if (least > most)
      return Error(Code::kInvalidArgument, "{}: {} bits at least and {} at most", pair.Where(), least, most);
    bounds.push_back({float(x), int(least), int(most)});
  }
  return bounds;
}

Result<LayerPlan> ReadLayer(JsonRef json, const Shape& s) {
  if (!json.is_object()) return Error(Code::kInvalidArgument, "{}: expected an object", json.Where());
  LayerPlan layer;
  NIBBLE_ASSIGN(const std::string_view qk, json.GetStringOr("qk", ""));
  for (size_t i = 0; i < std::size(kQkNames); ++i)
    if (qk == kQkNames[i]) layer.qk = QkArith(size_t(QkArith::kInt8Block) + i);
  if (!qk.empty() && !layer.qk)
    return Error(Code::kInvalidArgument, "{}: qk '{}' is unknown; it may be {}", json.Where(), Printable(qk),
                 fmt::join(kQkNames, ", "));
  NIBBLE_ASSIGN(const std::string_view pv, json.GetStringOr("pv", ""));
  if (!pv.empty() && pv != "f16" && pv != "int8")
    return Error(Code::kInvalidArgument, "{}: pv '{}' is unknown; it may be f16, int8", json.Where(),
                 Printable(pv));
  if (!pv.empty()) layer.pv = pv == "f16" ? PvArith::kF16 : PvArith::kInt8;
  NIBBLE_ASSIGN(layer.sparq_r, ReadInts(json, "sparq_r", s.kv_heads, 1, s.head_dim));
  NIBBLE_ASSIGN(layer.sparq_k, ReadInts(json, "sparq_k", s.kv_heads, 1, 1 << 20));
  if (layer.sparq_r.empty() != layer.sparq_k.empty())
    return Error(Code::kInvalidArgument, "{}: sparq_{} without sparq_{}; a head needs both", json.Where(),
                 layer.sparq_r.empty() ? 'k' : 'r', layer.sparq_r.empty() ? 'r' : 'k');
  NIBBLE_ASSIGN(layer.k_qaq, ReadQaq(json, "k", s.kv_heads));
  NIBBLE_ASSIGN(layer.v_qaq, ReadQaq(json, "v", s.kv_heads));
  NIBBLE_ASSIGN(layer.k_two_bit, ReadFlags(json, "k_bits", s.kv_heads));
  NIBBLE_ASSIGN(layer.v_two_bit, ReadFlags(json, "v_bits", s.kv_heads));
  NIBBLE_ASSIGN(layer.k_scale, ReadMatrix(json, "k_scale", s.kv_heads, s.head_dim, Range::kPositive));
  NIBBLE_ASSIGN(layer.k_shift, ReadMatrix(json, "k_shift", s.kv_heads, s.head_dim, Range::kFinite));
  NIBBLE_ASSIGN(layer.v_scale, ReadMatrix(json, "v_scale", s.kv_heads, s.head_dim, Range::kPositive));
  NIBBLE_ASSIGN(layer.v_shift, ReadMatrix(json, "v_shift", s.kv_heads, s.head_dim, Range::kFinite));
  NIBBLE_ASSIGN(layer.k_mean, ReadMatrix(json, "k_mean", s.kv_heads, s.head_dim, Range::kFinite));
  NIBBLE_ASSIGN(layer.q_mean, ReadMatrix(json, "q_mean", s.heads, s.head_dim, Range::kFinite));
  return layer;
}

// The shortest digits that give the same float, instead of those of the double.
double Shortest(float x) { return std::strtod(fmt::format("{}", x).c_str(), nullptr); }

Writer Matrix(const std::vector<float>& values, int columns) {
  Writer rows = Writer::array();
  for (size_t i = 0; i < values.size(); i += size_t(columns)) {
    Writer row = Writer::array();
    for (size_t j = i; j < i + size_t(columns); ++j) row.push_back(Shortest(values[j]));
    rows.push_back(std::move(row));
  }
  return rows;
}

Writer ToJson(const LayerPlan& l, int head_dim) {
  Writer json = Writer::object();
  if (l.qk) json["qk"] = kQkNames[size_t(*l.qk) - size_t(QkArith::kInt8Block)];
  if (l.pv) json["pv"] = *l.pv == PvArith::kF16 ? "f16" : "int8";
  if (!l.sparq_r.empty()) json["sparq_r"] = l.sparq_r, json["sparq_k"] = l.sparq_k;
  const auto qaq = [&json](const char* sigma, const char* bits, const std::vector<QaqBounds>& bounds) {
    for (const QaqBounds& b : bounds) {
      json[sigma].push_back(Shortest(b.sigma));
      json[bits].push_back(Writer::array({b.min, b.max}));
    }
  };
  qaq("k_qaq_sigma", "k_qaq_bits", l.k_qaq), qaq("v_qaq_sigma", "v_qaq_bits", l.v_qaq);
  const auto bits = [&json](const char* key, const std::vector<bool>& two) {
    for (const bool b : two) json[key].push_back(b ? 2 : 4);
  };
  bits("k_bits", l.k_two_bit), bits("v_bits", l.v_two_bit);
  const auto matrix = [&](const char* key, const std::vector<float>& values) {
    if (!values.empty()) json[key] = Matrix(values, head_dim);
  };
  matrix("k_scale", l.k_scale), matrix("k_shift", l.k_shift);
  matrix("v_scale", l.v_scale), matrix("v_shift", l.v_shift);
  matrix("k_mean", l.k_mean), matrix("q_mean", l.q_mean);
  return json;
}

}  // namespace

Result<Plan> ReadPlan(const std::string& path, const ModelConfig& c, const std::string& fingerprint) {
  NIBBLE_ASSIGN(const Json json, Json::ReadFile(path, kLimits));
  const JsonRef root = json.root();
  NIBBLE_RETURN_IF_ERROR(root.GetInt("nibble_plan", 1, 1).status());
  NIBBLE_ASSIGN(const JsonRef model, root.Get("model"));
  Plan plan{.heads = c.heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim};
  const std::pair<const char*, int> numbers[] = {
      {"layers", c.layers}, {"heads", c.heads}, {"kv_heads", c.kv_heads}, {"head_dim", c.head_dim}};
  for (const auto& [key, want] : numbers) {
    NIBBLE_ASSIGN(const int64_t found, model.GetInt(key, 1, INT32_MAX));
    if (found != want)
      return Error(Code::kInvalidArgument, "{}.{}: the plan is for {}, this model has {}", model.Where(), key,
                   found, want);
  }
  NIBBLE_ASSIGN(const std::string_view made_for, model.GetString("fingerprint"));
  if (made_for != fingerprint)
    return Error(Code::kInvalidArgument,
                 "{}.fingerprint: the plan was made for other weights ({}; this model is {}); run nibble "
                 "calibrate for this model",
                 model.Where(), Printable(made_for), fingerprint);
  plan.fingerprint = fingerprint;
  NIBBLE_ASSIGN(const std::string_view recipe, root.GetString("recipe"));
  plan.recipe = recipe;
  NIBBLE_ASSIGN(const JsonRef layers, root.Get("layers"));
  if (!layers.is_array() || layers.size() != size_t(c.layers))
    return Error(Code::kInvalidArgument, "{}: expected {} layers, found {}", layers.Where(), c.layers,
                 layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    NIBBLE_ASSIGN(LayerPlan layer, ReadLayer(layers[i], {c.heads, c.kv_heads, c.head_dim}));
    plan.layers.push_back(std::move(layer));
  }
  return plan;
}

Status WritePlan(const std::string& path, const Plan& plan) {
  Writer layers = Writer::array();
  for (const LayerPlan& l : plan.layers) layers.push_back(ToJson(l, plan.head_dim));
  const Writer json = {{"nibble_plan", 1},
                       {"model",
                        {{"fingerprint", plan.fingerprint},
                         {"layers", plan.layers.size()},
                         {"heads", plan.heads},
                         {"kv_heads", plan.kv_heads},
                         {"head_dim", plan.head_dim}}},
                       {"recipe", plan.recipe},
                       {"layers", std::move(layers)}};
  NIBBLE_ASSIGN(FileWriter file, FileWriter::Create(path));
  NIBBLE_RETURN_IF_ERROR(file.Write(json.dump(1) + "\n"));
  return file.Commit();
}

}  // namespace nibble
