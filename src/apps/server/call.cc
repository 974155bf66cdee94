// SPDX-License-Identifier: Apache-2.0
#include "apps/server/call.h"

#include <algorithm>

#include "apps/server/log.h"

namespace nibble::server {

using std::chrono::steady_clock;

namespace {

double SecondsSince(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

TokenEntry Copy(const TokenLogprobs& from) { return {from.token, {from.top.begin(), from.top.end()}}; }

}  // namespace

void Call::Start(const CallContext& context, CallPlan plan, std::shared_ptr<Reply> reply) {
  const std::shared_ptr<Call> call(new Call(context, std::move(plan), std::move(reply)));
  call->Submit();
}

Call::Call(const CallContext& context, CallPlan plan, std::shared_ptr<Reply> reply)
    : context_(context),
      plan_(std::move(plan)),
      reply_(std::move(reply)),
      began_(steady_clock::now()),
      choices_(plan_.requests.size()),
      last_token_(plan_.requests.size(), began_) {
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices_[i].index = static_cast<int>(i);
    choices_[i].prompt = plan_.prompts[i];
  }
}

void Call::Submit() {
  const auto self = shared_from_this();
  reply_->OnGone([self] { self->CancelAll(); });
  for (size_t i = 0; i < plan_.requests.size(); ++i)
    plan_.requests[i].on_event = [self, i](const ServingEvent& event) { self->OnEvent(i, event); };
  auto ids = context_.engine->Submit(std::move(plan_.requests));
  std::unique_lock lock(mutex_);
  if (!ids.ok()) {
    done_ = true;
    reply_->Send(ErrorResponse(ids.status(), plan_.dialect));
    return;
  }
  ids_ = *std::move(ids);
  if (plan_.stream && !done_) StartStream();
  const bool cancelled = cancelled_;
  lock.unlock();
  if (cancelled) CancelAll();
}

void Call::StartStream() {
  if (started_) return;
  started_ = true;
  reply_->Start("text/event-stream", plan_.format->Ping());
  reply_->Write(plan_.format->Begin());
}

void Call::OnEvent(size_t index, const ServingEvent& event) {
  const std::lock_guard lock(mutex_);
  Choice& choice = choices_[index];
  Take(event, &choice);
  Observe(event, &choice, index);
  if (event.finish) ++finished_;
  if (done_) return;
  if (event.finish == FinishReason::kError) return Fail(500, "the engine failed: " + choice.error);
  if (plan_.stream) Stream(event, choice);
  if (finished_ < choices_.size()) return;
  done_ = true;
  if (plan_.stream) {
    reply_->Write(plan_.format->End(choices_, Sum(choices_)));
    LogEnd();
    reply_->End();
  } else {
    context_.queue->Post([self = shared_from_this()] { self->FinishWhole(); });
  }
}

void Call::Take(const ServingEvent& event, Choice* choice) {
  choice->text += event.text;
  choice->tokens.insert(choice->tokens.end(), event.tokens.begin(), event.tokens.end());
  for (const TokenLogprobs& entry : event.logprobs) {
    choice->logprobs.push_back(Copy(entry));
    choice->score += entry.token.logprob;
  }
  for (const TokenLogprobs& entry : event.prompt_logprobs) choice->prompt_logprobs.push_back(Copy(entry));
  choice->usage = event.usage;
  if (!event.finish) return;
  choice->finish = event.finish;
  choice->stop_index = event.stop_index;
  choice->error = event.error;
  choice->embedding.assign(event.embedding.begin(), event.embedding.end());
}

void Call::Observe(const ServingEvent& event, Choice* choice, size_t index) {
  if (!event.tokens.empty()) {
    const auto now = steady_clock::now();
    const double since = std::chrono::duration<double>(now - last_token_[index]).count();
    if (choice->tokens.size() == event.tokens.size()) {
      context_.metrics->time_to_first_token.Observe(since);
      if (first_token_seconds_ < 0) first_token_seconds_ = since;
    } else {
      const auto count = event.tokens.size();
      context_.metrics->inter_token_latency.Observe(since / static_cast<double>(count), count);
    }
    last_token_[index] = now;
  }
  if (event.finish) context_.metrics->ObserveEnd(event.usage, SecondsSince(began_));
}

void Call::Stream(const ServingEvent& event, const Choice& choice) {
  StartStream();
  std::string text(event.text);
  if (choice.finish && choice.stop_index >= 0 && plan_.include_stop)
    text += plan_.stops[static_cast<size_t>(choice.stop_index)];
  const std::span<const TokenEntry> entries(choice.logprobs);
  reply_->Write(plan_.format->Piece(choice, {text, entries.last(event.logprobs.size())}));
}

void Call::Fail(int status, const std::string& message) {
  done_ = true;
  Log("error", "call", fmt::format("\"id\":\"{}\",\"error\":{}", reply_->id(), Quoted(message)));
  if (started_) {
    reply_->Write(plan_.format->Error(status, message));
    reply_->End();
  } else {
    reply_->Send(ErrorResponse(status, message, plan_.dialect));
  }
  cancelled_ = true;  // Submit looks at it, where the ids are not known yet
  for (const RequestId id : ids_) context_.engine->Cancel(id);
}

std::vector<Choice> Call::Best() const {
  const auto per_prompt = static_cast<size_t>(plan_.choices_per_prompt);
  std::vector<Choice> kept;
  for (size_t first = 0; first < choices_.size(); first += per_prompt) {
    std::vector<Choice> group(choices_.begin() + static_cast<ptrdiff_t>(first),
                              choices_.begin() + static_cast<ptrdiff_t>(first + per_prompt));
    if (plan_.kept_per_prompt < plan_.choices_per_prompt) {
      const auto mean = [](const Choice& c) {
        return c.score / static_cast<double>(std::max<size_t>(c.tokens.size(), 1));
      };
      std::stable_sort(group.begin(), group.end(),
                       [&](const Choice& a, const Choice& b) { return mean(a) > mean(b); });
      group.resize(static_cast<size_t>(plan_.kept_per_prompt));
    }
    for (Choice& choice : group) {
      choice.index = static_cast<int>(kept.size());
      if (choice.stop_index >= 0 && plan_.include_stop)
        choice.text += plan_.stops[static_cast<size_t>(choice.stop_index)];
      kept.push_back(std::move(choice));
    }
  }
  return kept;
}

void Call::FinishWhole() {
  const std::lock_guard lock(mutex_);
  const std::vector<Choice> kept = Best();
  LogEnd();
  reply_->Send({.body = plan_.format->Whole(kept, Sum(choices_))});
}

void Call::LogEnd() {
  const Usage usage = Sum(choices_);
  reply_->Log("prompt_tokens", fmt::format("{}", usage.prompt_tokens));
  reply_->Log("cached_tokens", fmt::format("{}", usage.cached_tokens));
  reply_->Log("new_tokens", fmt::format("{}", usage.new_tokens));
  if (first_token_seconds_ >= 0)
    reply_->Log("first_token_seconds", fmt::format("{:.6f}", first_token_seconds_));
  reply_->Log("finish", fmt::format("\"{}\"", OpenAiFinish(*choices_[0].finish)));
}

void Call::CancelAll() {
  std::vector<RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    ids = ids_;
  }
  for (const RequestId id : ids) context_.engine->Cancel(id);
}

}  // namespace nibble::server
