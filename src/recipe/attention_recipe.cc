// SPDX-License-Identifier: Apache-2.0
// Floor 3. The text form of a recipe: what grammar.cc lists, read and printed.
#include "recipe/attention_recipe.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "quant/kv/registry.h"
#include "recipe/grammar.h"

namespace nibble {
namespace {

using recipe::Key;
using recipe::Names;
using recipe::Param;
using recipe::Preset;
using recipe::Value;

template <class Row>
std::vector<std::string_view> NamesOf(std::span<const Row> rows) {
  std::vector<std::string_view> names;
  for (const Row& row : rows) names.push_back(row.name);
  return names;
}

std::string Join(Names names) { return fmt::format("{}", fmt::join(names, ", ")); }

// What the user wrote, fit for one line of a message.
std::string Quote(std::string_view text) {
  constexpr size_t kMost = 40;
  std::string s = "'";
  for (char c : text.substr(0, kMost)) {
    if (c < ' ' || c == '\x7f') c = '?';
    s += c;
  }
  return s + (text.size() > kMost ? "...'" : "'");
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// "; did you mean X?" for the nearest of the names when it is near, else nothing.
std::string Suggest(std::string_view text, Names names) {
  constexpr size_t kLongest = 40;
  if (text.size() > kLongest) return "";
  std::string_view best;
  size_t least = std::max<size_t>(2, text.size() / 3) + 1;
  for (std::string_view name : names) {
    const size_t d = EditDistance(text, name);
    if (d < least && d < name.size()) {
      least = d;
      best = name;
    }
  }
  return best.empty() ? "" : fmt::format("; did you mean '{}'?", best);
}

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

std::vector<std::string_view> SplitItems(std::string_view text) {
  std::vector<std::string_view> items;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && !IsSpace(text[end])) ++end;
    if (end > at) items.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return items;
}

AttentionRecipe Exact(DType arithmetic) {
  const bool bf16 = arithmetic == DType::kBF16;
  AttentionRecipe r;
  r.k = r.v = bf16 ? kv::CodecId::kBF16 : kv::CodecId::kF32;
  r.arithmetic.qk = bf16 ? QkArith::kBF16 : QkArith::kF32;
  r.arithmetic.pv = bf16 ? PvArith::kBF16 : PvArith::kF32;
  return r;
}

Status SetNumber(const Param& p, std::string_view where, std::string_view text, AttentionRecipe* r) {
  double x = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
  const bool read = error == std::errc() && end == text.data() + text.size() && std::isfinite(x);
  if (!read || (p.kind == Param::kInt && x != std::floor(x)))
    return Error(Code::kInvalidArgument, "recipe: {}: {}={} is not {}", where, p.name, Quote(text),
                 p.kind == Param::kInt ? "a whole number" : "a number");
  if (x < p.min || x > p.max)
    return Error(Code::kInvalidArgument, "recipe: {}: {}={} is out of range {} to {}", where, p.name, text,
                 p.min, p.max);
  p.set(r, x);
  return {};
}

// "r=32,k=128" of a value.
Status SetParams(const Key& key, const Value& value, std::string_view text, AttentionRecipe* r) {
  const std::string where = fmt::format("{}={}", key.name, value.name);
  if (value.params.empty())
    return Error(Code::kInvalidArgument, "recipe: {}={}:{}: {} takes no parameters", key.name, value.name,
                 Quote(text), value.name);
  const std::vector<std::string_view> names = NamesOf(value.params);
  std::vector<bool> given(names.size());
  while (true) {
    const std::string_view item = text.substr(0, text.find(','));
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    const auto found = std::find(names.begin(), names.end(), name);
    if (equals == item.npos || found == names.end())
      return Error(Code::kInvalidArgument, "recipe: {} has no parameter {}{}; it takes {}", where,
                   Quote(item), Suggest(name, names), Join(names));
    const auto index = size_t(found - names.begin());
    if (given[index]) return Error(Code::kInvalidArgument, "recipe: {}: {} is given twice", where, name);
    given[index] = true;
    const Param& p = value.params[index];
    const std::string_view number = item.substr(equals + 1);
    if (p.kind == Param::kChoice) {
      const auto choice = std::find(p.choices.begin(), p.choices.end(), number);
      if (choice == p.choices.end())
        return Error(Code::kInvalidArgument, "recipe: {}: {}={} is unknown{}; it may be {}", where, name,
                     Quote(number), Suggest(number, p.choices), Join(p.choices));
      p.set(r, double(choice - p.choices.begin()));
    } else {
      NIBBLE_RETURN_IF_ERROR(SetNumber(p, where, number, r));
    }
    if (item.size() == text.size()) return {};
    text.remove_prefix(item.size() + 1);
  }
}

// "sparq:r=32" as the value of a key. Parameters that are not given take their defaults.
Status SetValue(const Key& key, std::string_view text, AttentionRecipe* r) {
  const size_t colon = text.find(':');
  const std::string_view head = text.substr(0, colon);
  const std::vector<std::string_view> names = NamesOf(key.values);
  const auto found = std::find(names.begin(), names.end(), head);
  if (found == names.end()) {
    return Error(Code::kInvalidArgument, "recipe: {}={} is unknown{}; {} may be {}", key.name, Quote(text),
                 Suggest(head, names), key.name, Join(names));
  }
  const Value& value = key.values[size_t(found - names.begin())];
  key.set(r, size_t(found - names.begin()));
  const AttentionRecipe defaults;
  for (const Param& p : value.params) p.set(r, p.get(defaults));
  return colon == text.npos ? Status{} : SetParams(key, value, text.substr(colon + 1), r);
}

struct Given {  // which keys the joined presets set, and to what
  std::vector<std::pair<const Key*, std::string_view>> items;
};

Status ApplyPreset(const Preset& preset, std::string_view params, Given* given, AttentionRecipe* r) {
  for (const std::string_view item : SplitItems(preset.items)) {
    const size_t equals = item.find('=');
    const Key* key = recipe::FindKey(item.substr(0, equals));
    NIBBLE_CHECK(key != nullptr, "a preset with an unknown key");
    const std::string_view value = item.substr(equals + 1);
    for (const auto& [other, text] : given->items)
      if (other == key && text != value)
        return Error(Code::kInvalidArgument, "recipe: preset '{}' sets {}={}, another one {}={}", preset.name,
                     key->name, value, key->name, text);
    given->items.emplace_back(key, value);
    const bool own = !params.empty() && key->name == preset.key;
    NIBBLE_RETURN_IF_ERROR(SetValue(*key, own ? fmt::format("{}:{}", value, params) : std::string(value), r));
  }
  return {};
}

// "qserve+sparq:r=32": presets joined.
Status ApplyPresets(std::string_view text, AttentionRecipe* r) {
  Given given;
  for (std::string_view rest = text;;) {
    const size_t plus = rest.find('+');
    const std::string_view part = rest.substr(0, plus), name = part.substr(0, part.find(':'));
    const std::string_view params = part.size() > name.size() ? part.substr(name.size() + 1) : "";
    const auto presets = recipe::Presets();
    const auto found =
        std::find_if(presets.begin(), presets.end(), [&](const Preset& p) { return p.name == name; });
    if (found == presets.end() && name != "exact")
      return Error(Code::kInvalidArgument, "recipe: {} is neither a preset nor key=value{}; presets are {}",
                   Quote(part), Suggest(name, PresetNames()), Join(PresetNames()));
    if (part.size() > name.size() && (found == presets.end() || found->key.empty() || params.empty()))
      return Error(Code::kInvalidArgument, "recipe: preset {}: '{}' takes no such parameters", Quote(part),
                   name);
    if (found != presets.end()) NIBBLE_RETURN_IF_ERROR(ApplyPreset(*found, params, &given, r));
    if (plus == rest.npos) return {};
    rest.remove_prefix(plus + 1);
  }
}

}  // namespace

std::span<const std::string_view> PresetNames() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> all{"exact"};
    for (const Preset& p : recipe::Presets()) all.push_back(p.name);
    return all;
  }();
  return names;
}

