// SPDX-License-Identifier: Apache-2.0
// Floor 5. Which tokens may come next: a grammar compiled for a vocabulary, and where one text stands in it.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "text/automaton.h"
#include "text/grammar.h"
#include "text/grammar_matcher.h"
#include "text/token_trie.h"

namespace nibble {

// Shared by all texts under one grammar, which share what it has learned. One thread at a time.
class Constraint {
 public:
  // As Automaton::Compile.
  static Result<std::shared_ptr<Constraint>> Make(const Grammar& grammar,
                                                  std::shared_ptr<const TokenTrie> trie);
  Constraint(const Constraint&) = delete;
  Constraint& operator=(const Constraint&) = delete;

  const TokenTrie& trie() const { return *trie_; }
  const Automaton& automaton() const { return automaton_; }

  // What one state reads by itself, its callers unknown.
  struct Local {
    std::vector<uint64_t> many;    // a bit a token, or
    std::vector<int32_t> few;      // the tokens, when these take less memory
    std::vector<int32_t> escapes;  // nodes of the trie where the rule may end
  };
  const Local& At(int32_t state);  // the same for twins; valid until the next call

  bool exhausted() const { return parts_.exhausted(); }  // some Local is not whole: no text can go on

  // Sets the bits of all tokens in nodes [first, last) that `from` can read, the node before `first` being
  // where it stands. Appends nodes where the matcher escapes.
  void Walk(GrammarMatcher* matcher, GrammarMatcher::Config from, int32_t first, int32_t last,
            std::span<uint64_t> mask, std::vector<int32_t>* escapes);

 private:
  Constraint(Automaton automaton, std::shared_ptr<const TokenTrie> trie);

  Automaton automaton_;
  std::shared_ptr<const TokenTrie> trie_;
  GrammarMatcher parts_;                        // looks at states by themselves
  std::vector<std::unique_ptr<Local>> locals_;  // by state
  size_t local_bytes_ = 0;
  std::vector<uint64_t> mask_;                   // scratch of At
  std::vector<GrammarMatcher::Config> configs_;  // scratch of Walk: by depth
};

class ConstraintState {
 public:
  explicit ConstraintState(std::shared_ptr<Constraint> constraint);

  // A bit a token of the vocabulary: those after which the text is still the beginning of one of the grammar,
  // and the end tokens where it is one. Valid until the next call. Never empty before Accept has taken an end
  // token, unless Finished and the vocabulary has no end token.
  std::span<const uint64_t> Mask();
  // Takes a token. False for one that Mask does not hold, without any change; and when what may be under way
  // takes more work or memory than it may, as in long texts of very ambiguous grammars: the text cannot go
  // on.
  bool Accept(int32_t token);
  bool MayEnd() const { return matcher_.MayEnd(at_); }  // the text is one of the grammar
  bool Finished() const;                                // and no longer one begins with it

 private:
  GrammarMatcher::Config Read(std::string_view bytes);
  void MaskFirst();

  std::shared_ptr<Constraint> constraint_;
  GrammarMatcher matcher_;
  GrammarMatcher::Config at_;
  bool first_ = true;          // no token yet
  std::vector<Place> places_;  // scratch of Mask
  std::vector<uint64_t> mask_;
};

}  // namespace nibble
