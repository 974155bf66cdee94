// SPDX-License-Identifier: Apache-2.0
// Tests. Memory nodes on machines that are not here: trees of files as /sys has them, plans for them, a pool
// that starts with its own node's items, and memory placed by a system call that only writes down what it was
// told.
#include "base/numa.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <set>

#include "backend/cpu_backend.h"
#include "base/thread_pool.h"
#include "kernels/cpu/kernels.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using Cpus = std::vector<int>;

// The affinity of this thread, which a pool under a plan changes, comes back at the end.
class KeepAffinity {
 public:
  KeepAffinity() { sched_getaffinity(0, sizeof set_, &set_); }
  ~KeepAffinity() { sched_setaffinity(0, sizeof set_, &set_); }
  KeepAffinity(const KeepAffinity&) = delete;
  KeepAffinity& operator=(const KeepAffinity&) = delete;

 private:
  cpu_set_t set_;
};

// SYS/devices/system/node with these lists of processors; "" is a node of memory alone.
std::string MakeSys(const TempDir& dir, const std::string& online, const std::vector<std::string>& lists) {
  const std::string nodes = dir / "devices/system/node";
  std::filesystem::create_directories(nodes);
  WriteTestFile(nodes + "/online", online + "\n");
  for (size_t i = 0; i < lists.size(); ++i) {
    const std::string node = nodes + "/node" + std::to_string(i);
    std::filesystem::create_directory(node);
    WriteTestFile(node + "/cpulist", lists[i] + "\n");
  }
  return dir.path();
}

Cpus Range(int first, int last) {
  Cpus cpus(static_cast<size_t>(last - first + 1));
  std::iota(cpus.begin(), cpus.end(), first);
  return cpus;
}

std::string Join(const Cpus& cpus) { return fmt::format("{}", fmt::join(cpus, ",")); }

TEST(Numa, ListsOfProcessors) {
  const std::pair<const char*, Cpus> good[] = {{"", {}},
                                               {"0", {0}},
                                               {"0-3,8,10-11", {0, 1, 2, 3, 8, 10, 11}},
                                               {"5,1-2,2", {1, 2, 5}},
                                               {"65535", {65535}}};
  for (const auto& [text, cpus] : good) {
    const auto list = ParseCpuList(text);
    ASSERT_TRUE(list.ok()) << text;
    EXPECT_EQ(*list, cpus) << text;
  }
  for (const char* text :
       {"a", "1-", "-1", "3-1", "1,", ",1", "1 2", "1--2", "65536", "0-99999999999", "0x1", "1-2-3"})
    EXPECT_FALSE(ParseCpuList(text).ok()) << text;
}

TEST(Numa, NodesOfATree) {
  const TempDir dir;
  const std::string sys = MakeSys(dir, "0-2", {"0-3,8-11", "4-7,12-15", ""});
  const auto all = ReadNumaNodes(sys, Range(0, 15));
  ASSERT_TRUE(all.ok()) << all.status().message();
  ASSERT_EQ(all->size(), 2u) << "a node without processors runs nothing";
  EXPECT_EQ(Join((*all)[1].cpus), "4,5,6,7,12,13,14,15");
  const auto some = ReadNumaNodes(sys, Cpus{5, 6, 20});
  ASSERT_TRUE(some.ok());
  ASSERT_EQ(some->size(), 1u);
  EXPECT_EQ((*some)[0].id, 1);
  EXPECT_EQ(Join((*some)[0].cpus), "5,6");
  EXPECT_FALSE(ReadNumaNodes(sys, Cpus{20}).ok()) << "no processor of any node";

  const TempDir none;  // a kernel without NUMA
  const auto one = ReadNumaNodes(none.path(), Range(0, 1));
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->size(), 1u);

  const TempDir bad;
  const auto broken = ReadNumaNodes(MakeSys(bad, "0", {"0-x"}), Range(0, 1));
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.status().message().find("node0/cpulist"), std::string::npos) << broken.status().message();
  const TempDir missing;
  EXPECT_FALSE(ReadNumaNodes(MakeSys(missing, "0-1", {"0-1"}), Range(0, 1)).ok()) << "node1 has no list";
}

const std::vector<NumaNode> kTwo = {{0, Range(0, 3)}, {1, Range(4, 7)}};
const std::vector<NumaNode> kUneven = {{0, {0}}, {3, Range(4, 7)}};

std::string PlanText(const NumaPlan& plan) {
  std::string text;
  for (size_t i = 0; i < plan.cpus.size(); ++i)
    text += fmt::format("{}{}:{}", i ? " " : "", plan.node_of[i], Join(plan.cpus[i]));
  return text;
}