Result<AttentionRecipe> ParseRecipe(std::string_view text, DType arithmetic) {
  NIBBLE_CHECK(arithmetic == DType::kF32 || arithmetic == DType::kBF16, "arithmetic is f32 or bf16");
  const std::vector<std::string_view> items = SplitItems(text);
  if (items.empty())
    return Error(Code::kInvalidArgument, "recipe: empty; give a preset ({}) or key=value items",
                 Join(PresetNames()));
  AttentionRecipe r = Exact(arithmetic);
  const std::vector<std::string_view> key_names = NamesOf(recipe::Keys());
  std::vector<bool> given(key_names.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string_view item = items[i];
    const size_t equals = item.find('=');
    // A preset's own parameters may hold '=': "sparq:r=32".
    if (equals == item.npos || item.find(':') < equals) {
      NIBBLE_RETURN_IF_ERROR(ApplyPresets(item, &r));
      if (i != 0)
        return Error(Code::kInvalidArgument, "recipe: preset {} must stand first, and once", Quote(item));
      continue;
    }
    const std::string_view name = item.substr(0, equals);
    const Key* key = recipe::FindKey(name);
    if (key == nullptr)
      return Error(Code::kInvalidArgument, "recipe: key {} is unknown{}; keys are {}", Quote(name),
                   Suggest(name, key_names), Join(key_names));
    const auto index = size_t(key - recipe::Keys().data());
    if (given[index]) return Error(Code::kInvalidArgument, "recipe: key '{}' is given twice", name);
    given[index] = true;
    NIBBLE_RETURN_IF_ERROR(SetValue(*key, item.substr(equals + 1), &r));
  }
  NIBBLE_RETURN_IF_ERROR(recipe::CheckCombination(r, arithmetic));
  return r;
}

Status CheckHeadSize(const AttentionRecipe& r, int head_dim) {
  if (r.select.kind == SelectKind::kSparq && r.select.sparq.r > head_dim)
    return Error(Code::kInvalidArgument,
                 "recipe: select=sparq: r={} exceeds the model's head size; use r={} or less",
                 r.select.sparq.r, head_dim);
  const bool plain = r.k == kv::CodecId::kF32 && r.v == kv::CodecId::kF32 && !IsInteger(r.arithmetic.qk) &&
                     IsFloat(r.arithmetic.pv) && r.select.kind == SelectKind::kAll;
  if (head_dim % 8 != 0 && !plain)
    return Error(
        Code::kUnsupported,
        "recipe: heads of {} channels, no multiple of 8, are served in full precision only; use exact "
        "with --dtype f32",
        head_dim);
  return {};
}

std::string ToString(const AttentionRecipe& r) {
  const AttentionRecipe defaults;
  std::string text;
  for (const Key& key : recipe::Keys()) {
    const Value& value = key.values[key.get(r)];
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key.name, value.name);
    char separator = ':';
    for (const Param& p : value.params) {
      const double x = p.get(r);
      if (x == p.get(defaults)) continue;
      text += std::exchange(separator, ',');
      text += p.kind == Param::kChoice ? fmt::format("{}={}", p.name, p.choices[size_t(x)])
              : p.kind == Param::kInt  ? fmt::format("{}={}", p.name, int64_t(x))
                                       : fmt::format("{}={}", p.name, float(x));
    }
  }
  return text;
}

}  // namespace nibble
