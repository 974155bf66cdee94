// SPDX-License-Identifier: Apache-2.0
// Recipes: every value prints and parses back, presets and overrides, and a table of what is refused with the
// reason. The round trip must be seen to fail on a form that forgets a key.
#include <gtest/gtest.h>

#include <set>

#include "quant/kv/registry.h"
#include "recipe/attention_recipe.h"
#include "recipe/two_bit_heads.h"

namespace nibble {
namespace {

AttentionRecipe Must(std::string_view text, DType arithmetic = DType::kF32) {
  auto r = ParseRecipe(text, arithmetic);
  EXPECT_TRUE(r.ok()) << r.status().message();
  return r.ok() ? *r : AttentionRecipe{};
}

// Every recipe of this build.
std::vector<AttentionRecipe> AllRecipes(DType arithmetic) {
  std::vector<AttentionRecipe> all;
  for (const auto& k : kv::kRegistry)
    for (const auto& v : kv::kRegistry) {
      AttentionRecipe r = Must("exact", arithmetic);
      r.k = k.id;
      r.v = v.id;
      all.push_back(r);
    }
  return all;
}

// How many recipes do not survive `print` and ParseRecipe.
int CountLost(std::string (*print)(const AttentionRecipe&)) {
  int lost = 0;
  for (DType arithmetic : {DType::kF32, DType::kBF16})
    for (const AttentionRecipe& r : AllRecipes(arithmetic)) {
      const auto back = ParseRecipe(print(r), arithmetic);
      lost += !back.ok() || !(*back == r);
    }
  return lost;
}

TEST(RecipeTest, PrintsAndParsesBack) {
  EXPECT_EQ(CountLost(&ToString), 0);
  std::set<std::string> texts;
  for (DType arithmetic : {DType::kF32, DType::kBF16})
    for (const AttentionRecipe& r : AllRecipes(arithmetic)) texts.insert(ToString(r));
  EXPECT_EQ(texts.size(), 2 * kv::kRegistry.size() * kv::kRegistry.size())
      << "different recipes print differently";
}

TEST(RecipeTest, AForgottenKeyIsSeen) {
  const auto without_v = [](const AttentionRecipe& r) {
    std::string s = ToString(r);
    s.erase(s.find("v="), s.find(" qk=") - s.find("v="));
    return s;
  };
  EXPECT_GT(CountLost(without_v), 0);
}

TEST(RecipeTest, CanonicalForm) {
  EXPECT_EQ(ToString(Must("exact")),
            "k=f32 v=f32 tail=float qk=f32 smooth=none softmax=exact pv=f32 select=all");
  EXPECT_EQ(ToString(Must("exact", DType::kBF16)),
            "k=bf16 v=bf16 tail=float qk=bf16 smooth=none softmax=exact pv=bf16 select=all");
  EXPECT_EQ(ToString(Must("qserve")),
            "k=int4-token v=int4-token tail=float qk=f32 smooth=none softmax=exact pv=f32 select=all");
}

TEST(RecipeTest, PresetsAndOverrides) {
  EXPECT_EQ(Must("kv16"), Must("k=f16 v=f16"));
  EXPECT_EQ(Must("kv8"), Must("k=int8-token v=int8-token"));
  EXPECT_EQ(Must("qserve"), Must("v=int4-token k=int4-token"));
  EXPECT_EQ(Must("flashq2"), Must("k=flashq2 v=flashq2"));
  EXPECT_EQ(Must("kivi4"), Must("k=int4-channel v=int4-group"));
  EXPECT_EQ(Must("kivi2"), Must("k=int2-channel v=int2-group"));
  EXPECT_EQ(Must("turbo").tail, kv::Tail::kInt8);
  EXPECT_EQ(Must("turbo").k, kv::CodecId::kFlashQ4);
  EXPECT_EQ(Must("qserve v=int8-token"), Must("k=int4-token v=int8-token"));
  EXPECT_EQ(Must("k=int4-token"), Must("exact k=int4-token")) << "items alone start from exact";
  EXPECT_EQ(Must("k=int4-token").v, kv::CodecId::kF32);
  EXPECT_EQ(Must("k=int4-token", DType::kBF16).v, kv::CodecId::kBF16);
  EXPECT_EQ(Must(" \t qserve\n v=f16 "), Must("qserve v=f16")) << "any white space separates";
  EXPECT_EQ(Must("kv8 qk=bf16 pv=bf16", DType::kBF16), Must("kv8", DType::kBF16));
  EXPECT_FALSE(Must("kv8") == Must("kv8", DType::kBF16)) << "the arithmetic is part of the value";
}

TEST(RecipeTest, ParametersAndJoinedPresets) {
  const AttentionRecipe r = Must("qserve+sparq:r=16,copy=int4");
  EXPECT_EQ(r.k, kv::CodecId::kInt4Token);
  EXPECT_EQ(r.select.kind, SelectKind::kSparq);
  EXPECT_EQ(r.select.sparq.r, 16);
  EXPECT_EQ(r.select.sparq.k, 128) << "what is not given keeps its default";
  EXPECT_EQ(r.select.sparq.copy, KeyCopy::kInt4);
  EXPECT_EQ(ToString(r),
            "k=int4-token v=int4-token tail=float qk=f32 smooth=none softmax=exact pv=f32 "
            "select=sparq:r=16,copy=int4");
  EXPECT_EQ(Must("sparq:r=16 select=sparq:k=64").select.sparq.r, 32) << "an item replaces the value whole";
  EXPECT_EQ(Must(ToString(Must("sas:threshold=-7.25"))), Must("softmax=sas:threshold=-7.25"));
  for (const std::string_view name : PresetNames()) EXPECT_EQ(Must(ToString(Must(name))), Must(name)) << name;
}

TEST(RecipeTest, MixedWidthsHaveASharePerSide) {
  const AttentionRecipe r = Must("turbo-mixed v=flashq-mixed:2bit=0.25");
  EXPECT_EQ(r.k, kv::CodecId::kFlashQMixed);
  EXPECT_EQ(r.k_two_bit, 0.5f);
  EXPECT_EQ(r.v_two_bit, 0.25f);
  EXPECT_EQ(ToString(r).substr(0, 39), "k=flashq-mixed v=flashq-mixed:2bit=0.25");
  EXPECT_EQ(Must(ToString(r)), r);
  AttentionRecipe turbo = Must("turbo");
  turbo.k = turbo.v = kv::CodecId::kFlashQMixed;
  EXPECT_EQ(Must("turbo-mixed"), turbo) << "turbo's arithmetic";
}

TEST(RecipeTest, HowManyHeadsHaveTwoBits) {
  const auto count = [](const char* text, int kv_heads) { return TwoBitHeads(Must(text), false, kv_heads); };
  EXPECT_EQ(count("k=flashq-mixed", 8), 4);
  EXPECT_EQ(count("k=flashq-mixed", 3), 1) << "half a head keeps 4 bits";
  EXPECT_EQ(count("k=flashq-mixed", 1), 0);
  EXPECT_EQ(count("k=flashq-mixed:2bit=0.51", 1), 1);
  EXPECT_EQ(count("k=flashq-mixed:2bit=0", 8), 0);
  EXPECT_EQ(count("k=flashq-mixed:2bit=1", 7), 7);
  EXPECT_EQ(count("k=flashq-mixed:2bit=0.3", 10), 3);
  EXPECT_EQ(count("k=flashq2", 8), 0) << "all heads are alike";
  EXPECT_EQ(TwoBitHeads(Must("k=flashq-mixed"), true, 8), 0) << "K and V apart";

  EXPECT_TRUE(TwoBitNotes(Must("turbo-mixed"), 8).empty());
  const std::vector<std::string> notes = TwoBitNotes(Must("turbo-mixed"), 1);
  ASSERT_EQ(notes.size(), 2u) << "nothing is rounded in silence";
  EXPECT_EQ(notes[0], "k=flashq-mixed:2bit=0.5 of 1 KV head is no whole number: 0 of them have 2 bits");
}

TEST(RecipeTest, APlanMustFitTheShare) {
  Plan plan{.kv_heads = 4, .layers = {{}, {}}};
  plan.layers[1].v_two_bit = {true, true, false, true};
  EXPECT_TRUE(CheckTwoBitHeads(Must("k=flashq-mixed v=flashq4"), plan).ok()) << "the recipe does not ask";
  EXPECT_TRUE(CheckTwoBitHeads(Must("v=flashq-mixed:2bit=0.75"), plan).ok());
  const Status refused = CheckTwoBitHeads(Must("turbo-mixed"), plan);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(
      refused.message().find("layer 1 gives 2 bits to 3 of 4 V heads, v=flashq-mixed:2bit=0.5 to 2; use "
                             "v=flashq-mixed:2bit=0.75 or run nibble calibrate for this recipe"),
      std::string::npos)
      << refused.message();
}

TEST(RecipeTest, WidthsOfHeadsAreTold) {
  Plan plan{.kv_heads = 4, .layers = {{}, {}}};
  EXPECT_TRUE(ExplainTwoBitHeads(Must("turbo"), 4, &plan).empty());
  auto lines = ExplainTwoBitHeads(Must("v=flashq-mixed"), 4, nullptr);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("V heads: 2 of 4 a layer in 2 bits"), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("2 in 4; chosen by the first page of each sequence"), std::string::npos);
  for (LayerPlan& l : plan.layers) l.v_two_bit = {false, true, false, true};
  lines = ExplainTwoBitHeads(Must("v=flashq-mixed"), 4, &plan);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_NE(lines[0].find("chosen by the plan"), std::string::npos);
  EXPECT_EQ(lines[2], "layer 1 V heads in 2 bits: 1, 3");
}

TEST(RecipeTest, EachSasHasItsOwnCubic) {
  const auto c0 = [](std::string_view text) { return PolynomialOf(Must(text).arithmetic).c0; };
  EXPECT_EQ(c0("sas"), .9996f) << "the paper's";
  EXPECT_EQ(c0("sas2"), 1) << "exact at 0";
  EXPECT_EQ(c0("sas2:cubic=paper"), .9996f);
  EXPECT_EQ(c0("sas:cubic=endpoint"), 1);
  EXPECT_TRUE(PolynomialOf(Must("sas2:cubic=base2").arithmetic).base2);
  EXPECT_NE(ToString(Must("sas:cubic=paper")), ToString(Must("sas"))) << "auto is a value of its own";
}

TEST(RecipeTest, Sas2ThresholdBoundsTheMass) {
  EXPECT_NEAR(Sas2Threshold(1e-2f, 1000), -11.51f, 0.01f);
  EXPECT_NEAR(Sas2Threshold(1e-2f, 32768), -15.0f, 0.01f);
  EXPECT_EQ(Sas2Threshold(1e-6f, 1 << 20), -16) << "where the table ends";
}

TEST(RecipeTest, Compares) {
  const AttentionRecipe exact = Must("exact");
  for (const char* other : {"k=f16", "v=f16", "kv8", "qserve"}) EXPECT_FALSE(Must(other) == exact) << other;
  EXPECT_EQ(exact, AttentionRecipe{});
}

struct Refused {
  const char* text;
  Code code;
  const char* message;  // must occur
  DType arithmetic = DType::kF32;
};
const Refused kRefused[] = {
    {"", Code::kInvalidArgument,
     "empty; give a preset (exact, kv16, kv8, qserve, flashq4, flashq2, kivi4, kivi2, "},
    {"  \n", Code::kInvalidArgument, "empty"},
    {"k=flashq-mixed:2bit=1.01", Code::kInvalidArgument, "k=flashq-mixed: 2bit=1.01 is out of range 0 to 1"},
    {"v=flashq-mixed:2bit=-0.1", Code::kInvalidArgument, "v=flashq-mixed: 2bit=-0.1 is out of range 0 to 1"},
    {"k=flashq-mixed:2bit=nan", Code::kInvalidArgument, "2bit='nan' is not a number"},
    {"k=flashq-mixed:2bits=1", Code::kInvalidArgument,
     "has no parameter '2bits=1'; did you mean '2bit'?; it takes 2bit"},
    {"k=flashq4:2bit=0.5", Code::kInvalidArgument, "flashq4 takes no parameters"},
    {"k=flashqmixed", Code::kInvalidArgument, "did you mean 'flashq-mixed'?"},
    {"turbo-mixed:2bit=0.25", Code::kInvalidArgument, "softmax=sas has no parameter '2bit=0.25'"},
    {"qserve+turbo-mixed", Code::kInvalidArgument,
     "preset 'turbo-mixed' sets k=flashq-mixed, another one k=int4-token"},
    {"k=qaq:bits=4", Code::kInvalidArgument, "no parameter 'bits=4'"},
    {"k=qaq:window=4", Code::kInvalidArgument, "no parameter 'window=4'"},
    {"v=qaq:max=9", Code::kInvalidArgument, "out of range 1 to 8"},
    {"v=qaq:source=disk", Code::kInvalidArgument, "it may be planes, host"},
    {"k=qaq:min=5,max=4", Code::kInvalidArgument, "min=5 is more than max=4; use max=5 or more"},
    {"k=qaq:pick=cost,outliers=0.01", Code::kInvalidArgument, "counts outliers by itself"},
    {"qaq+sparq", Code::kUnsupported, "its widths follow the attention of every token"},
    // Unknown, with the nearest.
    {"qserv", Code::kInvalidArgument, "did you mean 'qserve'?"},
    {"Exact", Code::kInvalidArgument, "did you mean 'exact'?"},
    {"k=int4_token", Code::kInvalidArgument, "'int4_token' is unknown; did you mean 'int4-token'?"},
    {"k=int8", Code::kInvalidArgument, "is unknown; k may be f32, f16, bf16, int8-token, int4-token"},
    {"pw=f32", Code::kInvalidArgument, "key 'pw' is unknown; did you mean 'pv'?"},
    {"softmx=exact", Code::kInvalidArgument, "did you mean 'softmax'?"},
    {"=f32", Code::kInvalidArgument, "key '' is unknown"},
    {"k=", Code::kInvalidArgument, "k='' is unknown"},
    {"zzzzzzzzzzzz", Code::kInvalidArgument, "'zzzzzzzzzzzz' is neither a preset nor key=value; presets are"},
    {"qserve+", Code::kInvalidArgument, "'' is neither"},
    {"+", Code::kInvalidArgument, "'' is neither"},
    {"qserve+zzz", Code::kInvalidArgument, "'zzz' is neither"},
    {"K=f32", Code::kInvalidArgument, "key 'K' is unknown"},
    {"k=f32,v=f32", Code::kInvalidArgument, "'f32,v=f32' is unknown"},
    {"k\x01\n=f32", Code::kInvalidArgument, "'k?'"},
    // Impossible.
    {"k=f32 k=f16", Code::kInvalidArgument, "key 'k' is given twice"},
    {"kv8 qserve", Code::kInvalidArgument, "preset 'qserve' must stand first, and once"},
    {"k=f16 qserve", Code::kInvalidArgument, "must stand first"},
    {"k=int4-token:group=64", Code::kInvalidArgument, "int4-token takes no parameters"},
    {"select=all:k=3", Code::kInvalidArgument, "all takes no parameters"},
    {"select=sparq:q=3", Code::kInvalidArgument, "select=sparq has no parameter 'q=3'"},
    {"select=sparq:", Code::kInvalidArgument, "select=sparq has no parameter ''"},
    {"select=sparq:r=", Code::kInvalidArgument, "r='' is not a whole number"},
    {"select=sparq:r=1.5", Code::kInvalidArgument, "r='1.5' is not a whole number"},
    {"select=sparq:r=nan", Code::kInvalidArgument, "is not a whole number"},
    {"select=sparq:r=0", Code::kInvalidArgument, "r=0 is out of range 1 to 256"},
    {"select=sparq:r=8,r=9", Code::kInvalidArgument, "r is given twice"},
    {"select=sparq:copy=int9", Code::kInvalidArgument, "did you mean 'int8'?"},
    {"select=sparq:k=8,local=9", Code::kUnsupported,
     "k=8 is less than local=9 and sinks=0: they are part of k; use k=9 or more"},
    {"select=sparq:k=16,sinks=16", Code::kUnsupported,
     "local=4 and sinks=16: they are part of k; use k=21 or more"},
    {"select=sparq:r=300", Code::kInvalidArgument, "r=300 is out of range 1 to 256"},
    {"select=sparq:eps=1", Code::kInvalidArgument, "eps=1 is out of range 0 to 0.99"},
    {"select=sparq:mean=some", Code::kInvalidArgument, "it may be auto, off, mean, unselected, blocks"},
    {"k=int3-token", Code::kInvalidArgument, "did you mean 'int8-token'?"},
    {"k=flashq8", Code::kInvalidArgument, "did you mean 'flashq4'?"},
    {"k=turboquant5", Code::kInvalidArgument, "did you mean 'turboquant4'?"},
    {"v=qaq:min=-1", Code::kInvalidArgument, "min=-1 is out of range 0 to 8"},
    {"v=qaq:window=65", Code::kInvalidArgument, "window=65 is out of range 1 to 64"},
    {"k=qaq:outliers=0.2", Code::kInvalidArgument, "outliers=0.2 is out of range 0 to 0.05"},
    {"qaq select=h2o", Code::kUnsupported, "use select=all, or another codec"},
    {"qaq select=window", Code::kUnsupported, "use select=all, or another codec"},
    {"sage1+sage2-8b", Code::kInvalidArgument,
     "preset 'sage2-8b' sets qk=int8-thread, another one qk=int8-block"},
    {"sparq+h2o", Code::kInvalidArgument, "preset 'h2o' sets select=h2o, another one select=sparq"},
    {"smooth=qk", Code::kUnsupported, "use qk=int8-thread or smooth=none"},
    {"sparq:r=32,z=1", Code::kInvalidArgument, "has no parameter 'z=1'"},
    {"kv8:r=1", Code::kInvalidArgument, "'kv8' takes no such parameters"},
    {"qserve+kv8", Code::kInvalidArgument, "preset 'kv8' sets k=int8-token, another one k=int4-token"},
    {"softmax=sas:threshold=3", Code::kInvalidArgument, "out of range -16 to -1"},
    {"select=window:k=4,sinks=4", Code::kUnsupported,
     "leaves nothing beside sinks=4: sinks are part of k; use k=5 or more"},
    {"select=h2o:k=4,local=5", Code::kUnsupported,
     "is less than local=5: local tokens are part of k; use k=5 or more"},
    {"smooth=k", Code::kUnsupported, "smooth needs an integer qk"},
    {"tail=int8", Code::kUnsupported,
     "tail=int8 needs k and v of the flashq family, not k=f32 v=f32: a page is sealed from the tail's codes; "
     "use k=flashq4 v=flashq4 or tail=float"},
    {"flashq2 v=f16 tail=int8", Code::kUnsupported, "not k=flashq2 v=f16"},
    {"turbo k=qaq", Code::kUnsupported, "not k=qaq v=flashq4"},
    {"tail=int9", Code::kInvalidArgument, "did you mean 'int8'?"},
    {"qk=bf16", Code::kUnsupported, "qk=bf16 cannot run in f32 arithmetic; use qk=f32 or --dtype bf16"},
    {"pv=bf16", Code::kUnsupported, "pv=bf16 cannot run in f32"},
    {"qk=f32", Code::kUnsupported, "qk=f32 cannot run in bf16 arithmetic; use qk=bf16", DType::kBF16},
    {"qserve pv=f32", Code::kUnsupported, "pv=f32 cannot run in bf16", DType::kBF16},
};

TEST(RecipeTest, RefusesWithTheReason) {
  for (const Refused& c : kRefused) {
    const auto r = ParseRecipe(c.text, c.arithmetic);
    ASSERT_FALSE(r.ok()) << c.text;
    const std::string message = r.status().message();
    EXPECT_EQ(r.status().code(), c.code) << c.text << ": " << message;
    EXPECT_NE(message.find(c.message), std::string::npos) << c.text << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

// What a recipe asks of a model's heads.
TEST(RecipeTest, HeadSizes) {
  for (const char* text :
       {"exact", "qserve", "turboquant4", "kivi2", "gear2", "qaq", "turbo", "sage2-4b", "h2o"})
    for (const int head_dim : {8, 64, 80, 96, 128, 256})
      EXPECT_TRUE(CheckHeadSize(Must(text), head_dim).ok()) << text << " " << head_dim;
  EXPECT_TRUE(CheckHeadSize(Must("exact"), 20).ok());
  for (const char* text : {"kv16", "qserve", "qaq", "sage2-4b", "window", "pv=int8"})
    EXPECT_EQ(
        CheckHeadSize(Must(text), 20).message(),
        "recipe: heads of 20 channels, no multiple of 8, are served in full precision only; use exact with "
        "--dtype f32")
        << text;
  EXPECT_FALSE(CheckHeadSize(Must("exact", DType::kBF16), 20).ok());
  EXPECT_TRUE(CheckHeadSize(Must("sparq:r=64"), 64).ok());
  EXPECT_EQ(CheckHeadSize(Must("sparq:r=65"), 64).message(),
            "recipe: select=sparq: r=65 exceeds the model's head size; use r=64 or less");
  EXPECT_FALSE(CheckHeadSize(Must("sparq"), 24).ok()) << "the default r is 32";
}

TEST(RecipeTest, LongInputIsCutInTheMessage) {
  for (const std::string& text : {std::string(1 << 20, 'x'), "k=" + std::string(1 << 20, 'y'),
                                  std::string(1 << 20, 'z') + "=f32", std::string(1 << 16, '+')}) {
    const auto r = ParseRecipe(text, DType::kF32);
    ASSERT_FALSE(r.ok());
    EXPECT_LT(r.status().message().size(), 1000u);  // the lists of names included
  }
}

}  // namespace
}  // namespace nibble
