// SPDX-License-Identifier: Apache-2.0
// Floor 9. One API call under way: the requests that it put into the engine, what came of them, and its
// answer.
#pragma once
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "apps/server/api_error.h"
#include "apps/server/choice.h"
#include "apps/server/http.h"
#include "apps/server/metrics.h"
#include "apps/server/work_queue.h"
#include "engine/serving.h"

namespace nibble::server {

struct CallPlan {
  std::vector<ServingRequest> requests;  // choice after choice; on_event is set here
  std::vector<size_t> prompts;           // of each: which prompt it continues
  int choices_per_prompt = 1;            // candidates
  int kept_per_prompt = 1;               // the best of them, by mean logprob
  bool stream = false;
  bool include_stop = false;         // the stop text ends the answer
  std::vector<std::string> stops{};  // of every request
  std::unique_ptr<Format> format;
  Dialect dialect = Dialect::kOpenAi;
};

struct CallContext {
  ServingEngine* engine;
  Metrics* metrics;
  WorkQueue* queue;
};

class Call : public std::enable_shared_from_this<Call> {
 public:
  // Gives the requests to the engine and answers, now with an error or later. When the client goes they are
  // cancelled.
  static void Start(const CallContext& context, CallPlan plan, std::shared_ptr<Reply> reply);

 private:
  Call(const CallContext& context, CallPlan plan, std::shared_ptr<Reply> reply);

  void Submit();
  void OnEvent(size_t index, const ServingEvent& event);  // on the engine thread
  void Take(const ServingEvent& event, Choice* choice);
  void Observe(const ServingEvent& event, Choice* choice, size_t index);
  void Stream(const ServingEvent& event, const Choice& choice);
  void StartStream();
  void Fail(int status, const std::string& message);
  void FinishWhole();
  void LogEnd();
  void CancelAll();
  std::vector<Choice> Best() const;

  CallContext context_;
  CallPlan plan_;
  std::shared_ptr<Reply> reply_;
  std::chrono::steady_clock::time_point began_;

  std::mutex mutex_;  // over what follows
  std::vector<RequestId> ids_;
  std::vector<Choice> choices_;
  std::vector<std::chrono::steady_clock::time_point> last_token_;
  size_t finished_ = 0;
  double first_token_seconds_ = -1;
  bool started_ = false, done_ = false, cancelled_ = false;
};

}  // namespace nibble::server