TEST(Numa, Plans) {
  struct Case {
    NumaMode mode;
    const std::vector<NumaNode>& nodes;
    int threads, limit, here;
    const char* plan;
  };
  const Case cases[] = {
      {NumaMode::kDistribute, kTwo, 0, 8, 0, "0:0 1:4 0:1 1:5 0:2 1:6 0:3 1:7"},
      {NumaMode::kDistribute, kTwo, 3, 8, 0, "0:0 1:4 0:1"},
      {NumaMode::kDistribute, kTwo, 0, 3, 0, "0:0 1:4 0:1"},  // what a cgroup grants
      {NumaMode::kDistribute, kUneven, 0, 8, 0, "0:0 1:4 1:5 1:6 1:7"},
      {NumaMode::kIsolate, kTwo, 0, 8, 5, "0:4 0:5 0:6 0:7"},
      {NumaMode::kIsolate, kTwo, 0, 2, 5, "0:4 0:5"},
      {NumaMode::kIsolate, kTwo, 1, 8, 2, "0:0"},
      {NumaMode::kNumactl, kTwo, 2, 8, 0, "0:0 1:4"},
  };
  for (const Case& c : cases) {
    const auto plan = PlanNuma(c.mode, c.nodes, c.threads, c.limit, c.here);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(PlanText(*plan), c.plan) << ToString(c.mode);
  }
}

TEST(Numa, WhatAMachineHasNotIsRefused) {
  const std::vector<NumaNode> one = {{0, Range(0, 1)}};
  for (const NumaMode mode : {NumaMode::kDistribute, NumaMode::kIsolate}) {
    const auto plan = PlanNuma(mode, one, 0, 2, 0);
    ASSERT_FALSE(plan.ok());
    EXPECT_EQ(plan.status().code(), Code::kUnsupported);
    EXPECT_NE(plan.status().message().find(std::string("--numa ") + ToString(mode)), std::string::npos);
  }
  EXPECT_TRUE(PlanNuma(NumaMode::kNumactl, one, 0, 2, 0).ok()) << "which asks for no nodes";
  const auto many = PlanNuma(NumaMode::kIsolate, kTwo, 5, 8, 0);
  ASSERT_FALSE(many.ok());
  EXPECT_EQ(many.status().message(), "--numa isolate: 5 threads for 4 processors");
  EXPECT_FALSE(PlanNuma(NumaMode::kIsolate, kTwo, 1, 8, 99).ok());

  const auto nodes = ReadNumaNodes("/sys", AffinityCpus());
  ASSERT_TRUE(nodes.ok()) << nodes.status().message();
  const KeepAffinity keep;
  const auto here = MakeCpuBackend(1, NumaMode::kDistribute);
  if (nodes->size() == 1) {
    EXPECT_FALSE(here.ok());
    EXPECT_NE(here.status().message().find("leave the option out"), std::string::npos);
  }
  EXPECT_TRUE(MakeCpuBackend(1, NumaMode::kNumactl).ok());
}

// Nodes that split the processors of this machine, or share the only one.
NumaPlan SplitHere(int nodes, int threads) {
  const Cpus cpus = AffinityCpus();
  NumaPlan plan{.mode = NumaMode::kDistribute, .nodes = {}, .node_of = {}, .cpus = {}};
  for (int n = 0; n < nodes; ++n) plan.nodes.push_back({n, {cpus[size_t(n) % cpus.size()]}});
  for (int t = 0; t < threads; ++t) {
    plan.node_of.push_back(t % nodes);
    plan.cpus.push_back(plan.nodes[size_t(t % nodes)].cpus);
  }
  return plan;
}

TEST(Numa, EveryItemOnceForAnyNodesAndThreads) {
  const KeepAffinity keep;
  for (const int nodes : {1, 2, 3, 5})
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(SplitHere(nodes, threads));
      for (const int64_t items : {0, 1, 2, 3, 4, 5, 64, 1001}) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(items));
        for (int again = 0; again < 20; ++again) pool.Run(items, [&](int64_t i, int) { ++runs[size_t(i)]; });
        for (const auto& r : runs) ASSERT_EQ(r, 20) << nodes << " nodes, " << threads << " threads";
      }
    }
}

// The first item of each thread waits until the other has one, so that each has begun where its node does.
TEST(Numa, ThreadsStartWithTheirOwnNodesItems) {
  if (AffinityCpus().size() < 2) GTEST_SKIP() << "needs two processors";
  const KeepAffinity keep;
  ThreadPool pool(SplitHere(2, 2));
  ASSERT_EQ(pool.threads(), 2);
  constexpr int64_t kItems = 101;
  std::array<std::atomic<int64_t>, 2> first{-1, -1}, cpu{-1, -1};
  std::atomic<int> started{0};
  pool.Run(kItems, [&](int64_t item, int worker) {
    int64_t none = -1;
    if (!first[size_t(worker)].compare_exchange_strong(none, item)) return;
    cpu[size_t(worker)] = sched_getcpu();
    ++started;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (started < 2 && std::chrono::steady_clock::now() < end) sched_yield();
  });
  ASSERT_EQ(started, 2);
  EXPECT_EQ(first[0], 0);
  EXPECT_EQ(first[1], kItems / 2);
  EXPECT_EQ(cpu[0], AffinityCpus().empty() ? -1 : SplitHere(2, 2).cpus[0][0]);
  EXPECT_NE(cpu[0], cpu[1]);
}

