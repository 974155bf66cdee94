// SPDX-License-Identifier: Apache-2.0
// Floor 3. The text form of a recipe. Every value is a row of a table; values of the design that this build
// lacks are listed too, so that their names are told from misspelt ones.
#include "recipe/attention_recipe.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

using Names = std::span<const std::string_view>;

// Index = enumerator.
constexpr std::string_view kArithNames[] = {"f32", "bf16"};
constexpr std::string_view kSmoothNames[] = {"none"};
constexpr std::string_view kSoftmaxNames[] = {"exact"};
constexpr std::string_view kSelectNames[] = {"all"};

constexpr auto kCodecNames = [] {
  std::array<std::string_view, kv::kRegistry.size()> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = kv::kRegistry[i].name;
  return names;
}();

// Known from the design, not in this build.
constexpr std::string_view kAbsentCodecs[] = {"fp8",  "flashq-mixed", "qaq",
                                              "gear", "turboquant4",  "turboquant3"};
constexpr std::string_view kAbsentQk[] = {"int8-block", "int8-thread", "int4-thread"};
constexpr std::string_view kAbsentSmooth[] = {"k", "qk"};
constexpr std::string_view kAbsentSoftmax[] = {"sas"};
constexpr std::string_view kAbsentPv[] = {"fp8", "fp8-f16acc", "int8"};
constexpr std::string_view kAbsentSelect[] = {"window", "sparq", "h2o"};
constexpr std::string_view kAbsentPresets[] = {"sage1", "sage2-8b", "sage2-4b", "turbo",       "turbo-mixed",
                                               "sparq", "qaq",      "gear",     "turboquant4", "turboquant3"};

struct Key {
  std::string_view name;
  Names values, absent;
};
enum KeyIndex : size_t { kKeyK, kKeyV, kKeyQk, kKeySmooth, kKeySoftmax, kKeyPv, kKeySelect, kKeys };
constexpr Key kKeyTable[kKeys] = {
    {"k", kCodecNames, kAbsentCodecs},
    {"v", kCodecNames, kAbsentCodecs},
    {"qk", kArithNames, kAbsentQk},
    {"smooth", kSmoothNames, kAbsentSmooth},
    {"softmax", kSoftmaxNames, kAbsentSoftmax},
    {"pv", kArithNames, kAbsentPv},
    {"select", kSelectNames, kAbsentSelect},
};
constexpr auto kKeyNames = [] {
  std::array<std::string_view, kKeys> names;
  for (size_t i = 0; i < kKeys; ++i) names[i] = kKeyTable[i].name;
  return names;
}();

// "exact" takes its codec from the arithmetic.
struct Preset {
  std::string_view name;
  kv::CodecId k, v;
};
constexpr Preset kPresets[] = {{"kv16", kv::CodecId::kF16, kv::CodecId::kF16},
                               {"kv8", kv::CodecId::kInt8Token, kv::CodecId::kInt8Token},
                               {"qserve", kv::CodecId::kInt4Token, kv::CodecId::kInt4Token},
                               {"flashq4", kv::CodecId::kFlashQ4, kv::CodecId::kFlashQ4},
                               {"flashq2", kv::CodecId::kFlashQ2, kv::CodecId::kFlashQ2},
                               {"kivi4", kv::CodecId::kInt4Channel, kv::CodecId::kInt4Group},
                               {"kivi2", kv::CodecId::kInt2Channel, kv::CodecId::kInt2Group}};
constexpr auto kPresetNames = [] {
  std::array<std::string_view, std::size(kPresets) + 1> names{"exact"};
  for (size_t i = 0; i < std::size(kPresets); ++i) names[i + 1] = kPresets[i].name;
  return names;
}();

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

