// SPDX-License-Identifier: Apache-2.0
#include "recipe/grammar.h"

#include <array>

#include "quant/kv/qaq.h"
#include "quant/kv/registry.h"

namespace nibble::recipe {
namespace {

// A parameter that is a member of the recipe, e.g. NIBBLE_PARAM("r", kInt, 1, 256, select.sparq.r).
#define NIBBLE_PARAM(name, kind, min, max, member)                                            \
  Param {                                                                                     \
    name, Param::kind, min, max, [](const AttentionRecipe& x) { return double(x.member); },   \
        [](AttentionRecipe* x, double d) { x->member = static_cast<decltype(x->member)>(d); } \
  }
#define NIBBLE_CHOICE(name, names, member)                                                           \
  Param {                                                                                            \
    name, Param::kChoice, 0, double(std::size(names) - 1),                                           \
        [](const AttentionRecipe& x) { return double(x.member); },                                   \
        [](AttentionRecipe* x, double d) { x->member = static_cast<decltype(x->member)>(d); }, names \
  }

constexpr double kMaxTokens = 1 << 20;

constexpr std::string_view kCubics[] = {"auto", "paper", "minimax", "endpoint", "base2"};
constexpr Param kSas[] = {NIBBLE_PARAM("threshold", kReal, -16, -1, arithmetic.sas.threshold),
                          NIBBLE_CHOICE("cubic", kCubics, arithmetic.sas.cubic)};
constexpr Param kSas2[] = {NIBBLE_PARAM("eps", kReal, 1e-7, 0.5, arithmetic.sas.eps),
                           NIBBLE_CHOICE("cubic", kCubics, arithmetic.sas.cubic)};

constexpr std::string_view kMeans[] = {"auto", "off", "mean", "unselected", "blocks"};
constexpr std::string_view kCopies[] = {"f16", "int8", "int4"};
constexpr std::string_view kNoYes[] = {"no", "yes"};
constexpr Param kSparq[] = {NIBBLE_PARAM("r", kInt, 1, 256, select.sparq.r),
                            NIBBLE_PARAM("k", kInt, 1, kMaxTokens, select.sparq.k),
                            NIBBLE_PARAM("local", kInt, -1, kMaxTokens, select.sparq.local),
                            NIBBLE_PARAM("sinks", kInt, 0, 64, select.sparq.sinks),
                            NIBBLE_PARAM("rho", kReal, 0, 1, select.sparq.rho),
                            NIBBLE_PARAM("eps", kReal, 0, 0.99, select.sparq.eps),
                            NIBBLE_CHOICE("mean", kMeans, select.sparq.mean),
                            NIBBLE_CHOICE("copy", kCopies, select.sparq.copy),
                            NIBBLE_CHOICE("rank-logits", kNoYes, select.sparq.rank_logits)};
constexpr Param kWindow[] = {NIBBLE_PARAM("k", kInt, 1, kMaxTokens, select.window.k),
                             NIBBLE_PARAM("sinks", kInt, 0, 64, select.window.sinks)};
constexpr Param kH2o[] = {NIBBLE_PARAM("k", kInt, 1, kMaxTokens, select.h2o.k),
                          NIBBLE_PARAM("local", kInt, -1, kMaxTokens, select.h2o.local)};

constexpr std::string_view kPicks[] = {"quantile", "cost"};
constexpr std::string_view kSources[] = {"planes", "host"};
constexpr std::string_view kRules[] = {"paper", "code"};
constexpr std::string_view kNorms[] = {"scaled", "raw"};
#define NIBBLE_QAQ_PARAMS(side)                                                                           \
  NIBBLE_PARAM("sigma", kReal, 0, 1000, side.sigma), NIBBLE_PARAM("min", kInt, 0, 8, side.min),           \
      NIBBLE_PARAM("max", kInt, 1, 8, side.max),                                                          \
      NIBBLE_PARAM("outliers", kReal, 0, kv::kQaqMaxOutlierShare, side.outliers),                         \
      NIBBLE_CHOICE("pick", kPicks, side.pick), NIBBLE_PARAM("hysteresis", kInt, 1, 64, side.hysteresis), \
      NIBBLE_PARAM("room", kReal, 0, 8, side.room), NIBBLE_CHOICE("source", kSources, side.source),       \
      NIBBLE_CHOICE("rule", kRules, side.rule)
constexpr Param kQaqK[] = {NIBBLE_QAQ_PARAMS(k_qaq), NIBBLE_PARAM("quantile", kReal, 0, 1, k_qaq.quantile),
                           NIBBLE_CHOICE("norm", kNorms, k_qaq.norm)};
constexpr Param kQaqV[] = {NIBBLE_QAQ_PARAMS(v_qaq),
                           NIBBLE_PARAM("window", kInt, 1, kv::kPageTokens, v_qaq.window),
                           NIBBLE_PARAM("decay", kReal, 0, 1, v_qaq.decay)};

constexpr Param kMixedK[] = {NIBBLE_PARAM("2bit", kReal, 0, 1, k_two_bit)};
constexpr Param kMixedV[] = {NIBBLE_PARAM("2bit", kReal, 0, 1, v_two_bit)};

// Index = enumerator.
constexpr Value kTails[] = {{"float"}, {"int8"}};
constexpr Value kQk[] = {{"f32"}, {"bf16"}, {"int8-block"}, {"int8-thread"}, {"int4-thread"}};
constexpr Value kSmooth[] = {{"none"}, {"k"}, {"qk"}};
constexpr Value kSoftmax[] = {{"exact"}, {"sas", kSas}, {"sas2", kSas2}};
constexpr Value kPv[] = {{"f32"}, {"bf16"}, {"fp8"}, {"fp8-f16acc"}, {"f16"}, {"int8"}};
constexpr Value kSelect[] = {{"all"}, {"window", kWindow}, {"sparq", kSparq}, {"h2o", kH2o}};
// K and V have the same codecs, each with settings of its own.
constexpr auto CodecValues(std::span<const Param> qaq, std::span<const Param> mixed) {
  std::array<Value, kv::kRegistry.size()> values;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i].name = kv::kRegistry[i].name;
    if (kv::kRegistry[i].id == kv::CodecId::kQaq) values[i].params = qaq;
    if (kv::kRegistry[i].id == kv::CodecId::kFlashQMixed) values[i].params = mixed;
  }
  return values;
}
constexpr auto kKeyCodecs = CodecValues(kQaqK, kMixedK);
constexpr auto kValueCodecs = CodecValues(kQaqV, kMixedV);

