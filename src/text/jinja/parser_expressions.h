// SPDX-License-Identifier: Apache-2.0
// Floor 5. The parser of expressions: one function a level of binding, loosest first.
#pragma once
#include "text/jinja/parser_base.h"

namespace nibble::jinja {

class ExpressionParser : public ParserBase {
 public:
  using ParserBase::ParserBase;

 protected:
  enum class Conditional : uint8_t { kAllowed, kNot };
  enum class Parentheses : uint8_t { kNone, kOpen };

  Node* Expression(Conditional conditional = Conditional::kAllowed);
  // One expression, or several with commas as a tuple. `end`: a name that ends it too.
  Node* TupleOrExpression(Conditional conditional = Conditional::kAllowed,
                          Parentheses parentheses = Parentheses::kNone, std::string_view end = {});
  // "|filter|filter(...)" behind `node`, which is nullptr in a block.
  Node* Filters(Node* node);
  Node* Filter(Node* node);
  Node* Primary();
  // What may stand left of = or between for and in.
  Node* Target(bool with_namespace, std::string_view end);

 private:
  Node* Or();
  Node* And();
  Node* Not();
  Node* Comparison();
  Node* Sum();
  Node* Concatenation();
  Node* Product();
  Node* Power();
  Node* Unary(bool with_filters = true);
  Node* Postfix(Node* node);
  Node* FiltersAndTests(Node* node);
  Node* Subscript(Node* node);
  Node* Slice();
  Node* Call(Node* node);
  Node* Test(Node* node);
  Node* ListLiteral();
  Node* DictLiteral();
  Node* TargetItem(bool with_namespace);
  void CallArguments(Node* call);
  void CheckTarget(const Node* node);
  bool AtTupleEnd(std::string_view end) const;
  Node* Constant(Value value, int line);
  Node* Two(NodeKind kind, int line, Node* left, Node* right, Operator op = Operator::kAdd);
};

}  // namespace nibble::jinja
