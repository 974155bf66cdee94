// SPDX-License-Identifier: Apache-2.0
#include "base/fair_turns.h"

#include <algorithm>

#include "base/check.h"

namespace nibble {

FairTurns::Member FairTurns::Join() {
  const std::lock_guard lock(mutex_);
  places_.emplace_back();
  return static_cast<Member>(places_.size()) - 1;
}

void FairTurns::Choose() {
  next_ = -1;
  const int count = static_cast<int>(places_.size());
  for (int step = 1; step <= count; ++step) {  // from the one behind the last turn's
    const int i = (std::max(last_, 0) + step) % count;
    if (places_[size_t(i)].want == Want::kNothing) continue;
    if (next_ < 0 || places_[size_t(i)].used < places_[size_t(next_)].used) next_ = i;
  }
}

void FairTurns::Take(Member member) {
  std::unique_lock lock(mutex_);
  Place& place = places_[size_t(member)];
  if (place.want == Want::kNothing) place.used = std::max(place.used, clock_);
  place.want = Want::kWaits;
  // A member that was chosen before and has not come yet keeps its place.
  if (!held_ && (next_ < 0 || places_[size_t(next_)].want == Want::kNothing)) Choose();
  changed_.wait(lock, [&] { return !held_ && next_ == member; });
  place.want = Want::kHolds;
  held_ = true;
  clock_ = std::max(clock_, place.used);
}

void FairTurns::Give(Member member, double seconds, bool again) {
  const std::lock_guard lock(mutex_);
  Place& place = places_[size_t(member)];
  NIBBLE_CHECK(held_ && place.want == Want::kHolds, "a turn that was not taken");
  place.used += seconds;
  place.want = again ? Want::kComes : Want::kNothing;
  held_ = false;
  last_ = member;
  Choose();
  if (next_ < 0) clock_ = std::max(clock_, place.used);
  changed_.notify_all();
}

void FairTurns::Forgo(Member member) {
  const std::lock_guard lock(mutex_);
  Place& place = places_[size_t(member)];
  if (place.want != Want::kComes) return;
  place.want = Want::kNothing;
  if (!held_ && next_ == member) Choose();
  changed_.notify_all();
}

}  // namespace nibble
