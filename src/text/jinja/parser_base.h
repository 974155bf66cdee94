// SPDX-License-Identifier: Apache-2.0
// Floor 5. What the parsers of expressions and of statements share: the tokens, the tree under construction,
// the first error. After an error the current token is the end, so that every loop stops.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace nibble::jinja {

class ParserBase {
 public:
  ParserBase(std::vector<Token> tokens, std::string_view source, const Limits& limits)
      : limits_(limits), tokens_(std::move(tokens)), source_(source) {}

 protected:
  const Token& Current() const { return tokens_[pos_]; }
  const Token& Next() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  void Skip() { pos_ = std::min(pos_ + 1, tokens_.size() - 1); }
  bool AtName(std::string_view name) const { return Current().Is(TokenKind::kName, name); }
  bool AtOperator(std::string_view op) const { return Current().Is(TokenKind::kOperator, op); }
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view op);
  void ExpectOperator(std::string_view op);
  void ExpectName(std::string_view name);
  std::string TakeName();
  void Expect(TokenKind kind);

  void Fail(std::string what);
  void FailAt(int line, std::string what);
  bool failed() const { return !status_.ok(); }

  Node* Make(NodeKind kind, int line);
  // To be called when the children are in place: the depth of the tree below.
  Node* Done(Node* node);

  // Counts nesting while it lives.
  class Nested {
   public:
    explicit Nested(ParserBase& parser) : parser_(parser) {
      if (++parser_.nesting_ > parser_.limits_.nesting)
        parser_.Fail("nested more than " + std::to_string(parser_.limits_.nesting) + " deep");
    }
    ~Nested() { --parser_.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    ParserBase& parser_;
  };

  const Limits& limits_;
  Status status_;
  Tree tree_;

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  std::string_view source_;
  int nesting_ = 0;
};

}  // namespace nibble::jinja
