// SPDX-License-Identifier: Apache-2.0
// Tests. What is said of the memory in use: the text of smaps, and of memory that was just touched.
#include "backend/cpu_memory.h"

#include <gtest/gtest.h>

#include <cstring>

namespace nibble {
namespace {

constexpr char kSmaps[] =
    "10000000-10400000 rw-p 00000000 00:00 0 \n"
    "Size:               4096 kB\n"
    "Rss:                3072 kB\n"
    "AnonHugePages:      2048 kB\n"
    "VmFlags: rd wr mr mw me ac sd hg \n"
    "10400000-10900000 rw-p 00000000 00:00 0\n"
    "Rss:                1024 kB\n"
    "AnonHugePages:         0 kB\n"
    "20000000-20400000 rw-p 00000000 00:00 0 \n"
    "Rss:                 512 kB\n"
    "AnonHugePages:       512 kB\n"
    "7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                  [vdso]\n"
    "Rss:                   4 kB\n";

Buffer At(uintptr_t begin, size_t bytes) { return {reinterpret_cast<std::byte*>(begin), bytes}; }

TEST(CpuMemory, PagesOfOurBuffersAlone) {
  const Buffer both = At(0x10000000, 0x800000), last = At(0x20000000, 0x400000);
  const PagesInUse one = CountPages(kSmaps, {&both, 1});
  EXPECT_EQ(one.resident, size_t{4096} << 10);
  EXPECT_EQ(one.huge, size_t{2048} << 10);
  const Buffer all[] = {both, last};
  EXPECT_EQ(CountPages(kSmaps, all).huge, size_t{2560} << 10);
  const Buffer none = At(0x30000000, 0x1000);
  EXPECT_EQ(CountPages(kSmaps, {&none, 1}).resident, 0u);
  EXPECT_EQ(CountPages("", all).resident, 0u);
  EXPECT_EQ(CountPages("no smaps\nRss: 4 kB\n", all).resident, 0u);
}

// The numbers of the line "huge pages: HUGE of RESIDENT MiB of weights, cache and work buffers in memory".
PagesInUse Said(const Backend& backend) {
  PagesInUse pages;
  const std::string line = backend.ExplainMemory().back();
  EXPECT_EQ(sscanf(line.c_str(), "huge pages: %zu of %zu MiB", &pages.huge, &pages.resident), 2) << line;
  return pages;
}

TEST(CpuMemory, TouchedMemoryIsCounted) {
  auto backend = MakeCpuBackend(1);
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ(Said(**backend).resident, 0u);
  constexpr size_t kBytes = 64 << 20;
  const auto memory = (*backend)->Alloc(kBytes);
  ASSERT_TRUE(memory.ok());
  EXPECT_LT(Said(**backend).resident, 4u) << "nothing was touched";
  std::memset(memory->data, 1, kBytes);
  const PagesInUse pages = Said(**backend);
  EXPECT_GE(pages.resident, 60u);
  EXPECT_LE(pages.huge, pages.resident);
  (*backend)->Free(*memory);
  EXPECT_EQ(Said(**backend).resident, 0u) << "it was given back";
}

}  // namespace
}  // namespace nibble
