// SPDX-License-Identifier: Apache-2.0
#include "io/fingerprint.h"

#include <xxhash.h>

namespace nibble::io {
namespace {

constexpr uint64_t kWhole = uint64_t{1} << 20, kPiece = uint64_t{16} << 10, kPieces = 64;

void AddContent(const TensorInfo& t, XXH3_state_t* state) {
  if (t.bytes <= kWhole) {
    XXH3_128bits_update(state, t.data, t.bytes);
    return;
  }
  for (uint64_t i = 0; i < kPieces; ++i)
    XXH3_128bits_update(state, t.data + (t.bytes - kPiece) / (kPieces - 1) * i, kPiece);
}

}  // namespace

Result<std::string> Fingerprint(const Weights& weights) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              &XXH3_freeState);
  if (state == nullptr) return Error(Code::kOutOfMemory, "no memory for a fingerprint");
  XXH3_128bits_reset(state.get());
  for (const TensorInfo& t : weights.tensors()) {
    const std::string head = fmt::format("{} {} {}\n", t.name, t.dtype, fmt::join(t.shape, "x"));
    XXH3_128bits_update(state.get(), head.data(), head.size());
    AddContent(t, state.get());
    weights.Release(t);
  }
  NIBBLE_RETURN_IF_ERROR(weights.CheckUnchanged());
  const XXH128_hash_t h = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

}  // namespace nibble::io