constexpr size_t CodecIndex(kv::CodecId id) {
  for (size_t i = 0; i < kv::kRegistry.size(); ++i)
    if (kv::kRegistry[i].id == id) return i;
  return 0;
}

#define NIBBLE_KEY(name, values, member)                                                      \
  Key {                                                                                       \
    name, values, [](const AttentionRecipe& x) { return size_t(x.member); },                  \
        [](AttentionRecipe* x, size_t i) { x->member = static_cast<decltype(x->member)>(i); } \
  }
constexpr Key kKeys[] = {
    {"k", kKeyCodecs, [](const AttentionRecipe& x) { return CodecIndex(x.k); },
     [](AttentionRecipe* x, size_t i) { x->k = kv::kRegistry[i].id; }},
    {"v", kValueCodecs, [](const AttentionRecipe& x) { return CodecIndex(x.v); },
     [](AttentionRecipe* x, size_t i) { x->v = kv::kRegistry[i].id; }},
    NIBBLE_KEY("tail", kTails, tail),
    NIBBLE_KEY("qk", kQk, arithmetic.qk),
    NIBBLE_KEY("smooth", kSmooth, arithmetic.smooth),
    NIBBLE_KEY("softmax", kSoftmax, arithmetic.softmax),
    NIBBLE_KEY("pv", kPv, arithmetic.pv),
    NIBBLE_KEY("select", kSelect, select.kind),
};

constexpr Preset kPresets[] = {
    {"kv16", "k=f16 v=f16"},
    {"kv8", "k=int8-token v=int8-token"},
    {"qserve", "k=int4-token v=int4-token"},
    {"flashq4", "k=flashq4 v=flashq4"},
    {"flashq2", "k=flashq2 v=flashq2"},
    {"kivi4", "k=int4-channel v=int4-group"},
    {"kivi2", "k=int2-channel v=int2-group"},
    {"fp8", "k=fp8 v=fp8"},
    {"mxfp4", "k=mxfp4 v=mxfp4"},
    {"nvfp4", "k=nvfp4 v=nvfp4"},
    {"flashq3", "k=flashq3 v=flashq3"},
    {"flashq4-search", "k=flashq4-search v=flashq4-search"},
    {"flashq2-search", "k=flashq2-search v=flashq2-search"},
    {"flashq2-outlier", "k=flashq2-outlier v=flashq2-outlier"},
    {"turboquant4", "k=turboquant4 v=turboquant4"},
    {"turboquant3", "k=turboquant3 v=turboquant3"},
    {"turboquant2", "k=turboquant2 v=turboquant2"},
    {"gear4", "k=gear4-channel v=gear4-group"},
    {"gear2", "k=gear2-channel v=gear2-group"},
    {"gear-l4", "k=gear-l4-channel v=gear-l4-group"},
    {"gear-l2", "k=gear-l2-channel v=gear-l2-group"},
    {"qaq", "k=qaq v=qaq"},
    {"turbo", "k=flashq4 v=flashq4 tail=int8 qk=int8-block softmax=sas pv=int8", "softmax"},
    {"turbo-mixed", "k=flashq-mixed v=flashq-mixed tail=int8 qk=int8-block softmax=sas pv=int8", "softmax"},
    {"sas", "softmax=sas", "softmax"},
    {"sas2", "softmax=sas2", "softmax"},
    {"sage1", "qk=int8-block smooth=k pv=f16"},
    {"sage2-8b", "qk=int8-thread smooth=k pv=fp8"},
    {"sage2-4b", "qk=int4-thread smooth=qk pv=fp8"},
    {"sage2pp-8b", "qk=int8-thread smooth=k pv=fp8-f16acc"},
    {"sparq", "select=sparq", "select"},
    {"window", "select=window", "select"},
    {"h2o", "select=h2o", "select"},
};

