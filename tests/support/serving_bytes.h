// SPDX-License-Identifier: Apache-2.0
// Serving on the embedded model: engines, requests, and what they return, to compare bit by bit.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "engine/serving.h"

namespace nibble::test {

using std::chrono::milliseconds;

inline const std::string kModel = NIBBLE_SOURCE_DIR "/models/novelist-10m";
inline const std::vector<std::string> kRecipes{"exact", "qserve", "flashq4", "qaq", "sparq:r=16,k=32"};
inline constexpr milliseconds kLimit{120000};
inline constexpr int kNew = 24;  // tokens of a needle: three of four complete a page with them

// NIBBLE_TEST_DEVICE=cuda: the same on the GPU, in the arithmetic that NIBBLE_TEST_DTYPE names.
inline bool OnCuda() {
  const char* device = std::getenv("NIBBLE_TEST_DEVICE");
  return device != nullptr && std::string(device) == "cuda";
}

inline bool Full() { return std::getenv("NIBBLE_TEST_FULL") != nullptr; }

// On the device under test.
inline ServingOptions Placed(ServingOptions options) {
  options.engine.model = kModel;
  if (options.engine.threads == 0) options.engine.threads = 2;
  if (OnCuda()) options.engine.device = DeviceChoice::kCuda;
  if (const char* dtype = std::getenv("NIBBLE_TEST_DTYPE"); dtype != nullptr && std::string(dtype) == "bf16")
    options.engine.dtype = DType::kBF16;
  return options;
}

inline std::unique_ptr<ServingEngine> Start(const ServingOptions& options) {
  auto engine = ServingEngine::Start(Placed(options));
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

// What a request returned. Log probabilities depend on every logit of their row.
struct Outcome {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<float> logprobs;
  std::optional<FinishReason> finish;
  ServingUsage usage;
  bool SameBytes(const Outcome& o) const {
    return tokens == o.tokens && text == o.text && logprobs.size() == o.logprobs.size() &&
           (logprobs.empty() ||
            memcmp(logprobs.data(), o.logprobs.data(), logprobs.size() * sizeof(float)) == 0);
  }
};

inline ServingRequest Into(ServingRequest r, Outcome* out) {
  r.on_event = [out](const ServingEvent& e) {
    EXPECT_FALSE(out->finish) << "an event after the last one";
    out->tokens.insert(out->tokens.end(), e.tokens.begin(), e.tokens.end());
    out->text += e.text;
    for (const TokenLogprobs& l : e.prompt_logprobs) out->logprobs.push_back(l.token.logprob);
    for (const TokenLogprobs& l : e.logprobs) {
      out->logprobs.push_back(l.token.logprob);
      for (const TokenLogprob& t : l.top) out->logprobs.push_back(t.logprob);
    }
    if (e.finish) out->finish = e.finish, out->usage = e.usage;
  };
  return r;
}

// All together.
inline std::vector<Outcome> Serve(ServingEngine& engine, std::span<const ServingRequest> requests) {
  std::vector<Outcome> outcomes(requests.size());
  std::vector<ServingRequest> submitted;
  for (size_t i = 0; i < requests.size(); ++i) submitted.push_back(Into(requests[i], &outcomes[i]));
  const auto ids = engine.Submit(std::move(submitted));
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  EXPECT_TRUE(engine.WaitIdle(kLimit));
  return outcomes;
}
inline std::vector<Outcome> ServeEachAlone(ServingEngine& engine, std::span<const ServingRequest> requests) {
  std::vector<Outcome> outcomes;
  for (const ServingRequest& r : requests) outcomes.push_back(Serve(engine, {&r, 1})[0]);
  return outcomes;
}

inline int Different(const std::vector<Outcome>& a, const std::vector<Outcome>& b) {
  int different = 0;
  for (size_t i = 0; i < a.size(); ++i) different += !a[i].SameBytes(b[i]);
  return different;
}

inline std::vector<int32_t> RandomIds(std::mt19937& rng, size_t count) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = int32_t(rng() % 4000);
  return ids;
}

// Greedy and drawn, short and over several pages; the last repeats itself, so that lookup finds something.
inline std::vector<ServingRequest> Needles() {
  std::mt19937 rng(1);
  std::vector<ServingRequest> needles;
  for (const size_t length : {5, 63, 120, 180}) {
    ServingRequest r;
    r.prompt = RandomIds(rng, length);
    r.max_tokens = kNew;
    r.ignore_eos = true;
    r.logprobs = 2;
    if (needles.size() % 2 == 1)
      r.sampling = {.temperature = 0.8f, .top_p = 0.9f, .frequency_penalty = 0.2f, .seed = 7};
    needles.push_back(r);
  }
  std::vector<int32_t>& last = needles.back().prompt;
  for (size_t i = 20; i < last.size(); ++i) last[i] = last[i - 20];
  needles.back().sampling = {};
  return needles;
}

}  // namespace nibble::test
