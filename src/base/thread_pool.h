// SPDX-License-Identifier: Apache-2.0
// Floor 0. A pinned pool that spins for a moment and then sleeps. Work items are independent, so results do
// not depend on how many threads run them.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace nibble {

class ThreadPool {
 public:
  // threads >= 1; the caller of Run is one of them. Pinned to CPUs of the process's affinity mask when there
  // are at least as many of those as threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls f(item, worker) for every item in [0, items), worker in [0, threads()); returns when all are done.
  // Allocates nothing. Not reentrant; one caller at a time.
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
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Processors this process may use: affinity mask and cgroup CPU limit, at least 1.
int AvailableCpus();

}  // namespace nibble
