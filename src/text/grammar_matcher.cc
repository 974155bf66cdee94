// SPDX-License-Identifier: Apache-2.0
// Floor 5. Configurations are Earley sets without their positions: calls made at one place of the text share
// a set of callers, so work and memory stay polynomial for ambiguous grammars.
#include "text/grammar_matcher.h"

#include <algorithm>

#include "base/check.h"

namespace nibble {
namespace {

constexpr size_t kFirstSlots = 256;           // of a hash table; powers of two
constexpr size_t kMaxWork = size_t{1} << 16;  // places and callers of one configuration; some milliseconds

uint64_t Mix(uint64_t h, Place p) {
  h ^= static_cast<uint64_t>(static_cast<uint32_t>(p.state)) << 32 | static_cast<uint32_t>(p.callers);
  h *= 0x9E3779B97F4A7C15u;
  return h ^ (h >> 29);
}

}  // namespace

PlaceSets::PlaceSets() : slots_(kFirstSlots, -1) {}

int32_t PlaceSets::Intern(std::vector<Place>* places) {
  std::sort(places->begin(), places->end());
  places->erase(std::unique(places->begin(), places->end()), places->end());
  uint64_t hash = places->size();
  for (const Place& p : *places) hash = Mix(hash, p);
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  for (; slots_[slot] >= 0; slot = (slot + 1) & mask) {
    const std::span<const Place> there = rows_[slots_[slot]];
    if (hashes_[static_cast<size_t>(slots_[slot])] == hash &&
        std::equal(there.begin(), there.end(), places->begin(), places->end())) {
      return slots_[slot];
    }
  }
  slots_[slot] = size();
  hashes_.push_back(hash);
  rows_.all.insert(rows_.all.end(), places->begin(), places->end());
  rows_.EndRow();
  if (hashes_.size() * 2 > slots_.size()) Grow();
  return size() - 1;
}

void PlaceSets::Grow() {
  slots_.assign(slots_.size() * 2, -1);
  const size_t mask = slots_.size() - 1;
  for (int32_t set = 0; set < size(); ++set) {
    size_t slot = hashes_[static_cast<size_t>(set)] & mask;
    while (slots_[slot] >= 0) slot = (slot + 1) & mask;
    slots_[slot] = set;
  }
}

size_t PlaceSets::bytes() const {
  return rows_.all.size() * sizeof(Place) + hashes_.size() * 12 + slots_.size() * 4;
}

PlaceFilter::PlaceFilter() : slots_(kFirstSlots) {}

void PlaceFilter::Clear() {
  used_ = 0;
  if (++round_ == 0) {  // slots of 2^32 rounds ago would look new
    slots_.assign(slots_.size(), {});
    round_ = 1;
  }
}

bool PlaceFilter::Insert(Place place) {
  if ((used_ + 1) * 2 > slots_.size()) {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    used_ = 0;
    for (const Slot& slot : old) {
      if (slot.round == round_) Insert(slot.place);
    }
  }
  const size_t mask = slots_.size() - 1;
  size_t at = Mix(0, place) & mask;
  for (; slots_[at].round == round_; at = (at + 1) & mask) {
    if (slots_[at].place == place) return false;
  }
  slots_[at] = {place, round_};
  ++used_;
  return true;
}

GrammarMatcher::GrammarMatcher(const Automaton& automaton) : a_(automaton), pending_(automaton.start.size()) {
  Clear();
}

void GrammarMatcher::Clear() {
  callers_ = PlaceSets();
  sets_ = PlaceSets();
  flags_.clear();
  next_.clear();
  returned_.clear();
  reading_ = {{Automaton::kAccept, kNobody}};
  callers_.Intern(&reading_);  // kWholeText
  reading_ = {{Automaton::kEscape, kNobody}};
  callers_.Intern(&reading_);  // kPartSeen
}

void GrammarMatcher::Begin() {
  reached_.clear();
  filter_.Clear();
  work_ = 0;
}

void GrammarMatcher::Reach(Place place) {
  if (!filter_.Insert(place)) return;
  reached_.push_back(place);
  ++work_;
}

void GrammarMatcher::Call(const Automaton::Call& call, int32_t callers) {
  std::vector<Place>& pending = pending_[static_cast<size_t>(call.rule)];
  if (pending.empty()) {
    called_.push_back(call.rule);
    std::push_heap(called_.begin(), called_.end(), [this](int32_t a, int32_t b) {
      return a_.rank[static_cast<size_t>(a)] > a_.rank[static_cast<size_t>(b)];
    });
  }
  if (a_.tail[static_cast<size_t>(call.back)] != 0) {  // a last call returns to the caller's callers
    const std::span<const Place> places = callers_[callers];
    pending.insert(pending.end(), places.begin(), places.end());
    work_ += places.size();
  } else {
    pending.push_back({call.back, callers});
    ++work_;
  }
}

// From what was reached to the configuration: rules that end return, rules that are called begin.
GrammarMatcher::Config GrammarMatcher::Close() {
  reading_.clear();
  for (size_t i = 0; i < reached_.size() && work_ <= kMaxWork; ++i) {
    const Place p = reached_[i];
    const bool bottom = p.state == Automaton::kAccept || p.state == Automaton::kEscape;
    if (bottom || !a_.edges[p.state].empty()) reading_.push_back(p);
    if (a_.ends[static_cast<size_t>(p.state)] != 0) {
      for (const Place& back : callers_[p.callers]) Reach(back);
    }
    for (const Automaton::Call& call : a_.calls[p.state]) Call(call, p.callers);
  }
  // A rule is begun when all that call it here are known, which is what ranks are for. That it may also end
  // here is in the tables of its callers.
  while (!called_.empty()) {
    std::pop_heap(called_.begin(), called_.end(), [this](int32_t a, int32_t b) {
      return a_.rank[static_cast<size_t>(a)] > a_.rank[static_cast<size_t>(b)];
    });
    const auto rule = static_cast<size_t>(called_.back());
    called_.pop_back();
    if (work_ > kMaxWork) {
      pending_[rule].clear();
      continue;
    }
    const Place begin = {a_.start[rule], callers_.Intern(&pending_[rule])};
    pending_[rule].clear();
    if (!a_.edges[begin.state].empty()) reading_.push_back(begin);
    for (const Automaton::Call& call : a_.calls[begin.state]) Call(call, begin.callers);
  }
  exhausted_ |= work_ > kMaxWork;
  if (exhausted_) return kDead;
  JoinCallers();
  return Intern(&reading_);
}

// A state that was reached for several sets of callers goes on for all of them together: so a configuration
// has a place a state at most, however ambiguous the text.
void GrammarMatcher::JoinCallers() {
  std::sort(reading_.begin(), reading_.end());
  size_t kept = 0;
  for (size_t i = 0, end = 0; i < reading_.size(); i = end) {
    const int32_t state = reading_[i].state;
    for (end = i + 1; end < reading_.size() && reading_[end].state == state;) ++end;
    Place joined = reading_[i];
    if (reading_[end - 1].callers != joined.callers) {
      std::vector<Place>& all = reached_;  // no longer needed
      all.clear();
      for (size_t k = i; k < end; ++k) {
        const std::span<const Place> callers = callers_[reading_[k].callers];
        all.insert(all.end(), callers.begin(), callers.end());
      }
      joined.callers = callers_.Intern(&all);
    }
    reading_[kept++] = joined;
  }
  reading_.resize(kept);
}

GrammarMatcher::Config GrammarMatcher::Intern(std::vector<Place>* places) {
  if (places->empty()) return kDead;
  const Config config = sets_.Intern(places);
  if (static_cast<size_t>(config) < flags_.size()) return config;
  uint8_t flags = 0;
  for (const Place& p : *places) {
    if (p == Place{Automaton::kAccept, kNobody}) flags |= kAccepts;
    if (p == Place{Automaton::kEscape, kNobody}) flags |= kEscapes;
  }
  flags_.push_back(flags);
  next_.resize(next_.size() + static_cast<size_t>(a_.byte_classes), kUnknown);
  return config;
}

GrammarMatcher::Config GrammarMatcher::Start() {
  Begin();
  const int32_t start = a_.start[static_cast<size_t>(a_.root)];
  Reach({start, kWholeText});
  return Close();
}

GrammarMatcher::Config GrammarMatcher::StartAt(int32_t state) {
  reading_ = {{state, kPartSeen}};
  return Intern(&reading_);
}

GrammarMatcher::Config GrammarMatcher::Return(int32_t callers) {
  if (returned_.size() < static_cast<size_t>(callers_.size())) {
    returned_.resize(static_cast<size_t>(callers_.size()), kUnknown);
  }
  if (returned_[static_cast<size_t>(callers)] == kUnknown) {
    Begin();
    for (const Place& back : callers_[callers]) Reach(back);
    const Config config = Close();
    returned_[static_cast<size_t>(callers)] = config;
  }
  return returned_[static_cast<size_t>(callers)];
}

GrammarMatcher::Config GrammarMatcher::Step(Config at, uint8_t byte) {
  if (at == kDead) return kDead;
  const size_t slot = static_cast<size_t>(at) * static_cast<size_t>(a_.byte_classes) + a_.byte_class[byte];
  if (next_[slot] != kUnknown) return next_[slot];
  Begin();
  for (const Place& p : sets_[at]) {
    for (const Automaton::Edge& edge : a_.edges[p.state]) {
      if (edge.lo <= byte && byte <= edge.hi) Reach({edge.to, p.callers});
    }
  }
  const Config config = Close();
  next_[slot] = config;
  return config;
}

size_t GrammarMatcher::bytes() const {
  return callers_.bytes() + sets_.bytes() + flags_.size() +
         (next_.size() + returned_.size()) * sizeof(Config);
}

GrammarMatcher::Config GrammarMatcher::Shrink(Config in_use) {
  std::vector<Place> places(sets_[in_use].begin(), sets_[in_use].end());
  const PlaceSets old = std::move(callers_);
  // A set refers to sets with lower numbers: downwards to mark, upwards to make them anew.
  std::vector<int32_t> moved(static_cast<size_t>(old.size()), kUnknown);
  const auto mark = [&](const Place& p) {
    if (p.callers >= 0) moved[static_cast<size_t>(p.callers)] = 0;
  };
  for (const Place& p : places) mark(p);
  for (int32_t set = old.size() - 1; set >= 0; --set) {
    if (moved[static_cast<size_t>(set)] == kUnknown) continue;
    for (const Place& p : old[set]) mark(p);
  }
  Clear();
  const auto renumber = [&](std::vector<Place>* set) {
    for (Place& p : *set) p.callers = p.callers >= 0 ? moved[static_cast<size_t>(p.callers)] : p.callers;
  };
  std::vector<Place> set;
  for (int32_t i = 0; i < old.size(); ++i) {
    if (moved[static_cast<size_t>(i)] == kUnknown) continue;
    set.assign(old[i].begin(), old[i].end());
    renumber(&set);
    moved[static_cast<size_t>(i)] = callers_.Intern(&set);
  }
  renumber(&places);
  return Intern(&places);
}

}  // namespace nibble
