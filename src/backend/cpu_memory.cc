// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: memory, huge pages, and which node holds what.
#include "backend/cpu_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <fstream>
#include <sstream>

#include "backend/cpu_backend.h"
#include "base/check.h"
#include "quant/weight/pack.h"

namespace nibble {
namespace {

// From here on memory is asked for in huge pages: activations and KV pages are read and written in short
// pieces far apart, each of which would need an address translation of its own.
constexpr size_t kHugeFrom = 4 << 20;
// Weights lie in slabs, which Alloc takes from huge pages: with small ones a stream of weights waits for an
// address translation every 4 KiB, where the processor's prefetching stops, too.
constexpr size_t kHugePage = 2 << 20, kSlab = 64 << 20;

std::string ReadProc(const char* path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The choice in brackets: "always [madvise] never".
std::string HugePagePolicy() {
  const std::string text = ReadProc("/sys/kernel/mm/transparent_hugepage/enabled");
  const size_t from = text.find('['), to = text.find(']');
  return from == std::string::npos || to < from ? "unknown" : text.substr(from + 1, to - from - 1);
}

}  // namespace

size_t MachineMemory() {
  const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? size_t(pages) * size_t(page_bytes) : 0;
}

Result<Buffer> MapMemory(size_t bytes) {
  if (bytes == 0) return Buffer{};
  const size_t machine = MachineMemory();
  // Pages come on first touch, so the system would promise more than there is and end the process later.
  if (machine != 0 && bytes > machine)
    return Error(Code::kOutOfMemory, "cpu: cannot allocate {} bytes: this machine has {}", bytes, machine);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return Error(Code::kOutOfMemory, "cpu: cannot allocate {} bytes", bytes);
  return Buffer{static_cast<std::byte*>(p), bytes};
}

PagesInUse CountPages(const std::string& smaps, std::span<const Buffer> buffers) {
  PagesInUse sum;
  bool ours = false;
  std::istringstream lines(smaps);
  for (std::string line; std::getline(lines, line);) {
    uintptr_t begin = 0, end = 0;
    const char* last = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data(), last, begin, 16);
    if (error == std::errc{} && at != last && *at == '-') {  // "7f0000000000-7f0000200000 rw-p ..."
      std::from_chars(at + 1, last, end, 16);
      const auto overlaps = [&](const Buffer& b) {
        const auto from = reinterpret_cast<uintptr_t>(b.data);
        return from < end && begin < from + b.bytes;
      };
      ours = std::any_of(buffers.begin(), buffers.end(), overlaps);
      continue;
    }
    const auto kib = [&line](const char* key) -> size_t {  // "Rss:   640 kB"
      return line.starts_with(key) ? std::strtoull(line.c_str() + std::strlen(key), nullptr, 10) << 10 : 0;
    };
    if (ours) sum.resident += kib("Rss:"), sum.huge += kib("AnonHugePages:");
  }
  return sum;
}

Result<Buffer> CpuBackend::Alloc(size_t bytes) {
  NIBBLE_ASSIGN(const Buffer b, MapMemory(bytes));
  if (bytes < kHugeFrom) return b;
  // A refusal, where the system has no huge pages to give, only costs speed: ExplainMemory tells.
  (void)madvise(b.data, bytes, MADV_HUGEPAGE);
  if (node_memory_.places()) {
    const Status placed = node_memory_.Spread(b.data, bytes);
    if (!placed.ok()) {
      Free(b);
      return placed;
    }
  }
  large_.push_back(b);
  return b;
}

void CpuBackend::Free(Buffer b) {
  std::erase_if(large_, [&b](const Buffer& other) { return other.data == b.data; });
  if (b.data != nullptr) NIBBLE_CHECK(munmap(b.data, b.bytes) == 0, "Free of what Alloc did not give");
}

Result<weight::PackedWeight> CpuBackend::Pack(const weight::WeightView& view, MatmulArith arith) {
  NIBBLE_ASSIGN(const std::vector<weight::PackedWeight> one, PackTogether({&view, 1}, arith));
  return one[0];
}

Result<std::vector<weight::PackedWeight>> CpuBackend::PackTogether(std::span<const weight::WeightView> views,
                                                                   MatmulArith arith) {
  std::vector<weight::PackedWeight> packed;
  int64_t first = 0, total = 0;
  for (const weight::WeightView& view : views) total += weight::Panels(view.n);
  for (const weight::WeightView& view : views) {
    NIBBLE_RETURN_IF_ERROR(weight::CheckShape(view.storage, view.n, view.k));
    const weight::Layout layout = weight::LayoutFor(view.storage, arith == MatmulArith::kBF16);
    NIBBLE_ASSIGN(std::byte * memory, TakeWeights(weight::PackedBytes(view, layout)));
    NIBBLE_RETURN_IF_ERROR(PlaceShares(weight::PackedAt(layout, view.n, view.k, memory), first, total));
    packed.push_back(weight::Pack(view, layout, memory));
    first += weight::Panels(view.n);
  }
  return packed;
}

// Pages of a mapped file lie where they were first read, so that placing them takes a copy.
Result<std::vector<weight::PackedWeight>> CpuBackend::Adopt(std::span<const weight::PackedWeight> packed) {
  if (!node_memory_.places()) return Backend::Adopt(packed);
  std::vector<weight::PackedWeight> copies;
  int64_t first = 0, total = 0;
  for (const weight::PackedWeight& w : packed) total += weight::Panels(w.n);
  for (const weight::PackedWeight& w : packed) {
    NIBBLE_ASSIGN(std::byte * memory, TakeWeights(w.bytes));
    copies.push_back(weight::PackedAt(w.layout, w.n, w.k, memory));
    NIBBLE_RETURN_IF_ERROR(PlaceShares(copies.back(), first, total));
    memcpy(memory, w.codes, w.bytes);
    first += weight::Panels(w.n);
  }
  return copies;
}

// 64-byte aligned, from the last slab or a new one. What a slab has left over is never touched and takes no
// memory.
Result<std::byte*> CpuBackend::TakeWeights(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > weights_left_) {
    const size_t slab = std::max(bytes, kSlab) + kHugePage;
    NIBBLE_ASSIGN(Buffer memory, Alloc(slab));
    weights_.push_back(memory);
    const size_t skip = -reinterpret_cast<uintptr_t>(memory.data) % kHugePage;
    weights_next_ = memory.data + skip;
    weights_left_ = slab - skip;
  }
  weights_left_ -= bytes;
  return std::exchange(weights_next_, weights_next_ + bytes);
}

