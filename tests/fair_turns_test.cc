// SPDX-License-Identifier: Apache-2.0
// Turns go by time, not by count; nobody saves up what it did not ask for, and nobody waits for one who does
// not come.
#include "base/fair_turns.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>

namespace nibble {
namespace {

// Who goes in which order, when all always come again and a turn of member i takes seconds[i].
template <size_t N>
std::array<int, N> TurnsOf(const std::array<double, N>& seconds, int turns) {
  FairTurns fair;
  std::array<int, N> count{};
  std::atomic<int> left{turns};
  for (size_t i = 0; i < N; ++i) fair.Join();
  const auto gate = fair.Join();  // holds the turn until all wait for it
  fair.Take(gate);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < N; ++i) {
    threads.emplace_back([&, member = int(i)] {
      while (true) {
        fair.Take(member);
        const bool on = left > 0;
        if (on) --left, ++count[size_t(member)];
        fair.Give(member, on ? seconds[size_t(member)] : 0, on);
        if (!on) return;
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  fair.Give(gate, 0, false);
  for (std::thread& thread : threads) thread.join();
  return count;
}

TEST(FairTurns, GoByTime) {
  const auto equal = TurnsOf<2>({1, 1}, 1000);
  EXPECT_NEAR(equal[0], 500, 2);
  const auto unequal = TurnsOf<2>({9, 1}, 1000);
  EXPECT_NEAR(unequal[0], 100, 2) << "by count it would be 500";
  const auto three = TurnsOf<3>({4, 2, 1}, 700);
  EXPECT_NEAR(three[0], 100, 3);
  EXPECT_NEAR(three[1], 200, 3);
  EXPECT_NEAR(three[2], 400, 3);
}

TEST(FairTurns, OneAloneNeverWaits) {
  FairTurns fair;
  const auto a = fair.Join(), b = fair.Join();
  for (int i = 0; i < 100; ++i) {
    fair.Take(a);
    fair.Give(a, 1, i % 2 == 0);
  }
  fair.Forgo(a);
  // b was away for 100 s: it does not get them now, but from here on half.
  fair.Take(b);
  fair.Give(b, 1, false);
  fair.Take(a);
  fair.Give(a, 1, false);
}

TEST(FairTurns, WhoIsExpectedIsWaitedForUntilItForgoes) {
  FairTurns fair;
  const auto slow = fair.Join(), quick = fair.Join();
  fair.Take(quick);
  std::atomic<bool> had{false};
  std::thread waits([&] {
    fair.Take(slow);  // waits for quick's turn
    fair.Give(slow, 100, true);
    fair.Take(slow);  // quick has had less and will come
    had = true;
    fair.Give(slow, 100, false);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  fair.Give(quick, 1, true);
  for (int i = 0; i < 5; ++i) {
    fair.Take(quick);
    EXPECT_FALSE(had);
    fair.Give(quick, 1, true);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(had) << "a place that was kept";
  fair.Forgo(quick);
  waits.join();
  EXPECT_TRUE(had);
}

TEST(FairTurns, NothingIsSavedUp) {
  FairTurns fair;
  const auto busy = fair.Join(), idle = fair.Join();
  for (int i = 0; i < 10; ++i) {
    fair.Take(busy);
    fair.Give(busy, 10, i < 9);
  }
  // Both want it from now on. Were the 100 seconds owed, busy would wait for a hundred turns.
  fair.Take(idle);
  std::atomic<int> busy_turns{0};
  std::thread other([&] {
    for (int i = 0; i < 50; ++i) {
      fair.Take(busy);
      ++busy_turns;
      fair.Give(busy, 1, i < 49);
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (int i = 0; i < 20; ++i) {
    fair.Give(idle, 1, true);
    fair.Take(idle);
  }
  EXPECT_GE(busy_turns, 18);
  EXPECT_LE(busy_turns, 22);
  fair.Give(idle, 1, false);
  other.join();
}

}  // namespace
}  // namespace nibble
