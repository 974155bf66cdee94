// SPDX-License-Identifier: Apache-2.0
// Floor 2. Names and shape rules of the storage formats.
#include "quant/weight/storage.h"

namespace nibble::weight {
namespace {

struct Row {
  Storage storage;
  const char* name;
  int k_multiple;  // whole groups, or whole blocks of the compute layout
};
constexpr Row kRows[] = {
    {Storage::kF32, "f32", 1},
    {Storage::kF16, "f16", 1},
    {Storage::kBF16, "bf16", 1},
    {Storage::kW4A8Group, "w4a8-g128", kGroup},
    {Storage::kW4A8Channel, "w4a8-chn", 8},
    {Storage::kW8A8, "w8a8", 4},
};

constexpr const Row& Find(Storage s) { return kRows[size_t(s)]; }
constexpr bool InOrder() {
  for (size_t i = 0; i < std::size(kRows); ++i)
    if (size_t(kRows[i].storage) != i) return false;
  return true;
}
static_assert(InOrder());

}  // namespace

const char* Name(Storage s) { return Find(s).name; }

std::optional<Storage> FindStorage(std::string_view name) {
  for (const Row& row : kRows)
    if (name == row.name) return row.storage;
  return std::nullopt;
}

Status CheckShape(Storage s, int64_t n, int64_t k) {
  const Row& row = Find(s);
  if (n < 1 || k < 1 || n > INT32_MAX || k > INT32_MAX)
    return Error(Code::kInvalidArgument, "weight [n={}, k={}]: n and k must lie in 1..{}", n, k, INT32_MAX);
  if (k % row.k_multiple != 0)
    return Error(Code::kUnsupported, "weight [n={}, k={}]: {} needs k to be a multiple of {}", n, k, row.name,
                 row.k_multiple);
  if (IsQuantized(s) && k > kMaxK)
    return Error(Code::kUnsupported,
                 "weight [n={}, k={}]: {} takes k up to {}; beyond it int32 sums overflow", n, k, row.name,
                 kMaxK);
  return {};
}

}  // namespace nibble::weight
