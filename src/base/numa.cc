// SPDX-License-Identifier: Apache-2.0
#include "base/numa.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "base/printable.h"
#include "base/thread_pool.h"

namespace nibble {
namespace {

constexpr size_t kMaxCpus = 65536;
constexpr int kMaxNodeId = 1023;  // of Linux: MAX_NUMNODES
constexpr size_t kPage = 4096;
// linux/mempolicy.h, which is not installed everywhere.
constexpr int kPreferred = 1, kInterleave = 3;

long SystemMbind(void* address, unsigned long bytes, int mode, const unsigned long* nodes,
                 unsigned long most_nodes, unsigned flags) {
  return syscall(SYS_mbind, address, bytes, mode, nodes, most_nodes, flags);
}

// The text of a file of /sys, which says 4096 bytes of each.
Result<std::string> ReadSys(const std::string& path) {
  std::string text(kPage, '\0');
  NIBBLE_ASSIGN(const File file, File::Open(path));
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = pread(file.fd(), text.data() + size, text.size() - size, static_cast<off_t>(size));
    if (got < 0) return Error(Code::kIo, "{}: {}", path, strerror(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  text.resize(size);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Result<std::vector<int>> ReadList(const std::string& path) {
  NIBBLE_ASSIGN(const std::string text, ReadSys(path));
  auto list = ParseCpuList(text);
  if (!list.ok()) return Error(list.status().code(), "{}: {}", path, list.status().message());
  return list;
}

std::string CountOf(size_t n, const char* what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

// Thread after thread to the nodes in turn, to the next processor of each while it has one.
void Distribute(int threads, NumaPlan* plan) {
  std::vector<size_t> used(plan->nodes.size(), 0);
  size_t node = 0;
  for (int i = 0; i < threads; ++i) {
    while (used[node] == plan->nodes[node].cpus.size()) node = (node + 1) % plan->nodes.size();
    plan->node_of.push_back(static_cast<int>(node));
    plan->cpus.push_back({plan->nodes[node].cpus[used[node]++]});
    node = (node + 1) % plan->nodes.size();
  }
}

}  // namespace

const char* ToString(NumaMode mode) {
  switch (mode) {
    case NumaMode::kOff:
      return "off";
    case NumaMode::kDistribute:
      return "distribute";
    case NumaMode::kIsolate:
      return "isolate";
    case NumaMode::kNumactl:
      return "numactl";
  }
  return "?";
}

Result<std::vector<int>> ParseCpuList(std::string_view text) {
  std::vector<int> list;
  const auto bad = [&] {
    return Error(Code::kCorrupt, "\"{}\": expected a list such as 0-3,8", Printable(text));
  };
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view part = rest.substr(0, comma);
    if (comma + 1 == rest.size()) return bad();  // a comma at the end
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    int first = 0, last = 0;
    const char* end = part.data() + part.size();
    auto [at, error] = std::from_chars(part.data(), end, first);
    last = first;
    if (error == std::errc{} && at != end && *at == '-') {
      const auto second = std::from_chars(at + 1, end, last);
      at = second.ptr, error = second.ec;
    }
    if (error != std::errc{} || at != end || first < 0 || last < first) return bad();
    if (size_t(last) >= kMaxCpus) return bad();
    for (int i = first; i <= last; ++i) list.push_back(i);
  }
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  return list;
}

Result<std::vector<NumaNode>> ReadNumaNodes(const std::string& sys, std::span<const int> allowed) {
  const std::string folder = sys + "/devices/system/node";
  std::vector<int> ids;
  auto online = ReadList(folder + "/online");
  if (!online.ok() && online.status().code() != Code::kNotFound) return online.status();
  if (!online.ok()) return std::vector<NumaNode>{{0, {allowed.begin(), allowed.end()}}};
  std::vector<NumaNode> nodes;
  for (const int id : *online) {
    if (id > kMaxNodeId) return Error(Code::kCorrupt, "{}/online: node {}", folder, id);
    NIBBLE_ASSIGN(const std::vector<int> cpus, ReadList(fmt::format("{}/node{}/cpulist", folder, id)));
    NumaNode node{id, {}};
    std::copy_if(cpus.begin(), cpus.end(), std::back_inserter(node.cpus),
                 [&](int cpu) { return std::find(allowed.begin(), allowed.end(), cpu) != allowed.end(); });
    if (!node.cpus.empty()) nodes.push_back(std::move(node));  // without: memory alone, or not ours
  }
  if (nodes.empty()) return Error(Code::kCorrupt, "{}: no node has a processor of this process", folder);
  return nodes;
}

Result<NumaPlan> PlanNuma(NumaMode mode, std::span<const NumaNode> nodes, int threads, int limit, int here) {
  NIBBLE_CHECK(mode != NumaMode::kOff && !nodes.empty() && threads >= 0 && limit >= 1, "a plan for nothing");
  if (mode != NumaMode::kNumactl && nodes.size() == 1)
    return Error(Code::kUnsupported,
                 "--numa {}: the processors of this process are all on node {}; leave the option out",
                 ToString(mode), nodes[0].id);
  NumaPlan plan{.mode = mode, .nodes = {nodes.begin(), nodes.end()}};
  if (mode == NumaMode::kIsolate) {
    const auto has_here = [here](const NumaNode& node) {
      return std::find(node.cpus.begin(), node.cpus.end(), here) != node.cpus.end();
    };
    const auto own = std::find_if(nodes.begin(), nodes.end(), has_here);
    if (own == nodes.end())
      return Error(Code::kUnsupported, "--numa isolate: processor {} is on no node of this process", here);
    plan.nodes = {*own};
  }
  size_t cpus = 0;
  for (const NumaNode& node : plan.nodes) cpus += node.cpus.size();
  if (size_t(threads) > cpus)
    return Error(Code::kInvalidArgument, "--numa {}: {} for {}", ToString(mode),
                 CountOf(size_t(threads), "thread"), CountOf(cpus, "processor"));
  Distribute(threads > 0 ? threads : static_cast<int>(std::min(cpus, size_t(limit))), &plan);
  return plan;
}

Result<NumaPlan> PlanNumaHere(NumaMode mode, int threads) {
  NIBBLE_ASSIGN(const std::vector<NumaNode> nodes, ReadNumaNodes("/sys", AffinityCpus()));
  return PlanNuma(mode, nodes, threads, AvailableCpus(), sched_getcpu());
}

std::string Describe(const NumaPlan& plan) {
  std::string text = fmt::format("numa: {}", ToString(plan.mode));
  for (size_t i = 0; i < plan.nodes.size(); ++i) {
    const auto n = std::count(plan.node_of.begin(), plan.node_of.end(), static_cast<int>(i));
    text += fmt::format(", {} on node {}", CountOf(size_t(n), "thread"), plan.nodes[i].id);
  }
  if (plan.mode == NumaMode::kNumactl) return text + "; memory as the policy of the process says";
  return text +
         (plan.nodes.size() == 1 ? "; memory there" : "; weights in shares, other memory page by page");
}

NumaMemory::NumaMemory(const NumaPlan& plan, Mbind mbind) : mbind_(mbind != nullptr ? mbind : &SystemMbind) {
  if (plan.mode != NumaMode::kDistribute && plan.mode != NumaMode::kIsolate) return;
  for (const NumaNode& node : plan.nodes) nodes_.push_back(node.id);
}

Status NumaMemory::Probe() const {
  if (!places()) return {};
  void* page = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return Error(Code::kOutOfMemory, "numa: no page of memory");
  const Status status = Spread(static_cast<std::byte*>(page), kPage);
  munmap(page, kPage);
  return status;
}

Status NumaMemory::Spread(std::byte* p, size_t bytes) const {
  return Bind(p, bytes, nodes_.size() == 1 ? kPreferred : kInterleave, nodes_);
}

Status NumaMemory::Place(std::byte* p, size_t bytes, int index) const {
  NIBBLE_CHECK(0 <= index && index < nodes(), "a node of the plan");
  return Bind(p, bytes, kPreferred, std::span(nodes_).subspan(size_t(index), 1));
}

Status NumaMemory::Bind(std::byte* p, size_t bytes, int mode, std::span<const int> ids) const {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  if (begin >= end) return {};
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  unsigned long mask[(kMaxNodeId + 1) / kBits] = {};
  for (const int id : ids) mask[size_t(id) / kBits] |= 1ul << (size_t(id) % kBits);
  // The kernel reads one bit less than it is told.
  if (mbind_(reinterpret_cast<void*>(begin), end - begin, mode, mask, kMaxNodeId + 2, 0) == 0) return {};
  const int error = errno;
  return Error(Code::kUnsupported, "--numa: the system refuses to place memory on {} ({}){}",
               CountOf(ids.size(), "node"), strerror(error),
               error == EPERM ? "; a container needs the capability SYS_NICE" : "");
}

}  // namespace nibble