Status Refuse(std::string_view what, std::string_view why, std::string_view instead) {
  return Error(Code::kUnsupported, "recipe: {}: {}; {}", what, why, instead);
}

Status CheckTail(const AttentionRecipe& r) {
  const kv::CodecInfo &k = kv::Get(r.k), &v = kv::Get(r.v);
  if (r.tail == kv::Tail::kFloat || (k.seal_int8 != nullptr && v.seal_int8 != nullptr)) return {};
  return Refuse(fmt::format("tail=int8 needs k and v of the flashq family, not k={} v={}", k.name, v.name),
                "a page is sealed from the tail's codes", "use k=flashq4 v=flashq4 or tail=float");
}

Status CheckQaq(const AttentionRecipe& r) {
  const auto check = [](std::string_view key, const kv::QaqParams& p) -> Status {
    if (p.min > p.max)
      return Error(Code::kInvalidArgument, "recipe: {}=qaq: min={} is more than max={}; use max={} or more",
                   key, p.min, p.max, p.min);
    if (p.pick == kv::QaqPick::kCost && p.outliers > 0)
      return Error(Code::kInvalidArgument,
                   "recipe: {}=qaq: pick=cost counts outliers by itself; leave out outliers={} or use "
                   "pick=quantile",
                   key, p.outliers);
    return {};
  };
  const bool k = r.k == kv::CodecId::kQaq, v = r.v == kv::CodecId::kQaq;
  if (k) NIBBLE_RETURN_IF_ERROR(check("k", r.k_qaq));
  if (v) NIBBLE_RETURN_IF_ERROR(check("v", r.v_qaq));
  if (!k && !v) return {};
  if (r.select.kind != SelectKind::kAll)
    return Refuse("qaq with a token selection", "its widths follow the attention of every token",
                  "use select=all, or another codec");
  return {};
}

}  // namespace

std::span<const Key> Keys() { return kKeys; }
std::span<const Preset> Presets() { return kPresets; }

const Key* FindKey(std::string_view name) {
  for (const Key& key : kKeys)
    if (key.name == name) return &key;
  return nullptr;
}

Status CheckSelection(const AttentionRecipe& r) {
  const SparqParams& s = r.select.sparq;
  const auto local = [&s](int k) { return s.local < 0 ? k / 4 : s.local; };
  if (r.select.kind == SelectKind::kSparq && local(s.k) + s.sinks > s.k) {
    int least = s.k;  // local may follow k
    while (local(least) + s.sinks > least) ++least;
    return Refuse(
        fmt::format("select=sparq: k={} is less than local={} and sinks={}", s.k, local(s.k), s.sinks),
        "they are part of k", fmt::format("use k={} or more", least));
  }
  if (r.select.kind == SelectKind::kWindow && r.select.window.sinks >= r.select.window.k)
    return Refuse(fmt::format("select=window: k={} leaves nothing beside sinks={}", r.select.window.k,
                              r.select.window.sinks),
                  "sinks are part of k", fmt::format("use k={} or more", r.select.window.sinks + 1));
  if (r.select.kind == SelectKind::kH2o && r.select.h2o.local > r.select.h2o.k)
    return Refuse(fmt::format("select=h2o: k={} is less than local={}", r.select.h2o.k, r.select.h2o.local),
                  "local tokens are part of k", fmt::format("use k={} or more", r.select.h2o.local));
  return {};
}

Status CheckCombination(const AttentionRecipe& r, DType dtype) {
  const Arithmetic& a = r.arithmetic;
  const bool bf16 = dtype == DType::kBF16;
  const std::string_view names[] = {"f32", "bf16"};
  const auto arithmetic = [&](std::string_view key, bool is_float, bool is_bf16) -> Status {
    if (!is_float || is_bf16 == bf16) return {};
    return Error(Code::kUnsupported, "recipe: {}={} cannot run in {} arithmetic; use {}={} or --dtype {}",
                 key, names[is_bf16], names[bf16], key, names[bf16], names[is_bf16]);
  };
  NIBBLE_RETURN_IF_ERROR(arithmetic("qk", !IsInteger(a.qk), a.qk == QkArith::kBF16));
  NIBBLE_RETURN_IF_ERROR(arithmetic("pv", IsFloat(a.pv), a.pv == PvArith::kBF16));
  if (a.smooth != Smooth::kNone && !IsInteger(a.qk))
    return Refuse("smooth needs an integer qk", "in floats it changes nothing but rounding",
                  "use qk=int8-thread or smooth=none");
  NIBBLE_RETURN_IF_ERROR(CheckSelection(r));
  NIBBLE_RETURN_IF_ERROR(CheckTail(r));
  NIBBLE_RETURN_IF_ERROR(CheckQaq(r));
  return {};
}

}  // namespace nibble::recipe
