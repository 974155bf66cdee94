// SPDX-License-Identifier: Apache-2.0
// Floor 0. The one arithmetic for sizes, counts and offsets that come from a file: a result that wrapped is
// remembered, so a whole expression is written plainly and checked once at its end.
#pragma once
#include <cstdint>
#include <optional>

namespace nibble {

class Checked {
 public:
  constexpr Checked(uint64_t value) : value_(value) {}

  friend constexpr Checked operator+(Checked a, Checked b) {
    Checked r(0);
    r.ok_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  friend constexpr Checked operator-(Checked a, Checked b) {  // below zero is an overflow too
    Checked r(0);
    r.ok_ = !__builtin_sub_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    Checked r(0);
    r.ok_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  Checked& operator+=(Checked b) { return *this = *this + b; }
  Checked& operator*=(Checked b) { return *this = *this * b; }

  constexpr bool ok() const { return ok_; }
  // The value, or nullopt if anything on the way to it left [0, 2^64).
  constexpr std::optional<uint64_t> Get() const { return ok_ ? std::optional(value_) : std::nullopt; }

 private:
  uint64_t value_;
  bool ok_ = true;
};

}  // namespace nibble
