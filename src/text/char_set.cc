// SPDX-License-Identifier: Apache-2.0
// Floor 5. Set operations, and the split of a range of code points where the shape of its UTF-8 changes.
#include "text/char_set.h"

#include <algorithm>

#include "base/check.h"

namespace nibble {
namespace {

constexpr char32_t kLast = 0x10FFFF, kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

int Encode(char32_t c, std::array<uint8_t, 4>* out) {
  const auto tail = [c](int shift) { return static_cast<uint8_t>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) {
    *out = {static_cast<uint8_t>(c)};
    return 1;
  }
  if (c < 0x800) {
    *out = {static_cast<uint8_t>(0xC0 | (c >> 6)), tail(0)};
    return 2;
  }
  if (c < 0x10000) {
    *out = {static_cast<uint8_t>(0xE0 | (c >> 12)), tail(6), tail(0)};
    return 3;
  }
  *out = {static_cast<uint8_t>(0xF0 | (c >> 18)), tail(12), tail(6), tail(0)};
  return 4;
}

// Every byte of the run varies independently of the others between first and last.
bool IsRun(char32_t first, char32_t last, int bytes) {
  for (int i = 1; i < bytes; ++i) {
    const char32_t low = (char32_t{1} << (6 * i)) - 1;  // the last i bytes
    if ((first & ~low) != (last & ~low) && ((first & low) != 0 || (last & low) != low)) return false;
  }
  return true;
}

void AppendRuns(char32_t first, char32_t last, std::vector<ByteRun>* out) {
  while (true) {
    char32_t end = last;
    for (const char32_t limit : {char32_t{0x7F}, char32_t{0x7FF}, char32_t{0xFFFF}}) {
      if (first <= limit && end > limit) end = limit;
    }
    ByteRun run;
    run.size = static_cast<uint8_t>(Encode(first, &run.lo));
    // Cut where the last i bytes start over, the shortest cut first, until the rest varies freely.
    for (int i = 1; i < run.size && !IsRun(first, end, run.size); ++i) {
      const char32_t low = (char32_t{1} << (6 * i)) - 1;
      if ((first & low) != 0 && (first | low) < end) {
        end = first | low;
      } else if ((end & low) != low && (end & ~low) > first) {
        end = (end & ~low) - 1;
      }
    }
    Encode(end, &run.hi);
    out->push_back(run);
    if (end == last) return;
    first = end + 1;
  }
}

}  // namespace

CharSet::CharSet(std::initializer_list<Range> ranges) {
  for (const Range& r : ranges) Add(r.first, r.last);
}

const CharSet& CharSet::All() {
  static const CharSet all = [] {
    CharSet set{{0, kLast}};
    set.ranges();
    return set;
  }();
  return all;
}

void CharSet::Add(char32_t first, char32_t last) {
  NIBBLE_CHECK(first <= last && last <= kLast, "a range of characters");
  sorted_ = false;
  if (first < kFirstSurrogate && last > kLastSurrogate) {
    ranges_.push_back({first, kFirstSurrogate - 1});
    ranges_.push_back({kLastSurrogate + 1, last});
    return;
  }
  if (first >= kFirstSurrogate && first <= kLastSurrogate) first = kLastSurrogate + 1;
  if (last >= kFirstSurrogate && last <= kLastSurrogate) last = kFirstSurrogate - 1;
  if (first <= last) ranges_.push_back({first, last});
}

void CharSet::Add(const CharSet& other) {
  for (const Range& r : other.ranges()) Add(r.first, r.last);
}

std::span<const CharSet::Range> CharSet::ranges() const {
  if (sorted_) return ranges_;
  std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
  size_t kept = 0;
  for (const Range& r : ranges_) {
    if (kept > 0 && r.first <= ranges_[kept - 1].last + 1) {
      ranges_[kept - 1].last = std::max(ranges_[kept - 1].last, r.last);
    } else {
      ranges_[kept++] = r;
    }
  }
  ranges_.resize(kept);
  sorted_ = true;
  return ranges_;
}

bool CharSet::Contains(char32_t c) const {
  const std::span<const Range> all = ranges();
  return std::any_of(all.begin(), all.end(), [c](const Range& r) { return r.first <= c && c <= r.last; });
}

CharSet CharSet::Complement() const {
  CharSet out;
  char32_t next = 0;
  for (const Range& r : ranges()) {
    if (r.first > next) out.Add(next, r.first - 1);
    next = r.last + 1;
  }
  if (next <= kLast) out.Add(next, kLast);
  return out;
}

CharSet CharSet::And(const CharSet& other) const {
  CharSet outside = Complement();
  outside.Add(other.Complement());
  return outside.Complement();
}

std::vector<ByteRun> ToUtf8(const CharSet& set) {
  std::vector<ByteRun> runs;
  for (const CharSet::Range& r : set.ranges()) AppendRuns(r.first, r.last, &runs);
  return runs;
}

}  // namespace nibble