bool Contains(Names names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The index of `value` among the key's values, or why there is none. "sparq:r=32" is the value sparq.
Result<size_t> FindValue(const Key& key, std::string_view value) {
  const auto found = std::find(key.values.begin(), key.values.end(), value);
  if (found != key.values.end()) return size_t(found - key.values.begin());
  const std::string_view head = value.substr(0, value.find(':'));
  if (Contains(key.values, head))
    return Error(Code::kInvalidArgument, "recipe: {}={}: {} takes no parameters", key.name, Quote(value),
                 head);
  if (Contains(key.absent, head))
    return Error(Code::kUnsupported, "recipe: {}={} is known but not in this build, which has {}", key.name,
                 Quote(value), Join(key.values));
  return Error(Code::kInvalidArgument, "recipe: {}={} is unknown{}; {} may be {}", key.name, Quote(value),
               Suggest(head, key.values), key.name, Join(key.values));
}

AttentionRecipe WithCodecs(kv::CodecId k, kv::CodecId v, DType arithmetic) {
  AttentionRecipe r;
  r.k = k;
  r.v = v;
  r.qk = arithmetic == DType::kBF16 ? QkArith::kBF16 : QkArith::kF32;
  r.pv = arithmetic == DType::kBF16 ? PvArith::kBF16 : PvArith::kF32;
  return r;
}

AttentionRecipe Exact(DType arithmetic) {
  const kv::CodecId codec = arithmetic == DType::kBF16 ? kv::CodecId::kBF16 : kv::CodecId::kF32;
  return WithCodecs(codec, codec, arithmetic);
}

Result<AttentionRecipe> FindPreset(std::string_view name, DType arithmetic) {
  if (name == "exact") return Exact(arithmetic);
  for (const Preset& p : kPresets)
    if (name == p.name) return WithCodecs(p.k, p.v, arithmetic);
  // "qserve+sparq" joins presets. Each part must be known; then the whole waits for a later build.
  for (std::string_view rest = name;;) {
    const size_t plus = rest.find('+');
    const std::string_view part = rest.substr(0, plus);
    if (!Contains(kPresetNames, part) && !Contains(kAbsentPresets, part.substr(0, part.find(':'))))
      return Error(Code::kInvalidArgument, "recipe: {} is neither a preset nor key=value{}; presets are {}",
                   Quote(part), Suggest(part, kPresetNames), Join(kPresetNames));
    if (plus == rest.npos) break;
    rest.remove_prefix(plus + 1);
  }
  return Error(Code::kUnsupported, "recipe: preset {} is known but not in this build, which has {}",
               Quote(name), Join(kPresetNames));
}

void SetValue(size_t key, size_t value, AttentionRecipe* r) {
  switch (key) {
    case kKeyK:
      r->k = kv::kRegistry[value].id;
      break;
    case kKeyV:
      r->v = kv::kRegistry[value].id;
      break;
    case kKeyQk:
      r->qk = QkArith(value);
      break;
    case kKeySmooth:
      r->smooth = Smooth(value);
      break;
    case kKeySoftmax:
      r->softmax = SoftmaxKind(value);
      break;
    case kKeyPv:
      r->pv = PvArith(value);
      break;
    case kKeySelect:
      r->select = SelectKind(value);
      break;
    default:
      NIBBLE_CHECK(false, "a key without a field");
  }
}

// Attention runs in the engine's one arithmetic, so qk and pv can only repeat it.
Status CheckArithmetic(const AttentionRecipe& r, DType arithmetic) {
  const std::string_view want = kArithNames[arithmetic == DType::kBF16];
  const std::pair<std::string_view, size_t> parts[] = {{"qk", size_t(r.qk)}, {"pv", size_t(r.pv)}};
  for (const auto& [key, value] : parts)
    if (kArithNames[value] != want)
      return Error(Code::kUnsupported, "recipe: {}={} cannot run in {} arithmetic; use {}={} or --dtype {}",
                   key, kArithNames[value], want, key, want, kArithNames[value]);
  return {};
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

}  // namespace

std::span<const std::string_view> PresetNames() { return kPresetNames; }

Result<AttentionRecipe> ParseRecipe(std::string_view text, DType arithmetic) {
  NIBBLE_CHECK(arithmetic == DType::kF32 || arithmetic == DType::kBF16, "arithmetic is f32 or bf16");
  const std::vector<std::string_view> items = SplitItems(text);
  if (items.empty())
    return Error(Code::kInvalidArgument, "recipe: empty; give a preset ({}) or key=value items",
                 Join(kPresetNames));
  AttentionRecipe r = Exact(arithmetic);
  std::array<bool, kKeys> given{};
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string_view item = items[i];
    const size_t equals = item.find('=');
    // A preset's own parameters may hold '=': "sparq:r=32".
    if (equals == item.npos || item.find(':') < equals) {
      NIBBLE_ASSIGN(r, FindPreset(item, arithmetic));
      if (i != 0)
        return Error(Code::kInvalidArgument, "recipe: preset {} must stand first, and once", Quote(item));
      continue;
    }
    const std::string_view name = item.substr(0, equals);
    const auto found = std::find(kKeyNames.begin(), kKeyNames.end(), name);
    if (found == kKeyNames.end())
      return Error(Code::kInvalidArgument, "recipe: key {} is unknown{}; keys are {}", Quote(name),
                   Suggest(name, kKeyNames), Join(kKeyNames));
    const size_t key = size_t(found - kKeyNames.begin());
    if (given[key]) return Error(Code::kInvalidArgument, "recipe: key '{}' is given twice", name);
    given[key] = true;
    NIBBLE_ASSIGN(const size_t value, FindValue(kKeyTable[key], item.substr(equals + 1)));
    SetValue(key, value, &r);
  }
  NIBBLE_RETURN_IF_ERROR(CheckArithmetic(r, arithmetic));
  return r;
}

std::string ToString(const AttentionRecipe& r) {
  return fmt::format("k={} v={} qk={} smooth={} softmax={} pv={} select={}", kv::Get(r.k).name,
                     kv::Get(r.v).name, kArithNames[size_t(r.qk)], kSmoothNames[size_t(r.smooth)],
                     kSoftmaxNames[size_t(r.softmax)], kArithNames[size_t(r.pv)],
                     kSelectNames[size_t(r.select)]);
}

}  // namespace nibble
