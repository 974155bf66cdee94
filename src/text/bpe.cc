// SPDX-License-Identifier: Apache-2.0
// Floor 5. Byte-pair encoding of one piece: a linked list of symbols and a queue of possible merges, lowest
// rank first, leftmost among equals.
#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/utf8.h"

namespace nibble {

MergeTable::MergeTable(size_t merges) {
  size_t slots = 16;
  while (slots < merges * 2) slots *= 2;  // at most half full
  entries_.resize(slots);
}

size_t MergeTable::Slot(uint64_t pair) const {
  // Fibonacci hashing (Knuth, TAOCP 3, 6.4): the high bits of the product are well mixed.
  size_t slot = static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> 20) & (entries_.size() - 1);
  while (entries_[slot].pair != UINT64_MAX && entries_[slot].pair != pair)
    slot = (slot + 1) & (entries_.size() - 1);
  return slot;
}

namespace {
uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
}  // namespace

void MergeTable::Put(int32_t left, int32_t right, uint32_t rank, int32_t id) {
  const uint64_t pair = PairKey(left, right);
  entries_[Slot(pair)] = {pair, rank, id};
}

const MergeTable::Entry* MergeTable::Find(int32_t left, int32_t right) const {
  const Entry& e = entries_[Slot(PairKey(left, right))];
  return e.pair == UINT64_MAX ? nullptr : &e;
}

std::optional<int32_t> Bpe::Find(std::string_view token) const {
  const auto it = by_text_.find(token);
  if (it == by_text_.end()) return std::nullopt;
  return it->second;
}

// Id of the character at *pos, -1 when the vocabulary lacks it; *pos moves behind it.
int32_t Bpe::FindChar(std::string_view piece, size_t* pos) const {
  const size_t start = *pos;
  const char32_t c = NextChar(piece, pos);
  if (c < low_chars_.size()) return low_chars_[c];
  return Find(piece.substr(start, *pos - start)).value_or(-1);
}

bool Bpe::AppendBytes(std::string_view character, std::vector<int32_t>* ids) const {
  for (const char b : character) {
    if (byte_tokens_[static_cast<unsigned char>(b)] < 0) return false;
  }
  for (const char b : character) ids->push_back(byte_tokens_[static_cast<unsigned char>(b)]);
  return true;
}

// One id a character. What the vocabulary lacks becomes its bytes, else the unknown token, else nothing. An
// unknown token waits until the next known character, also past fallback bytes: the order the reference has.
void Bpe::SplitToCharacters(std::string_view piece, std::vector<int32_t>* ids) const {
  bool unknown_waits = false;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t start = pos;
    const int32_t id = FindChar(piece, &pos);
    if (id >= 0) {
      if (unknown_waits) ids->push_back(unknown_);
      unknown_waits = false;
      ids->push_back(id);
      continue;
    }
    if (byte_fallback_ && AppendBytes(piece.substr(start, pos - start), ids)) continue;
    if (unknown_ < 0) continue;
    if (unknown_waits && !fuse_unknown_) ids->push_back(unknown_);
    unknown_waits = true;
  }
  if (unknown_waits) ids->push_back(unknown_);
}

namespace {

constexpr int32_t kNone = -1;

struct Symbol {
  int32_t id;  // kNone: merged away
  int32_t previous, next;
};

struct Candidate {
  uint64_t order;  // rank in the high half, position in the low
  int32_t id;      // what the two symbols become
};

bool Before(const Candidate& a, const Candidate& b) { return a.order < b.order; }
bool After(const Candidate& a, const Candidate& b) { return a.order > b.order; }

// Candidates in order. New ones go to a heap; a long heap is sorted and then read from the front while a new
// one fills, because taking a million entries out of a heap waits for memory at every step.
class CandidateQueue {
 public:
  void Push(const Candidate& c) {
    heap_.push_back(c);
    std::push_heap(heap_.begin(), heap_.end(), After);
  }

  bool Pop(Candidate* c) {
    if (next_ == sorted_.size() && heap_.size() > kLong) {
      sorted_.swap(heap_);
      heap_.clear();
      next_ = 0;
      // Merging from left to right tends to find candidates in order.
      if (!std::is_sorted(sorted_.begin(), sorted_.end(), Before))
        std::sort(sorted_.begin(), sorted_.end(), Before);
    }
    const bool in_sorted = next_ < sorted_.size();
    if (!in_sorted && heap_.empty()) return false;
    if (in_sorted && (heap_.empty() || !Before(heap_.front(), sorted_[next_]))) {
      *c = sorted_[next_++];
      return true;
    }
    std::pop_heap(heap_.begin(), heap_.end(), After);
    *c = heap_.back();
    heap_.pop_back();
    return true;
  }

 private:
  static constexpr size_t kLong = 256;
  std::vector<Candidate> heap_, sorted_;
  size_t next_ = 0;  // first entry of sorted_ not taken yet
};

class Merger {
 public:
  Merger(const MergeTable& merges, const std::vector<int32_t>& ids) : merges_(merges) {
    const auto n = static_cast<int32_t>(ids.size());
    symbols_.reserve(ids.size());
    for (int32_t i = 0; i < n; ++i) {
      symbols_.push_back({ids[static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : kNone});
    }
    for (int32_t i = 0; i + 1 < n; ++i) Consider(i);
  }

  void Run() {
    for (Candidate top{}; queue_.Pop(&top);) {
      const auto left = static_cast<int32_t>(top.order & UINT32_MAX);
      const int32_t right = At(left).next;
      if (At(left).id == kNone || right == kNone) continue;
      // The symbols may have changed since; the entry still counts if they now join to the same token.
      const MergeTable::Entry* merge = merges_.Find(At(left).id, At(right).id);
      if (merge == nullptr || merge->id != top.id) continue;
      At(left).id = top.id;
      At(left).next = At(right).next;
      At(right).id = kNone;
      if (At(left).next != kNone) At(At(left).next).previous = left;
      if (At(left).previous != kNone) Consider(At(left).previous);
      if (At(left).next != kNone) Consider(left);
    }
  }

  void AppendTo(std::vector<int32_t>* ids) const {
    for (const Symbol& s : symbols_) {
      if (s.id != kNone) ids->push_back(s.id);
    }
  }

 private:
  Symbol& At(int32_t i) { return symbols_[static_cast<size_t>(i)]; }

  void Consider(int32_t left) {
    const MergeTable::Entry* merge = merges_.Find(At(left).id, At(At(left).next).id);
    if (merge == nullptr) return;
    queue_.Push({static_cast<uint64_t>(merge->rank) << 32 | static_cast<uint32_t>(left), merge->id});
  }

  const MergeTable& merges_;
  std::vector<Symbol> symbols_;
  CandidateQueue queue_;
};

}  // namespace

void Bpe::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const auto whole = Find(piece)) {
      ids->push_back(*whole);
      return;
    }
  }
  EncodeByMerges(piece, ids);
}

void Bpe::EncodeByMerges(std::string_view piece, std::vector<int32_t>* ids) const {
  std::vector<int32_t> characters;
  characters.reserve(piece.size());
  SplitToCharacters(piece, &characters);
  Merger merger(merges_, characters);
  merger.Run();
  merger.AppendTo(ids);
}

}  // namespace nibble
