// SPDX-License-Identifier: Apache-2.0
#include "engine/text_stream.h"

#include <algorithm>

namespace nibble {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
    : decoder_(tokenizer), stop_(std::move(stop)) {
  constexpr size_t kUsual = 256;  // what a step brings is rarely longer: then nothing is allocated
  pending_.reserve(kUsual), ready_.reserve(kUsual);
}

size_t TextStream::HeldBack() const {
  size_t held = 0;
  for (const std::string& s : stop_) {
    for (size_t n = std::min(s.size(), pending_.size() + 1); n-- > held + 1;) {
      if (pending_.compare(pending_.size() - n, n, s, 0, n) == 0) held = n;
    }
  }
  return held;
}

void TextStream::Emit() {
  size_t end = std::string::npos;
  for (size_t i = 0; i < stop_.size(); ++i) {
    const size_t at = stop_[i].empty() ? std::string::npos : pending_.find(stop_[i]);
    if (at < end) end = at, stop_index_ = int(i);
  }
  if (stopped()) pending_.resize(end);
  const size_t ready = pending_.size() - (stopped() ? 0 : HeldBack());
  ready_.assign(pending_, 0, ready);
  pending_.erase(0, ready);
}

std::string_view TextStream::Push(int32_t id) {
  if (stopped()) return {};
  decoder_.Push(id, &pending_);
  Emit();
  return ready_;
}

std::string_view TextStream::Finish() {
  if (stopped()) return {};
  pending_ += decoder_.Flush();
  Emit();
  if (!stopped()) ready_ += pending_;
  pending_.clear();
  return ready_;
}

}  // namespace nibble
