// SPDX-License-Identifier: Apache-2.0
#include "engine/text_stream.h"

#include <algorithm>

namespace nibble {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
    : decoder_(tokenizer), stop_(std::move(stop)) {
  std::erase(stop_, std::string());  // an empty stop string would stop everything
}

size_t TextStream::HeldBack() const {
  size_t held = 0;
  for (const std::string& s : stop_) {
    for (size_t n = std::min(s.size() - 1, pending_.size()); n > held; --n) {
      if (pending_.compare(pending_.size() - n, n, s, 0, n) == 0) held = n;
    }
  }
  return held;
}

std::string_view TextStream::Emit(std::string_view piece) {
  pending_ += piece;
  size_t end = std::string::npos;
  for (const std::string& s : stop_) end = std::min(end, pending_.find(s));
  if (end != std::string::npos) {
    stopped_ = true;
    pending_.resize(end);
  }
  const size_t ready = pending_.size() - (stopped_ ? 0 : HeldBack());
  const size_t before = text_.size();
  text_.append(pending_, 0, ready);
  pending_.erase(0, ready);
  return std::string_view(text_).substr(before);
}

std::string_view TextStream::Push(int32_t id) {
  return stopped_ ? std::string_view() : Emit(decoder_.Push(id));
}

std::string_view TextStream::Finish() {
  if (stopped_) return {};
  const size_t before = text_.size();
  Emit(decoder_.Flush());
  if (!stopped_) text_ += pending_;
  pending_.clear();
  return std::string_view(text_).substr(before);
}

}  // namespace nibble