// Panels [first, ...) of `total` that Linear cuts into one range a node, as the pool does: each range where
// its node's threads are. Huge pages stay whole: a share may be off by half of one.
Status CpuBackend::PlaceShares(const weight::PackedWeight& w, int64_t first, int64_t total) const {
  const int64_t panels = weight::Panels(w.n), nodes = node_memory_.nodes();
  for (int node = 0; node < nodes; ++node) {
    const int64_t from = std::clamp<int64_t>(total * node / nodes - first, 0, panels);
    const int64_t to = std::clamp<int64_t>(total * (node + 1) / nodes - first, 0, panels);
    const auto boundary = [&](int64_t panel) {
      const auto at = reinterpret_cast<uintptr_t>(w.codes) + w.bytes / size_t(panels) * size_t(panel);
      return (at + kHugePage / 2) / kHugePage * kHugePage;
    };
    const uintptr_t begin = boundary(from), end = boundary(to);
    if (from < to && begin < end)
      NIBBLE_RETURN_IF_ERROR(node_memory_.Place(reinterpret_cast<std::byte*>(begin), end - begin, node));
  }
  return {};
}

std::vector<std::string> CpuBackend::ExplainMemory() const {
  std::vector<std::string> lines;
  if (numa_.mode != NumaMode::kOff) lines.push_back(Describe(numa_));
  const PagesInUse pages = CountPages(ReadProc("/proc/self/smaps"), large_);
  lines.push_back(fmt::format(
      "huge pages: {} of {} MiB of weights, cache and work buffers in memory; the system's policy is {}",
      pages.huge >> 20, pages.resident >> 20, HugePagePolicy()));
  return lines;
}

}  // namespace nibble
