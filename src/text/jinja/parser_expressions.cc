// SPDX-License-Identifier: Apache-2.0
// Floor 5. Expressions, with Jinja's precedences: or, and, not, comparisons, + -, ~, * / // %, **, unary
// signs, then attributes, calls, filters and tests.
#include "text/jinja/parser_expressions.h"

#include <algorithm>
#include <optional>

#include "base/printable.h"

namespace nibble::jinja {

Node* ExpressionParser::Two(NodeKind kind, int line, Node* left, Node* right, Operator op) {
  Node* node = Make(kind, line);
  node->left = left;
  node->right = right;
  node->op = op;
  return Done(node);
}

Node* ExpressionParser::Constant(Value value, int line) {
  Node* node = Make(NodeKind::kConst, line);
  node->value = std::move(value);
  return node;
}

Node* ExpressionParser::Expression(Conditional conditional) {
  const Nested nested(*this);
  int line = Current().line;
  Node* node = failed() ? Constant(Value::None(), line) : Or();
  while (conditional == Conditional::kAllowed && SkipName("if")) {
    Node* choice = Make(NodeKind::kConditional, line);
    choice->left = node;
    choice->right = Or();
    if (SkipName("else")) choice->other = Expression();
    node = Done(choice);
    line = Current().line;
  }
  return node;
}

Node* ExpressionParser::Or() {
  Node* node = And();
  for (int line = Current().line; SkipName("or"); line = Current().line)
    node = Two(NodeKind::kOr, line, node, And());
  return node;
}

Node* ExpressionParser::And() {
  Node* node = Not();
  for (int line = Current().line; SkipName("and"); line = Current().line)
    node = Two(NodeKind::kAnd, line, node, Not());
  return node;
}

Node* ExpressionParser::Not() {
  const int line = Current().line;
  if (!SkipName("not")) return Comparison();
  const Nested nested(*this);
  return Two(NodeKind::kNot, line, failed() ? nullptr : Not(), nullptr);
}

Node* ExpressionParser::Comparison() {
  const auto comparison = [this]() -> std::optional<Operator> {
    constexpr std::pair<std::string_view, Operator> kAll[] = {{"==", Operator::kEq}, {"!=", Operator::kNe},
                                                              {"<", Operator::kLt},  {"<=", Operator::kLe},
                                                              {">", Operator::kGt},  {">=", Operator::kGe}};
    for (const auto& [text, op] : kAll)
      if (SkipOperator(text)) return op;
    if (SkipName("in")) return Operator::kIn;
    if (!AtName("not") || !Next().Is(TokenKind::kName, "in")) return std::nullopt;
    Skip();
    Skip();
    return Operator::kNotIn;
  };
  Node* first = Sum();
  Node* node = nullptr;
  const int line = Current().line;
  while (const auto op = comparison()) {
    if (!node) {
      node = Make(NodeKind::kCompare, line);
      node->left = first;
    }
    node->ops.push_back(*op);
    node->items.push_back(Sum());
  }
  return node ? Done(node) : first;
}

Node* ExpressionParser::Sum() {
  Node* node = Concatenation();
  while (AtOperator("+") || AtOperator("-")) {
    const int line = Current().line;
    const Operator op = AtOperator("+") ? Operator::kAdd : Operator::kSub;
    Skip();
    node = Two(NodeKind::kBinary, line, node, Concatenation(), op);
  }
  return node;
}

Node* ExpressionParser::Concatenation() {
  Node* first = Product();
  if (!AtOperator("~")) return first;
  Node* node = Make(NodeKind::kConcat, Current().line);
  node->items.push_back(first);
  while (SkipOperator("~")) node->items.push_back(Product());
  return Done(node);
}

Node* ExpressionParser::Product() {
  constexpr std::pair<std::string_view, Operator> kAll[] = {
      {"*", Operator::kMul}, {"/", Operator::kDiv}, {"//", Operator::kFloorDiv}, {"%", Operator::kMod}};
  Node* node = Power();
  for (bool found = true; found;) {
    found = false;
    const int line = Current().line;
    for (const auto& [text, op] : kAll) {
      if (!SkipOperator(text)) continue;
      node = Two(NodeKind::kBinary, line, node, Power(), op);
      found = true;
      break;
    }
  }
  return node;
}

Node* ExpressionParser::Power() {
  Node* node = Unary();
  for (int line = Current().line; SkipOperator("**"); line = Current().line)
    node = Two(NodeKind::kBinary, line, node, Unary(), Operator::kPow);
  return node;
}

Node* ExpressionParser::Unary(bool with_filters) {
  const int line = Current().line;
  Node* node = nullptr;
  if (AtOperator("-") || AtOperator("+")) {
    const NodeKind kind = AtOperator("-") ? NodeKind::kNegate : NodeKind::kPlus;
    const Nested nested(*this);
    Skip();
    node = Two(kind, line, failed() ? Constant(Value::None(), line) : Unary(false), nullptr);
  } else {
    node = Primary();
  }
  node = Postfix(node);
  return with_filters ? FiltersAndTests(node) : node;
}

Node* ExpressionParser::Primary() {
  const Token token = Current();
  switch (token.kind) {
    case TokenKind::kName: {
      Skip();
      if (token.text == "true" || token.text == "True") return Constant(Value::Bool(true), token.line);
      if (token.text == "false" || token.text == "False") return Constant(Value::Bool(false), token.line);
      if (token.text == "none" || token.text == "None") return Constant(Value::None(), token.line);
      Node* node = Make(NodeKind::kName, token.line);
      node->name = token.text;
      return node;
    }
    case TokenKind::kString: {
      std::string text;
      for (; Current().kind == TokenKind::kString; Skip())
        text += Current().text;  // as in C, neighbours join
      return Constant(Value::String(std::move(text)), token.line);
    }
    case TokenKind::kInteger:
      Skip();
      return Constant(Value::Int(token.integer), token.line);
    case TokenKind::kFloat:
      Skip();
      return Constant(Value::Float(token.real), token.line);
    default:
      break;
  }
  if (SkipOperator("(")) {
    Node* node = TupleOrExpression(Conditional::kAllowed, Parentheses::kOpen);
    ExpectOperator(")");
    return node;
  }
  if (AtOperator("[")) return ListLiteral();
  if (AtOperator("{")) return DictLiteral();
  Fail(fmt::format("unexpected {}", token.kind == TokenKind::kEnd ? "end of the template"
                                    : token.text.empty()          ? "end of the tag"
                                                                  : Printable(token.text)));
  return Constant(Value::None(), token.line);
}

bool ExpressionParser::AtTupleEnd(std::string_view end) const {
  return Current().kind == TokenKind::kPrintEnd || Current().kind == TokenKind::kBlockEnd ||
         AtOperator(")") || (!end.empty() && AtName(end));
}

Node* ExpressionParser::TupleOrExpression(Conditional conditional, Parentheses parentheses,
                                          std::string_view end) {
  const int line = Current().line;
  std::vector<Node*> items;
  bool tuple = false;
  while (!failed()) {
    if (!items.empty()) ExpectOperator(",");
    if (AtTupleEnd(end)) break;
    items.push_back(Expression(conditional));
    if (!AtOperator(",")) break;
    tuple = true;
  }
  if (!tuple && !items.empty()) return items[0];
  if (!tuple && parentheses == Parentheses::kNone) Fail("wanted an expression");
  Node* node = Make(NodeKind::kTuple, line);
  node->items = std::move(items);
  return Done(node);
}

Node* ExpressionParser::ListLiteral() {
  Node* node = Make(NodeKind::kList, Current().line);
  ExpectOperator("[");
  while (!failed() && !AtOperator("]")) {
    if (!node->items.empty()) ExpectOperator(",");
    if (AtOperator("]")) break;
    node->items.push_back(Expression());
  }
  ExpectOperator("]");
  return Done(node);
}

Node* ExpressionParser::DictLiteral() {
  Node* node = Make(NodeKind::kDict, Current().line);
  ExpectOperator("{");
  while (!failed() && !AtOperator("}")) {
    if (!node->items.empty()) ExpectOperator(",");
    if (AtOperator("}")) break;
    node->items.push_back(Expression());
    ExpectOperator(":");
    node->items.push_back(Expression());
  }
  ExpectOperator("}");
  return Done(node);
}

Node* ExpressionParser::Postfix(Node* node) {
  while (!failed()) {
    if (AtOperator(".") || AtOperator("[")) {
      node = Subscript(node);
    } else if (AtOperator("(")) {
      node = Call(node);
    } else {
      break;
    }
  }
  return node;
}

Node* ExpressionParser::FiltersAndTests(Node* node) {
  while (!failed()) {
    if (AtOperator("|")) {
      node = Filters(node);
    } else if (AtName("is")) {
      node = Test(node);
    } else if (AtOperator("(")) {
      node = Call(node);
    } else {
      break;
    }
  }
  return node;
}

Node* ExpressionParser::Subscript(Node* object) {
  const int line = Current().line;
  if (SkipOperator(".")) {
    if (Current().kind == TokenKind::kInteger) {
      Node* index = Constant(Value::Int(Current().integer), line);
      Skip();
      return Two(NodeKind::kGetItem, line, object, index);
    }
    Node* node = Make(NodeKind::kGetAttr, line);
    node->left = object;
    node->name = TakeName();
    return Done(node);
  }
  ExpectOperator("[");
  std::vector<Node*> keys;
  while (!failed() && !AtOperator("]")) {
    if (!keys.empty()) ExpectOperator(",");
    keys.push_back(Slice());
  }
  ExpectOperator("]");
  if (keys.size() == 1) return Two(NodeKind::kGetItem, line, object, keys[0]);
  Node* tuple = Make(NodeKind::kTuple, line);
  for (const Node* key : keys)
    if (key->kind == NodeKind::kSlice) Fail("a slice among several keys is not supported");
  tuple->items = std::move(keys);
  return Two(NodeKind::kGetItem, line, object, Done(tuple));
}

Node* ExpressionParser::Slice() {
  const int line = Current().line;
  Node* first = AtOperator(":") ? nullptr : Expression();
  if (!AtOperator(":")) return first;
  Node* node = Make(NodeKind::kSlice, line);
  node->items = {first, nullptr, nullptr};
  for (size_t i = 1; i < 3 && SkipOperator(":"); ++i)
    if (!AtOperator(":") && !AtOperator("]") && !AtOperator(",")) node->items[i] = Expression();
  return Done(node);
}

Node* ExpressionParser::Call(Node* callee) {
  Node* node = Make(NodeKind::kCall, Current().line);
  node->left = callee;
  CallArguments(node);
  return Done(node);
}

void ExpressionParser::CallArguments(Node* call) {
  ExpectOperator("(");
  for (bool first = true; !failed() && !AtOperator(")"); first = false) {
    if (!first) {
      ExpectOperator(",");
      if (AtOperator(")")) break;
    }
    bool valid = !call->star_star;
    if (SkipOperator("*")) {
      valid = valid && !call->star;
      call->star = Expression();
    } else if (SkipOperator("**")) {
      call->star_star = Expression();
    } else if (Current().kind == TokenKind::kName && Next().Is(TokenKind::kOperator, "=")) {
      std::string name = TakeName();
      Skip();
      for (const auto& named : call->named) valid = valid && named.first != name;
      call->named.emplace_back(std::move(name), Expression());
    } else {
      valid = valid && !call->star && call->named.empty();
      call->items.push_back(Expression());
    }
    if (!valid) Fail("arguments out of order, or one given twice");
  }
  ExpectOperator(")");
}

Node* ExpressionParser::Filter(Node* input) {
  Node* node = Make(NodeKind::kFilter, Current().line);
  node->left = input;
  node->name = TakeName();
  while (SkipOperator(".")) node->name += "." + TakeName();
  if (AtOperator("(")) CallArguments(node);
  return Done(node);
}

Node* ExpressionParser::Filters(Node* node) {
  while (SkipOperator("|")) node = Filter(node);
  return node;
}

Node* ExpressionParser::Test(Node* input) {
  const int line = Current().line;
  ExpectName("is");
  const bool negated = SkipName("not");
  Node* node = Make(NodeKind::kTest, line);
  node->left = input;
  node->name = TakeName();
  while (SkipOperator(".")) node->name += "." + TakeName();
  const bool starts_value = Current().kind == TokenKind::kName || Current().kind == TokenKind::kString ||
                            Current().kind == TokenKind::kInteger || Current().kind == TokenKind::kFloat ||
                            AtOperator("[") || AtOperator("{");
  if (AtOperator("(")) {
    CallArguments(node);
  } else if (starts_value && !AtName("else") && !AtName("or") && !AtName("and")) {
    if (AtName("is")) Fail("tests cannot be chained with is");
    node->items.push_back(Postfix(Primary()));
  }
  Done(node);
  return negated ? Two(NodeKind::kNot, line, node, nullptr) : node;
}

Node* ExpressionParser::TargetItem(bool with_namespace) {
  const Token token = Current();
  if (!with_namespace || token.kind != TokenKind::kName || !Next().Is(TokenKind::kOperator, "."))
    return Primary();
  Node* node = Make(NodeKind::kNamespaceRef, token.line);
  node->left = Primary();
  Skip();
  node->name = TakeName();
  return Done(node);
}

Node* ExpressionParser::Target(bool with_namespace, std::string_view end) {
  const Nested nested(*this);
  const int line = Current().line;
  std::vector<Node*> items;
  bool tuple = false;
  while (!failed()) {
    if (!items.empty()) ExpectOperator(",");
    if (AtTupleEnd(end)) break;
    items.push_back(TargetItem(with_namespace));
    if (!AtOperator(",")) break;
    tuple = true;
  }
  if (items.empty()) Fail("wanted a name to assign to");
  Node* node = tuple || items.empty() ? Make(NodeKind::kTuple, line) : items[0];
  if (tuple) node->items = std::move(items);
  Done(node);
  CheckTarget(node);
  return node;
}

void ExpressionParser::CheckTarget(const Node* node) {
  if (node->kind == NodeKind::kTuple) {
    for (const Node* item : node->items) CheckTarget(item);
  } else if (node->kind == NodeKind::kNamespaceRef) {
    if (node->left->kind != NodeKind::kName) FailAt(node->line, "cannot assign to that");
  } else if (node->kind != NodeKind::kName) {
    FailAt(node->line, "cannot assign to that");
  }
}

}  // namespace nibble::jinja