// ---- memory ----

struct Bound {
  uintptr_t begin, end;
  int mode;
  std::set<int> nodes;
};
std::vector<Bound> g_bound;
int g_refuse = 0;  // an errno

long WriteDown(void* address, unsigned long bytes, int mode, const unsigned long* nodes, unsigned long most,
               unsigned flags) {
  if (g_refuse != 0) {
    errno = g_refuse;
    return -1;
  }
  const auto begin = reinterpret_cast<uintptr_t>(address);
  Bound b{begin, begin + bytes, mode, {}};
  for (unsigned long i = 0; i + 1 < most; ++i)
    if (nodes[i / 64] >> (i % 64) & 1) b.nodes.insert(static_cast<int>(i));
  EXPECT_EQ(flags, 0u);
  g_bound.push_back(b);
  return 0;
}

constexpr int kPreferred = 1, kInterleave = 3;  // linux/mempolicy.h

NumaPlan PlanOf(NumaMode mode, const std::vector<NumaNode>& nodes) { return *PlanNuma(mode, nodes, 0, 8, 4); }

TEST(Numa, PagesGoToTheNodesOfThePlan) {
  g_bound.clear();
  auto* p = reinterpret_cast<std::byte*>(uintptr_t{0x10000100});
  const NumaMemory memory(PlanOf(NumaMode::kDistribute, kUneven), &WriteDown);
  ASSERT_EQ(memory.nodes(), 2);
  EXPECT_TRUE(memory.Spread(p, 0x5000).ok());
  EXPECT_TRUE(memory.Place(p, 0x5000, 1).ok());
  EXPECT_TRUE(memory.Place(p, 0x800, 0).ok()) << "no whole page: nothing to do";
  ASSERT_EQ(g_bound.size(), 2u);
  for (const Bound& b : g_bound) EXPECT_TRUE(b.begin == 0x10001000 && b.end == 0x10005000);
  EXPECT_EQ(g_bound[0].mode, kInterleave);
  EXPECT_EQ(g_bound[0].nodes, (std::set<int>{0, 3}));
  EXPECT_EQ(g_bound[1].mode, kPreferred);
  EXPECT_EQ(g_bound[1].nodes, (std::set<int>{3}));

  const NumaMemory isolated(PlanOf(NumaMode::kIsolate, kTwo), &WriteDown);
  g_bound.clear();
  EXPECT_TRUE(isolated.Spread(p, 0x5000).ok());
  ASSERT_EQ(g_bound.size(), 1u);
  EXPECT_EQ(g_bound[0].mode, kPreferred);
  EXPECT_EQ(g_bound[0].nodes, (std::set<int>{1}));
  EXPECT_FALSE(NumaMemory(PlanOf(NumaMode::kNumactl, kTwo), &WriteDown).places()) << "numactl has said where";
  EXPECT_FALSE(NumaMemory(NumaPlan{}, &WriteDown).places());
}

TEST(Numa, ARefusedPolicyIsAnError) {
  const NumaMemory memory(PlanOf(NumaMode::kDistribute, kTwo), &WriteDown);
  EXPECT_TRUE(memory.Probe().ok());
  g_refuse = EPERM;
  const Status refused = memory.Probe();
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  EXPECT_NE(refused.message().find("SYS_NICE"), std::string::npos) << refused.message();
  const KeepAffinity keep;
  CpuBackend backend(*cpu::AllIsas().back(), SplitHere(2, 1), &WriteDown);
  EXPECT_FALSE(backend.Alloc(size_t{8} << 20).ok());
  EXPECT_TRUE(backend.Alloc(100).ok()) << "small memory is not placed";
  g_refuse = 0;
}

