// SPDX-License-Identifier: Apache-2.0
// Floor 0. One resource that a few threads use in turns of any length, such as the processors under the steps
// of several engines: whoever has had least time of those who want it goes next.
#pragma once
#include <condition_variable>
#include <mutex>
#include <vector>

namespace nibble {

// Thread-safe; each member is used by one thread. Take and Give allocate nothing.
class FairTurns {
 public:
  using Member = int;
  Member Join();

  // Waits for the turn. Time that a member did not ask for is not saved up: who comes back after a pause
  // counts as having had as much as whoever goes now (start-time fair queueing, Goyal et al. 1996).
  void Take(Member member);
  // Ends the turn, which took `seconds`. `again`: the member will Take at once, so those who wait and have
  // had more wait for it. Whoever said so and does not come must Forgo.
  void Give(Member member, double seconds, bool again);
  void Forgo(Member member);  // nothing for who did not say so

 private:
  enum class Want : unsigned char { kNothing, kComes, kWaits, kHolds };
  struct Place {
    double used = 0;  // seconds
    Want want = Want::kNothing;
  };
  void Choose();  // REQUIRES nobody holds it

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Place> places_;
  double clock_ = 0;  // what the one who goes now, or went last, had had
  int next_ = -1;     // who may go, or is waited for; -1: nobody wants it
  int last_ = -1;     // who had the last turn: of equal ones it goes last
  bool held_ = false;
};

}  // namespace nibble
