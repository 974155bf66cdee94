// SPDX-License-Identifier: Apache-2.0
#include "recipe/two_bit_heads.h"

#include <algorithm>
#include <cmath>

#include "quant/kv/head_mix.h"

namespace nibble {
namespace {

struct Side {
  const char *key, *name;
  bool is_v;
};
constexpr Side kSides[] = {{"k", "K", false}, {"v", "V", true}};

const kv::CodecInfo& CodecOf(const AttentionRecipe& r, const Side& side) {
  return kv::Get(side.is_v ? r.v : r.k);
}
bool Mixes(const AttentionRecipe& r, const Side& side) {
  const kv::CodecInfo& codec = CodecOf(r, side);
  return codec.two_bit != codec.id;
}
float ShareOf(const AttentionRecipe& r, const Side& side) { return side.is_v ? r.v_two_bit : r.k_two_bit; }
const std::vector<bool>& PlannedOf(const LayerPlan& layer, const Side& side) {
  return side.is_v ? layer.v_two_bit : layer.k_two_bit;
}

}  // namespace

int TwoBitHeads(const AttentionRecipe& r, bool is_v, int kv_heads) {
  const Side& side = kSides[is_v ? 1 : 0];
  return Mixes(r, side) ? kv::TwoBitHeads(ShareOf(r, side), kv_heads) : 0;
}

Status CheckTwoBitHeads(const AttentionRecipe& r, const Plan& plan) {
  for (const Side& side : kSides) {
    if (!Mixes(r, side)) continue;
    const int wanted = TwoBitHeads(r, side.is_v, plan.kv_heads);
    for (size_t i = 0; i < plan.layers.size(); ++i) {
      const std::vector<bool>& planned = PlannedOf(plan.layers[i], side);
      const auto found = std::count(planned.begin(), planned.end(), true);
      if (planned.empty() || found == wanted) continue;
      const char* name = CodecOf(r, side).name;
      return Error(
          Code::kInvalidArgument,
          "plan: layer {} gives 2 bits to {} of {} {} heads, {}={}:2bit={} to {}; use {}={}:2bit={} or "
          "run nibble calibrate for this recipe",
          i, found, plan.kv_heads, side.name, side.key, name, ShareOf(r, side), wanted, side.key, name,
          float(found) / float(plan.kv_heads));
    }
  }
  return {};
}

std::vector<std::string> ExplainTwoBitHeads(const AttentionRecipe& r, int kv_heads, const Plan* plan) {
  std::vector<std::string> lines;
  for (const Side& side : kSides) {
    if (!Mixes(r, side)) continue;
    const int two_bit = TwoBitHeads(r, side.is_v, kv_heads);
    const bool open = two_bit > 0 && two_bit < kv_heads;
    std::vector<std::string> layers;
    for (size_t i = 0; open && plan != nullptr && i < plan->layers.size(); ++i) {
      const std::vector<bool>& planned = PlannedOf(plan->layers[i], side);
      std::vector<size_t> heads;
      for (size_t h = 0; h < planned.size(); ++h)
        if (planned[h]) heads.push_back(h);
      if (!heads.empty())
        layers.push_back(
            fmt::format("layer {} {} heads in 2 bits: {}", i, side.name, fmt::join(heads, ", ")));
    }
    const bool all = plan != nullptr && layers.size() == plan->layers.size();
    const char* chosen = !open            ? ""
                         : layers.empty() ? "; chosen by the first page of each sequence"
                         : all
                             ? "; chosen by the plan"
                             : "; chosen by the plan, where it is silent by the first page of each sequence";
    lines.push_back(fmt::format("{} heads: {} of {} a layer in 2 bits ({}), {} in 4{}", side.name, two_bit,
                                kv_heads, kv::Get(CodecOf(r, side).two_bit).name, kv_heads - two_bit,
                                chosen));
    lines.insert(lines.end(), layers.begin(), layers.end());
  }
  return lines;
}

std::vector<std::string> TwoBitNotes(const AttentionRecipe& r, int kv_heads) {
  std::vector<std::string> notes;
  for (const Side& side : kSides) {
    if (!Mixes(r, side)) continue;
    const double share = double(ShareOf(r, side));
    const int two_bit = TwoBitHeads(r, side.is_v, kv_heads);
    if (std::abs(share * kv_heads - two_bit) > 1e-3)
      notes.push_back(fmt::format("{}={}:2bit={:g} of {} KV head{} is no whole number: {} of them {} 2 bits",
                                  side.key, CodecOf(r, side).name, share, kv_heads, kv_heads == 1 ? "" : "s",
                                  two_bit, two_bit == 1 ? "has" : "have"));
  }
  return notes;
}

}  // namespace nibble
