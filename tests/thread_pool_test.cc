// SPDX-License-Identifier: Apache-2.0
// The thread pool: every item once, for any number of threads; idle threads sleep; cgroup limits are read.
#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>
#include <vector>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double CpuSeconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  const auto s = [](timeval t) { return double(t.tv_sec) + 1e-6 * double(t.tv_usec); };
  return s(u.ru_utime) + s(u.ru_stime);
}

// Which items ran how often. `Complete` is what the tests rely on; it is shown to fail below.
struct Tally {
  explicit Tally(int64_t n) : runs(size_t(n), 0) {}
  std::vector<int> runs;  // plain ints: tsan sees it when two threads run one item
  bool Complete() const {
    for (int r : runs)
      if (r != 1) return false;
    return true;
  }
};

TEST(ThreadPool, EveryItemOnceForManyThreadCounts) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (int64_t items : {0, 1, 2, 3, 7, 64, 1000}) {
      Tally tally(items);
      std::atomic<bool> worker_ok{true};
      pool.Run(items, [&](int64_t item, int worker) {
        ++tally.runs[size_t(item)];
        if (worker < 0 || worker >= threads) worker_ok = false;
      });
      EXPECT_TRUE(tally.Complete()) << threads << " threads, " << items << " items";
      EXPECT_TRUE(worker_ok);
    }
  }
}

TEST(ThreadPool, TheTallySeesASkippedAndARepeatedItem) {
  ThreadPool pool(2);
  Tally skipped(8), repeated(8);
  pool.Run(7, [&](int64_t item, int) { ++skipped.runs[size_t(item)]; });
  pool.Run(8, [&](int64_t item, int) { repeated.runs[size_t(item)] += item == 3 ? 2 : 1; });
  EXPECT_FALSE(skipped.Complete());
  EXPECT_FALSE(repeated.Complete());
}

TEST(ThreadPool, ManyShortJobsOfChangingSizeDoNotMix) {
  for (int threads : {2, 5}) {  // 5: more than processors here, threads wake in the middle of later jobs
    ThreadPool pool(threads);
    std::vector<int64_t> out(17);
    for (int64_t job = 0; job < 3000; ++job) {
      const int64_t items = 1 + job % 17;
      std::fill(out.begin(), out.end(), -1);
      pool.Run(items, [&](int64_t item, int) { out[size_t(item)] = job * 100 + item; });
      for (int64_t i = 0; i < 17; ++i) ASSERT_EQ(out[size_t(i)], i < items ? job * 100 + i : -1);
    }
  }
}

TEST(ThreadPool, WorkersHelp) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Both items wait for each other: one thread alone would never finish.
  pool.Run(2, [&](int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

TEST(ThreadPool, UnevenItemsAreSharedOut) {
  ThreadPool pool(2);
  std::atomic<int> finished{0};
  // Item 0 lasts until all others are done: the thread that is not held by it must take every one of them.
  pool.Run(64, [&](int64_t item, int) {
    while (item == 0 && finished < 63) std::this_thread::yield();
    ++finished;
  });
  EXPECT_EQ(finished, 64);
}

TEST(ThreadPool, AnIdlePoolUsesNoCpu) {
  ThreadPool pool(2);
  pool.Run(8, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = CpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(CpuSeconds() - before, 0.03);  // a spinning worker would take 0.3
  // And it wakes again.
  Tally tally(100);
  pool.Run(100, [&](int64_t item, int) { ++tally.runs[size_t(item)]; });
  EXPECT_TRUE(tally.Complete());
}

TEST(ThreadPool, MoreThreadsThanProcessorsNeitherHangNorSpin) {
  ThreadPool pool(AvailableCpus() * 8);
  const auto start = Clock::now();
  int64_t sum = 0;
  for (int job = 0; job < 2000; ++job) {
    std::vector<int64_t> out(32);
    pool.Run(32, [&](int64_t item, int) { out[size_t(item)] = item; });
    sum += std::accumulate(out.begin(), out.end(), int64_t{0});
  }
  EXPECT_EQ(sum, int64_t{2000} * 496);
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - start).count(), 10.0);
}

TEST(ThreadPool, TheCallerKeepsItsAffinity) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const int cpus = AvailableCpus();
  ThreadPool pool(cpus);
  pool.Run(16, [](int64_t, int) {});
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  EXPECT_EQ(AvailableCpus(), cpus);
  EXPECT_GE(cpus, 1);
}

TEST(ThreadPool, WorkersArePinnedInsideTheMask) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof(mask), &mask), 0);
  if (CPU_COUNT(&mask) < 2) GTEST_SKIP() << "one processor: nothing to pin";
  ThreadPool pool(2);
  std::atomic<int> arrived{0}, cpus_of_worker{0};
  pool.Run(2, [&](int64_t, int worker) {
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof(mine), &mine) == 0 && worker == 1) {
      cpus_of_worker = CPU_COUNT(&mine);
      for (int c = 0; c < CPU_SETSIZE; ++c) EXPECT_TRUE(!CPU_ISSET(c, &mine) || CPU_ISSET(c, &mask));
    }
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(cpus_of_worker, 1);
}

TEST(ThreadPoolDeathTest, RunInsideRunIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  ThreadPool pool(2);
  EXPECT_DEATH(pool.Run(2, [&](int64_t, int) { pool.Run(2, [](int64_t, int) {}); }), "Run inside Run");
}

class Cgroup : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "nibble_cgroup_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(Cgroup, Version2) {
  EXPECT_EQ(CgroupCpuLimit("0::/a/b\n", root_), 0);
  Write("/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(CgroupCpuLimit("0::/a/b\n", root_), 0);
  Write("/a/cpu.max", "350000 100000\n");  // the parent limits, rounded up
  EXPECT_EQ(CgroupCpuLimit("0::/a/b\n", root_), 4);
  Write("/a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(CgroupCpuLimit("0::/a/b\n", root_), 1);
  EXPECT_EQ(CgroupCpuLimit("0::/\n", root_), 0);
}

TEST_F(Cgroup, Version1AndPathsOfTheHost) {
  Write("/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/cpu/cpu.cfs_period_us", "100000\n");
  const std::string text = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n3:cpuset:/docker/x\n";
  EXPECT_EQ(CgroupCpuLimit(text, root_), 0);
  // The path names the host's tree and does not exist here; the mount is our own group.
  Write("/cpu/cpu.cfs_quota_us", "200000\n");
  EXPECT_EQ(CgroupCpuLimit(text, root_), 2);
  Write("/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "100000\n");
  Write("/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupCpuLimit(text, root_), 1);
}

TEST_F(Cgroup, GarbageIsNoLimit) {
  Write("/a/cpu.max", "zebra\n");
  EXPECT_EQ(CgroupCpuLimit("0::/a\nnonsense\n:\n", root_), 0);
  EXPECT_EQ(CgroupCpuLimit("", root_), 0);
}

}  // namespace
}  // namespace nibble
