// SPDX-License-Identifier: Apache-2.0
// Floor 5. Memory of the CPU backend.
#pragma once
#include <cstddef>

#include "backend/backend.h"

namespace nibble {

size_t MachineMemory();  // bytes; 0: the system does not say

// Zero-filled, taken on first touch, in pages of the ordinary size.
Result<Buffer> MapMemory(size_t bytes);

// How much of some memory is there, and how much of that in huge pages.
struct PagesInUse {
  size_t resident = 0, huge = 0;  // bytes
};
// Of the mappings that overlap one of the buffers, by the text of /proc/self/smaps. The system joins
// neighbours of one kind to one mapping, so a single buffer cannot be told from others like it.
PagesInUse CountPages(const std::string& smaps, std::span<const Buffer> buffers);

}  // namespace nibble
