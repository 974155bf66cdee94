// SPDX-License-Identifier: Apache-2.0
// Floor 0. The memory nodes of a machine: which processors belong to them, where --numa puts threads and
// memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

// kDistribute: threads and memory over all nodes. kIsolate: both on the node where the program starts.
// kNumactl: threads as the affinity mask says, which numactl or a container sets, and memory as its policy.
enum class NumaMode : uint8_t { kOff, kDistribute, kIsolate, kNumactl };
const char* ToString(NumaMode mode);

struct NumaNode {
  int id = 0;
  std::vector<int> cpus;  // that the process may use, ascending
};

// "0-3,8,10-11" -> 0 1 2 3 8 10 11. kCorrupt for anything else; at most 65536 numbers.
Result<std::vector<int>> ParseCpuList(std::string_view text);

// The nodes that have a processor of `allowed`, from SYS/devices/system/node. A system that tells of no nodes
// has one, 0. kCorrupt names a file that makes no sense.
Result<std::vector<NumaNode>> ReadNumaNodes(const std::string& sys, std::span<const int> allowed);

// Which processors each thread may use, and which nodes get memory.
struct NumaPlan {
  NumaMode mode = NumaMode::kOff;
  std::vector<NumaNode> nodes;  // those that threads run on
  std::vector<int> node_of;     // [threads] index into nodes; thread 0 is the one that calls
  std::vector<std::vector<int>>
      cpus;  // [threads]; one, or those of the node where there are fewer than threads
};

// `threads` 0: as many as `limit` (the processors that a container grants) and the nodes' processors allow.
// `here`: the processor on which the program started. kUnsupported for kDistribute and kIsolate where there
// is one node alone, kInvalidArgument for more threads than the nodes have processors; both say what there
// is.
Result<NumaPlan> PlanNuma(NumaMode mode, std::span<const NumaNode> nodes, int threads, int limit, int here);

// For this process: /sys, its affinity mask, its cgroup. REQUIRES: mode is not kOff.
Result<NumaPlan> PlanNumaHere(NumaMode mode, int threads);

// "numa: distribute, node 0 with 8 threads, node 1 with 8 threads; memory on both"
std::string Describe(const NumaPlan& plan);

// Memory on nodes, through mbind(2): for pages that nobody has touched yet.
class NumaMemory {
 public:
  using Mbind = long (*)(void* address, unsigned long bytes, int mode, const unsigned long* nodes,
                         unsigned long most_nodes, unsigned flags);
  // `mbind`: null: the system's.
  explicit NumaMemory(const NumaPlan& plan, Mbind mbind = nullptr);

  // Whether the system takes policies at all: containers often forbid it. kUnsupported with its reason.
  Status Probe() const;
  bool places() const { return !nodes_.empty(); }
  int nodes() const { return static_cast<int>(nodes_.size()); }
  // Whole pages of [p, p + bytes), evenly over the nodes.
  Status Spread(std::byte* p, size_t bytes) const;
  // The same on node number `index` of the plan, or, when that is full, on another.
  Status Place(std::byte* p, size_t bytes, int index) const;

 private:
  Status Bind(std::byte* p, size_t bytes, int mode, std::span<const int> ids) const;
  std::vector<int> nodes_;  // ids; empty: memory is left to the system
  Mbind mbind_;
};

}  // namespace nibble