// Weights of one list: the shares that lie on a node are those of the panels that its threads start with.
TEST(Numa, WeightsLieWhereTheirThreadsAre) {
  const KeepAffinity keep;
  CpuBackend backend(*cpu::AllIsas().back(), SplitHere(2, 2), &WriteDown);
  constexpr int kInputs = 1024, kOutputs[] = {6144, 2048};  // 24 and 8 MiB of f32: the middle is in the first
  std::vector<std::vector<float>> values;
  std::vector<weight::WeightView> views;
  for (const int n : kOutputs) {
    values.emplace_back(size_t(n) * kInputs, 1.0f);
    views.push_back({.storage = weight::Storage::kF32,
                     .n = n,
                     .k = kInputs,
                     .codes = reinterpret_cast<const std::byte*>(values.back().data())});
  }
  g_bound.clear();
  const auto packed = backend.PackTogether(views, MatmulArith::kF32);
  ASSERT_TRUE(packed.ok());
  std::vector<Bound> shares;
  for (const Bound& b : g_bound)
    if (b.mode == kPreferred) shares.push_back(b);
  ASSERT_EQ(shares.size(), 3u);
  const auto first = reinterpret_cast<uintptr_t>((*packed)[0].codes);
  const auto second = reinterpret_cast<uintptr_t>((*packed)[1].codes);
  constexpr uintptr_t kMiB = 1 << 20;
  const auto near = [](uintptr_t a, uintptr_t b) { return (a > b ? a - b : b - a) <= kMiB; };
  EXPECT_EQ(shares[0].nodes, (std::set<int>{0}));
  EXPECT_TRUE(near(shares[0].begin, first) && near(shares[0].end, first + 16 * kMiB));
  EXPECT_EQ(shares[1].nodes, (std::set<int>{1}));
  EXPECT_TRUE(near(shares[1].begin, first + 16 * kMiB) && near(shares[1].end, first + 24 * kMiB));
  EXPECT_EQ(shares[2].nodes, (std::set<int>{1}));
  EXPECT_TRUE(near(shares[2].begin, second) && near(shares[2].end, second + 8 * kMiB));

  const auto copies = backend.Adopt(*packed);
  ASSERT_TRUE(copies.ok());
  for (size_t i = 0; i < packed->size(); ++i) {
    EXPECT_NE((*copies)[i].codes, (*packed)[i].codes) << "a mapped file cannot be placed";
    EXPECT_EQ(std::memcmp((*copies)[i].codes, (*packed)[i].codes, (*packed)[i].bytes), 0);
  }
  CpuBackend plain(*cpu::AllIsas().back(), 1);
  EXPECT_EQ((*plain.Adopt(*packed))[0].codes, (*packed)[0].codes);
}

// A product is the same bytes under any plan.
TEST(Numa, ProductsAreTheSameUnderAnyPlan) {
  const KeepAffinity keep;
  constexpr int kOutputs = 1000, kInputs = 256, kRows = 3;
  std::vector<float> w(size_t{kOutputs} * kInputs), x(size_t{kRows} * kInputs);
  for (size_t i = 0; i < w.size(); ++i) w[i] = float(int(i * 7919 % 1000) - 500) / 500;
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 104729 % 1000) - 500) / 500;
  const auto product = [&](CpuBackend& backend) {
    const auto packed = backend.Pack({.storage = weight::Storage::kF32,
                                      .n = kOutputs,
                                      .k = kInputs,
                                      .codes = reinterpret_cast<const std::byte*>(w.data())},
                                     MatmulArith::kF32);
    EXPECT_TRUE(packed.ok());
    std::vector<float> y(size_t{kRows} * kOutputs);
    const LinearOut out{&*packed, nullptr,
                        Tensor::Dense(y.data(), DType::kF32, Device::kCpu, {kRows, kOutputs})};
    backend.Linear(Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {kRows, kInputs}), {&out, 1},
                   MatmulArith::kF32);
    return y;
  };
  const cpu::CpuKernels& kernels = **cpu::ChooseIsa();
  CpuBackend plain(kernels, 1);
  const std::vector<float> wanted = product(plain);
  for (const int nodes : {1, 2, 3})
    for (const int threads : {1, 2, 4}) {
      CpuBackend backend(kernels, SplitHere(nodes, threads), &WriteDown);
      const std::vector<float> y = product(backend);
      EXPECT_EQ(std::memcmp(y.data(), wanted.data(), y.size() * sizeof(float)), 0) << nodes << " " << threads;
    }
}

TEST(Numa, SaysWhatItDid) {
  EXPECT_EQ(Describe(PlanOf(NumaMode::kDistribute, kUneven)),
            "numa: distribute, 1 thread on node 0, 4 threads on node 3; weights in shares, other memory page "
            "by page");
  EXPECT_EQ(Describe(PlanOf(NumaMode::kIsolate, kTwo)), "numa: isolate, 4 threads on node 1; memory there");
  const KeepAffinity keep;
  CpuBackend backend(*cpu::AllIsas().back(), SplitHere(2, 1), &WriteDown);
  EXPECT_EQ(backend.ExplainMemory().at(0).rfind("numa: distribute", 0), 0u);
}

}  // namespace
}  // namespace nibble
