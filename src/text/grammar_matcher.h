// SPDX-License-Identifier: Apache-2.0
// Floor 5. Reads bytes along an automaton. All that may be under way at one place of the text is one
// configuration, a number: places in rules with the calls that they return to. Configurations and the steps
// between them are made when first met and kept.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "text/automaton.h"

namespace nibble {

// A state and the set of places to go on from when its rule ends.
struct Place {
  int32_t state, callers;
  bool operator==(const Place&) const = default;
  bool operator<(const Place& other) const {
    return state != other.state ? state < other.state : callers < other.callers;
  }
};

// Sets of places by number, each kept once. Open addressing.
class PlaceSets {
 public:
  PlaceSets();
  int32_t Intern(std::vector<Place>* places);  // sorts it and drops duplicates
  std::span<const Place> operator[](int32_t set) const { return rows_[set]; }
  int32_t size() const { return static_cast<int32_t>(hashes_.size()); }
  size_t bytes() const;

 private:
  void Grow();
  Rows<Place> rows_;
  std::vector<uint64_t> hashes_;
  std::vector<int32_t> slots_;
};

// Whether a place is new since the last Clear.
class PlaceFilter {
 public:
  PlaceFilter();
  void Clear();
  bool Insert(Place place);

 private:
  struct Slot {
    Place place;
    uint32_t round;
  };
  std::vector<Slot> slots_;
  uint32_t round_ = 1;
  size_t used_ = 0;
};

class GrammarMatcher {
 public:
  using Config = int32_t;
  static constexpr Config kDead = -1;  // no text of the grammar begins like this

  explicit GrammarMatcher(const Automaton& automaton);  // which must outlive it

  Config Start();                  // of the grammar
  Config StartAt(int32_t state);   // what a state reads, its rule seen by itself
  Config Return(int32_t callers);  // where the end of a rule leads that was called from there
  Config Step(Config at, uint8_t byte);

  bool MayEnd(Config at) const { return at != kDead && (flags_[static_cast<size_t>(at)] & kAccepts) != 0; }
  // The rule that was looked at by itself may end here.
  bool Escapes(Config at) const { return at != kDead && (flags_[static_cast<size_t>(at)] & kEscapes) != 0; }
  // Places that read a byte next; those in kAccept and kEscape read none.
  std::span<const Place> Places(Config at) const { return sets_[at]; }

  // A configuration took more work than one may; from then on all steps that are new are dead. Only texts of
  // very ambiguous grammars come to that.
  bool exhausted() const { return exhausted_; }
  size_t bytes() const;          // that the tables hold, about
  Config Shrink(Config in_use);  // drops all other configurations; returns the new number of this one

 private:
  static constexpr uint8_t kAccepts = 1, kEscapes = 2;
  static constexpr Config kUnknown = -2;
  static constexpr int32_t kNobody = -1;                   // callers of kAccept and kEscape
  static constexpr int32_t kWholeText = 0, kPartSeen = 1;  // callers: the bottoms of a stack of calls

  void Clear();
  void Begin();
  void Reach(Place place);
  void Call(const Automaton::Call& call, int32_t callers);
  Config Close();
  void JoinCallers();
  Config Intern(std::vector<Place>* places);

  const Automaton& a_;
  PlaceSets callers_;             // sets of places to return to; a set refers to sets with lower numbers
  PlaceSets sets_;                // places of each configuration
  std::vector<uint8_t> flags_;    // by configuration
  std::vector<Config> next_;      // [configurations, byte classes]
  std::vector<Config> returned_;  // by callers: Return, once it was asked for

  // The configuration under construction.
  std::vector<Place> reached_, reading_;
  PlaceFilter filter_;                       // what was reached
  std::vector<std::vector<Place>> pending_;  // by rule: who calls it here
  size_t work_ = 0;
  bool exhausted_ = false;
  std::vector<int32_t> called_;  // heap of rules with pending calls, lowest rank on top
};

}  // namespace nibble
