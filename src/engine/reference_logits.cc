// SPDX-License-Identifier: Apache-2.0
#include "engine/reference_logits.h"

#include <cstring>

namespace nibble {

std::span<const float> HostLogits(Engine& engine, Tensor logits, std::vector<float>* staging) {
  NIBBLE_CHECK(logits.rank == 2 && logits.dtype == DType::kF32, "logits are [rows, vocab] f32");
  NIBBLE_CHECK(logits.stride[0] == logits.dim[1] && logits.stride[1] == 1, "logits are dense");
  const auto size = size_t(logits.numel());
  if (logits.device == Device::kCpu) return {logits.as<const float>(), size};
  staging->resize(size);
  engine.backend().Download(static_cast<const std::byte*>(logits.data), staging->data(),
                            size * sizeof(float));
  engine.backend().Sync();
  return *staging;
}

Result<std::span<const float>> ReferenceLogits::Window(size_t index, std::span<const int32_t> tokens,
                                                       const std::function<Status(int64_t rows)>& on_rows) {
  const size_t size = tokens.size() * size_t(engine_.config().vocab);
  if (Kept(index)) {
    NIBBLE_CHECK(kept_[index].size() == size, "another window of the same index");
    return std::span<const float>(kept_[index]);
  }
  current_.resize(size);
  NIBBLE_RETURN_IF_ERROR(engine_.Score(tokens, [&](int64_t first, Tensor logits) -> Status {
    const std::span<const float> block = HostLogits(engine_, logits, &staging_);
    const size_t at = size_t(first) * size_t(logits.dim[1]);
    NIBBLE_CHECK(at + block.size() <= current_.size(), "rows beyond the window");
    std::memcpy(current_.data() + at, block.data(), block.size_bytes());
    return on_rows(logits.dim[0]);
  }));
  if (kept_bytes_ + size * sizeof(float) > keep_bytes_) return std::span<const float>(current_);
  kept_bytes_ += size * sizeof(float);
  if (kept_.size() <= index) kept_.resize(index + 1);
  kept_[index] = std::move(current_);
  current_ = {};
  return std::span<const float>(kept_[index]);
}

}  // namespace nibble
