// SPDX-License-Identifier: Apache-2.0
// Requests that lose their pages and come back, recomputed or swapped out to host memory, return the bytes
// that they return without.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <tuple>

#include "recipe/page_rules.h"
#include "tests/support/serving_bytes.h"

namespace nibble {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

// NIBBLE_TEST_PREEMPTIONS: of each recipe, mode, size of pool and prefix cache.
uint64_t Wanted() {
  const char* wanted = std::getenv("NIBBLE_TEST_PREEMPTIONS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : Full() ? 250 : 1;
}
bool Long() { return Wanted() > 1; }

// Prompts below a page whose answers end soon after the second one: all are admitted, and their pages do not
// suffice for long.
std::vector<ServingRequest> Growing(int count) {
  std::mt19937 rng(2);
  std::vector<ServingRequest> growing;
  for (int i = 0; i < count; ++i) {
    ServingRequest r;
    r.prompt = RandomIds(rng, 48 + rng() % 12);
    r.max_tokens = 84, r.ignore_eos = true;
    r.logprobs = 1;
    if (i % 2 == 1) r.sampling = {.temperature = 0.8f, .top_k = 40, .seed = rng()};
    growing.push_back(r);
  }
  return growing;
}

struct Mode {
  const char* name;
  Preemption preemption;
};
constexpr Mode kRecomputed{"recompute", Preemption::kRecompute}, kSwapped{"swap", Preemption::kSwap};

class Preempted : public testing::TestWithParam<std::tuple<std::string, Mode>> {
 protected:
  ServingOptions Options() const {
    ServingOptions o;
    o.engine.recipe = std::get<0>(GetParam());
    o.preemption = std::get<1>(GetParam()).preemption;
    o.prefix_cache = false;
    return o;
  }
  bool Shares() const { return WhyNotShared(*ParseRecipe(std::get<0>(GetParam()), DType::kF32)).empty(); }
  void Lose(int64_t pages, bool prefixes, const std::vector<ServingRequest>& growing,
            const std::vector<Outcome>& alone) const;
};

void Preempted::Lose(int64_t pages, bool prefixes, const std::vector<ServingRequest>& growing,
                     const std::vector<Outcome>& alone) const {
  ServingOptions o = Options();
  o.max_num_seqs = int(growing.size()), o.max_num_batched_tokens = 64;
  o.kv_tokens = pages * 64, o.prefix_cache = prefixes;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  int wrong = 0, rounds = 0;
  for (; engine->Stats().preemptions < Wanted() && rounds < 1000; ++rounds) {
    wrong += Different(Serve(*engine, growing), alone);
    const ServingStats stats = engine->Stats();
    EXPECT_EQ(stats.pages_used, 0);
    EXPECT_EQ(stats.swap_bytes, 0);
    ASSERT_GT(stats.preemptions, 0u);
  }
  const ServingStats stats = engine->Stats();
  EXPECT_EQ(wrong, 0) << pages << " pages";
  EXPECT_EQ(stats.swapped, o.preemption == Preemption::kSwap ? stats.preemptions : 0);
  EXPECT_EQ(stats.swap_full, 0u);
  if (Long())
    printf("%s, %s, %d pages, prefix cache %s: %d rounds of %zu, %d preemptions, %d answers differ\n",
           o.engine.recipe.c_str(), std::get<1>(GetParam()).name, int(pages), prefixes ? "on" : "off", rounds,
           growing.size(), int(stats.preemptions), wrong),
        fflush(stdout);
}

// Each fits alone; together they need two pages each.
TEST_P(Preempted, TheBytesAreThoseOfARequestAlone) {
  const std::vector<ServingRequest> growing = Growing(Long() ? 16 : 6);
  ServingOptions roomy = Options();
  roomy.max_num_seqs = Long() ? 1 : 6;
  const auto plain = Start(roomy);
  ASSERT_TRUE(plain);
  const std::vector<Outcome> alone = Serve(*plain, growing);
  EXPECT_EQ(plain->Stats().preemptions, 0u);
  const auto quarter = int64_t(growing.size()) * 2 / 4;
  for (const int64_t pages : Long() ? std::vector<int64_t>{7, quarter} : std::vector<int64_t>{7}) {
    for (const bool prefixes : {false, true}) {
      const bool both = Full() && Shares();  // else with the prefix cache where there is one
      if (both || prefixes == Shares()) Lose(pages, prefixes, growing, alone);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Recipes, Preempted,
                         testing::Combine(testing::ValuesIn(kRecipes),
                                          testing::Values(kRecomputed, kSwapped)),
                         [](const auto& param) {
                           std::string name = std::get<0>(param.param) + "_" + std::get<1>(param.param).name;
                           for (char& c : name) c = isalnum(c) != 0 ? c : '_';
                           return name;
                         });

// No room for one, for some, for all: what finds none is recomputed and counted. Nothing stays behind.
TEST(Swap, AFullSpaceIsCounted) {
  const auto growing = Growing(6);
  ServingOptions o;
  o.engine.recipe = "qserve", o.max_num_seqs = 6, o.prefix_cache = false;
  const auto plain = Start(o);
  ASSERT_TRUE(plain);
  const auto alone = Serve(*plain, growing);
  o.max_num_batched_tokens = 64, o.kv_tokens = 7 * 64;
  for (const Preemption preemption : {Preemption::kSwap, Preemption::kAuto}) {
    for (const int64_t bytes : {int64_t{0}, int64_t{500000}, int64_t{1} << 30}) {
      o.preemption = preemption, o.swap_bytes = bytes;
      const auto engine = Start(o);
      ASSERT_TRUE(engine);
      EXPECT_EQ(Different(Serve(*engine, growing), alone), 0) << bytes;
      const ServingStats stats = engine->Stats();
      EXPECT_GT(stats.preemptions, 0u);
      EXPECT_EQ(stats.swap_full == 0, bytes == 1 << 30) << bytes;
      EXPECT_EQ(stats.swapped == 0, bytes == 0) << bytes;
      EXPECT_LE(stats.swapped + stats.swap_full, stats.preemptions);
      EXPECT_EQ(stats.swap_bytes, 0);
    }
  }
}

// Cancelled while they are swapped out.
TEST(Swap, CancelledRequestsLeaveNothing) {
  auto growing = Growing(6);
  ServingOptions o;
  o.max_num_seqs = 6, o.max_num_batched_tokens = 64, o.kv_tokens = 7 * 64, o.preemption = Preemption::kSwap;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  std::vector<RequestId> ids;
  std::atomic<int> ended{0};
  for (ServingRequest& r : growing) {
    r.max_tokens = 380;
    r.on_event = [&](const ServingEvent& e) { ended += e.finish.has_value(); };
    const auto id = engine->Submit(r);
    ASSERT_TRUE(id.ok()) << id.status().message();
    ids.push_back(*id);
  }
  while (engine->Stats().swap_bytes == 0 && ended < 6) std::this_thread::yield();
  EXPECT_GT(engine->Stats().swap_bytes, 0);
  for (const RequestId id : ids) engine->Cancel(id);
  EXPECT_TRUE(engine->WaitIdle(kLimit));
  EXPECT_EQ(ended, 6);
  EXPECT_EQ(engine->Stats().swap_bytes, 0);
  EXPECT_EQ(engine->Stats().pages_used, 0);
}

}  // namespace
}  // namespace nibble
