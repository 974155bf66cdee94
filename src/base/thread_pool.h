// SPDX-License-Identifier: Apache-2.0
// Floor 0. A pinned pool that spins for a moment and then sleeps. Work items are independent, so results do
// not depend on how many threads run them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace nibble {

struct NumaPlan;  // numa.h

class ThreadPool {
 public:
  // threads >= 1; the caller of Run is one of them and stays where the system puts it. The others are pinned
  // to CPUs of the process's affinity mask when there are at least as many of those as threads. Where the
  // system refuses a thread, the pool is smaller: see threads().
  explicit ThreadPool(int threads);
  // Threads where the plan says, the caller of Run on the processors of the first one's node. The items of a
  // Run are cut into one range a node, in order; a thread starts with its own node's and helps the others
  // then.
  explicit ThreadPool(const NumaPlan& plan);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls f(item, worker) for every item in [0, items), worker in [0, threads()); returns when all are done.
  // Items of a node start in ascending order. Allocates nothing. Not reentrant; one caller at a time; items <
  // 2^32.
  template <class F>
  void Run(int64_t items, F&& f) {
    RunErased(
        items,
        [](void* ctx, int64_t item, int worker) {
          (*static_cast<std::remove_reference_t<F>*>(ctx))(item, worker);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Fn = void (*)(void* ctx, int64_t item, int worker);
  void RunErased(int64_t items, Fn fn, void* ctx);
  void Start(int threads);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Of the process's affinity mask, ascending.
std::vector<int> AffinityCpus();

// Processors this process may use: affinity mask and cgroup CPU limit, at least 1.
int AvailableCpus();

// The CPU limit of a cgroup, in processors rounded up; 0 when there is none. `proc_cgroup` is the text of
// /proc/self/cgroup and `mount` is where the hierarchies are mounted (/sys/fs/cgroup). Reads version 2
// (cpu.max) and version 1 (cpu.cfs_quota_us), of the group and of all its ancestors.
int CgroupCpuLimit(const std::string& proc_cgroup, const std::string& mount);

}  // namespace nibble
