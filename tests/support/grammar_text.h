// SPDX-License-Identifier: Apache-2.0
// Tests: reads texts byte by byte along a grammar, every byte being a token.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/automaton.h"
#include "text/grammar_matcher.h"

namespace nibble::test {

inline TokenShape EveryByte() {
  TokenShape shape;
  shape.bytes.set();
  return shape;
}

class GrammarReader {
 public:
  explicit GrammarReader(const Grammar& grammar) {
    auto compiled = Automaton::Compile(grammar, EveryByte());
    status_ = compiled.status();
    if (!compiled.ok()) return;
    automaton_ = std::make_unique<Automaton>(*std::move(compiled));
    matcher_ = std::make_unique<GrammarMatcher>(*automaton_);
  }
  const Status& status() const { return status_; }
  GrammarMatcher& matcher() { return *matcher_; }

  GrammarMatcher::Config Read(std::string_view text) {
    NIBBLE_CHECK(status_.ok(), status_.message().c_str());
    GrammarMatcher::Config at = matcher_->Start();
    for (const char c : text) at = matcher_->Step(at, static_cast<uint8_t>(c));
    return at;
  }
  bool Accepts(std::string_view text) { return matcher_->MayEnd(Read(text)); }
  bool Begins(std::string_view text) { return Read(text) != GrammarMatcher::kDead; }

 private:
  Status status_;
  std::unique_ptr<Automaton> automaton_;
  std::unique_ptr<GrammarMatcher> matcher_;
};

// Whether a grammar from outside can be used: parsed and compiled.
template <class GrammarResult>
Status Usable(const GrammarResult& grammar) {
  return grammar.ok() ? Automaton::Compile(*grammar, EveryByte()).status() : grammar.status();
}

}  // namespace nibble::test
