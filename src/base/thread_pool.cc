// SPDX-License-Identifier: Apache-2.0
// Floor 0. The pool's one job word, its sleep, and the count of processors.
#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/check.h"
#include "base/numa.h"

namespace nibble {
namespace {

// Ops of a decode step follow each other within microseconds; a thread that waits longer than this has
// nothing to do and gives its CPU back.
constexpr std::chrono::microseconds kSpin{40};

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True when `ready` became true within `limit`.
template <class Ready>
bool SpinUntil(std::chrono::nanoseconds limit, Ready ready) {
  if (ready()) return true;
  if (limit.count() == 0) return false;
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {  // the clock costs about as much as this many pauses
      Pause();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// `cpus` ascending.
void PinThisThread(const std::vector<int>& cpus) {
  if (cpus.empty()) return;
  cpu_set_t* set = CPU_ALLOC(cpus.back() + 1);
  NIBBLE_CHECK(set != nullptr, "CPU_ALLOC");
  const size_t bytes = CPU_ALLOC_SIZE(cpus.back() + 1);
  CPU_ZERO_S(bytes, set);
  for (const int cpu : cpus) CPU_SET_S(cpu, bytes, set);
  // A refusal (a mask that shrank meanwhile) only costs speed.
  (void)sched_setaffinity(0, bytes, set);
  CPU_FREE(set);
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// "max 100000", "150000 100000", "-1 100000" -> 0, 2, 0.
int Processors(const std::string& quota_and_period) {
  std::istringstream in(quota_and_period);
  double quota = 0, period = 0;
  if (!(in >> quota >> period) || quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min(1e6, (quota + period - 1) / period));
}

}  // namespace

// One 64-bit word holds the whole state of a job, or of a node's part of it: number of the job (high half)
// and items not yet claimed (low half). A thread claims an item by lowering the word with compare-and-swap.
// So a thread that wakes up late, in the middle of the next job or of none, can only claim what is there to
// claim, and Run waits for items, never for threads: a thread that is asleep or has lost its CPU holds nobody
// up.
struct ThreadPool::Impl {
  struct alignas(64) Claims {
    std::atomic<uint64_t> word{0};
  };
  std::vector<Claims> claims = std::vector<Claims>(1);  // one a node
  alignas(64) std::atomic<uint32_t> done{0};            // items finished
  alignas(64) std::atomic<uint32_t> job{0};             // what idle threads watch; raised once a Run
  // Of the current job. Written while no item is unclaimed and none runs, so a claim makes them stable.
  alignas(64) std::atomic<uint32_t> items{0};
  std::atomic<Fn> fn{nullptr};
  std::atomic<void*> ctx{nullptr};
  std::atomic<bool> stop{false}, busy{false};
  std::chrono::nanoseconds spin{0};
  struct Worker {
    Impl* pool;
    int index, node;
    std::vector<int> cpus;  // empty: not pinned
    pthread_t thread;
  };
  std::vector<Worker> workers;
  // Of the caller of Run, under a plan.
  int caller_node = 0;
  std::vector<int> caller_cpus;
  pthread_t caller{};

  // Where node number `node` begins among `total` items.
  uint32_t Begin(size_t node, uint32_t total) const {
    return uint32_t(uint64_t{total} * node / claims.size());
  }
  void Work(int worker, int node);
  void Loop(const Worker& worker);
};

void ThreadPool::Impl::Work(int worker, int node) {
  // While `finished` is not yet counted its job is not done, so no word can turn to another job.
  uint32_t finished = 0, total = 0;
  for (size_t i = 0; i < claims.size(); ++i) {
    const size_t from = (size_t(node) + i) % claims.size();
    std::atomic<uint64_t>& word = claims[from].word;
    uint64_t w = word.load(std::memory_order_acquire);
    while (uint32_t(w) != 0) {
      total = items.load(std::memory_order_relaxed);
      const Fn f = fn.load(std::memory_order_relaxed);
      void* const c = ctx.load(std::memory_order_relaxed);
      const int64_t item = int64_t{Begin(from + 1, total)} - uint32_t(w);
      if (!word.compare_exchange_weak(w, w - 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      f(c, item, worker);
      ++finished;
      w = word.load(std::memory_order_acquire);
    }
  }
  if (finished > 0 && done.fetch_add(finished) + finished == total) done.notify_one();
}

void ThreadPool::Impl::Loop(const Worker& worker) {
  while (true) {
    const uint32_t seen = job.load();
    if (stop.load()) return;
    Work(worker.index, worker.node);
    if (!SpinUntil(spin, [&] { return job.load(std::memory_order_relaxed) != seen; })) job.wait(seen);
  }
}

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  NIBBLE_CHECK(threads >= 1, "a pool has at least one thread");
  const std::vector<int> cpus = AffinityCpus();
  const bool pin = static_cast<int>(cpus.size()) >= threads;
  for (int i = 1; i < threads; ++i) {
    std::vector<int> own;
    if (pin) own.push_back(cpus[size_t(i)]);
    impl_->workers.push_back({impl_.get(), i, 0, std::move(own), {}});
  }
  Start(threads);
}

ThreadPool::ThreadPool(const NumaPlan& plan) : impl_(std::make_unique<Impl>()) {
  const size_t threads = plan.node_of.size();
  NIBBLE_CHECK(threads >= 1 && plan.cpus.size() == threads, "a pool has at least one thread");
  impl_->claims = std::vector<Impl::Claims>(plan.nodes.size());
  impl_->caller_node = plan.node_of[0];
  impl_->caller_cpus = plan.nodes[size_t(plan.node_of[0])].cpus;
  for (size_t i = 1; i < threads; ++i)
    impl_->workers.push_back({impl_.get(), static_cast<int>(i), plan.node_of[i], plan.cpus[i], {}});
  Start(static_cast<int>(threads));
}

void ThreadPool::Start(int threads) {
  // With fewer processors than threads, spinning would take time from the thread that is waited for.
  if (threads <= AvailableCpus()) impl_->spin = kSpin;
  for (size_t i = 0; i < impl_->workers.size(); ++i) {
    const auto main = [](void* arg) -> void* {
      const auto* self = static_cast<const Impl::Worker*>(arg);
      PinThisThread(self->cpus);
      self->pool->Loop(*self);
      return nullptr;
    };
    Impl::Worker& worker = impl_->workers[i];
    if (pthread_create(&worker.thread, nullptr, main, &worker) != 0) {
      impl_->workers.resize(i);
      break;
    }
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true);
  impl_->job.fetch_add(1);
  impl_->job.notify_all();
  for (auto& worker : impl_->workers) pthread_join(worker.thread, nullptr);
}

int ThreadPool::threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::RunErased(int64_t items, Fn fn, void* ctx) {
  Impl& p = *impl_;
  NIBBLE_CHECK(items >= 0 && items < (int64_t{1} << 32), "items of a Run");
  NIBBLE_CHECK(!p.busy.exchange(true, std::memory_order_acquire), "Run inside Run, or from two threads");
  if (!p.caller_cpus.empty() && pthread_equal(p.caller, pthread_self()) == 0) {
    PinThisThread(p.caller_cpus);
    p.caller = pthread_self();
  }
  if (items <= 1 || p.workers.empty()) {
    for (int64_t i = 0; i < items; ++i) fn(ctx, i, 0);
    p.busy.store(false, std::memory_order_release);
    return;
  }
  p.items.store(uint32_t(items), std::memory_order_relaxed);
  p.fn.store(fn, std::memory_order_relaxed);
  p.ctx.store(ctx, std::memory_order_relaxed);
  p.done.store(0, std::memory_order_relaxed);
  const uint32_t job = p.job.load(std::memory_order_relaxed) + 1;
  for (size_t node = 0; node < p.claims.size(); ++node) {
    const uint32_t own = p.Begin(node + 1, uint32_t(items)) - p.Begin(node, uint32_t(items));
    p.claims[node].word.store(uint64_t{job} << 32 | own, std::memory_order_release);
  }
  p.job.store(job);  // sequentially consistent: notify_all looks for sleepers after it
  p.job.notify_all();
  p.Work(0, p.caller_node);
  const auto complete = [&] { return p.done.load(std::memory_order_acquire) == uint32_t(items); };
  if (!SpinUntil(p.spin, complete)) {
    for (uint32_t d = p.done.load(); d != uint32_t(items); d = p.done.load()) p.done.wait(d);
  }
  p.busy.store(false, std::memory_order_release);
}

std::vector<int> AffinityCpus() {
  std::vector<int> cpus;
  // CPU_SETSIZE (1024) is too small for the largest machines: the kernel then answers EINVAL.
  for (int size = CPU_SETSIZE; size <= 1 << 20; size *= 2) {
    cpu_set_t* set = CPU_ALLOC(size);
    NIBBLE_CHECK(set != nullptr, "CPU_ALLOC");
    const size_t bytes = CPU_ALLOC_SIZE(size);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; ok && cpu < size; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    CPU_FREE(set);
    if (ok) break;
  }
  return cpus;
}

int CgroupCpuLimit(const std::string& proc_cgroup, const std::string& mount) {
  int limit = 0;
  const auto lower = [&](int n) {
    if (n > 0) limit = limit == 0 ? n : std::min(limit, n);
  };
  std::istringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {  // "4:cpu,cpuacct:/a/b", version 2: "0::/a/b"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const bool v2 = names.empty();
    if (!v2 && ("," + names + ",").find(",cpu,") == std::string::npos) continue;
    // Inside a container the path may be the host's while the mount starts at the container's group: what
    // does not exist is skipped, the mount itself is always looked at.
    std::string path = line.substr(second + 1);
    while (true) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      if (v2) {
        lower(Processors(ReadText(mount + path + "/cpu.max")));
        lower(Processors(ReadText(mount + "/unified" + path + "/cpu.max")));
      } else {
        for (const std::string& dir : {mount + "/cpu" + path, mount + "/" + names + path})
          lower(Processors(ReadText(dir + "/cpu.cfs_quota_us") + " " + ReadText(dir + "/cpu.cfs_period_us")));
      }
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return limit;
}

int AvailableCpus() {
  int n = std::max<int>(1, static_cast<int>(AffinityCpus().size()));
  const int limit = CgroupCpuLimit(ReadText("/proc/self/cgroup"), "/sys/fs/cgroup");
  return limit > 0 ? std::min(n, limit) : n;
}

}  // namespace nibble
