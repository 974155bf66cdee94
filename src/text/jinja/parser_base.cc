// SPDX-License-Identifier: Apache-2.0
// Floor 5. Tokens and nodes for the parsers.
#include "text/jinja/parser_base.h"

#include <algorithm>

#include "base/printable.h"

namespace nibble::jinja {
namespace {

std::string Describe(const Token& t) {
  switch (t.kind) {
    case TokenKind::kText:
      return "text";
    case TokenKind::kPrintBegin:
      return "{{";
    case TokenKind::kPrintEnd:
      return "}}";
    case TokenKind::kBlockBegin:
      return "{%";
    case TokenKind::kBlockEnd:
      return "%}";
    case TokenKind::kString:
      return fmt::format("'{}'", Printable(t.text));
    case TokenKind::kInteger:
      return fmt::format("{}", t.integer);
    case TokenKind::kFloat:
      return fmt::format("{}", t.real);
    case TokenKind::kName:
    case TokenKind::kOperator:
      return Printable(t.text);
    case TokenKind::kEnd:
      return "the end of the template";
  }
  return "";
}

}  // namespace

bool ParserBase::SkipName(std::string_view name) {
  if (!AtName(name)) return false;
  Skip();
  return true;
}

bool ParserBase::SkipOperator(std::string_view op) {
  if (!AtOperator(op)) return false;
  Skip();
  return true;
}

void ParserBase::ExpectOperator(std::string_view op) {
  if (!SkipOperator(op)) Fail(fmt::format("wanted {}, found {}", op, Describe(Current())));
}

void ParserBase::ExpectName(std::string_view name) {
  if (!SkipName(name)) Fail(fmt::format("wanted {}, found {}", name, Describe(Current())));
}

std::string ParserBase::TakeName() {
  if (Current().kind != TokenKind::kName) {
    Fail(fmt::format("wanted a name, found {}", Describe(Current())));
    return {};
  }
  std::string name = Current().text;
  Skip();
  return name;
}

void ParserBase::Expect(TokenKind kind) {
  if (Current().kind == kind) return Skip();
  Fail(fmt::format("wanted {}, found {}", Describe({kind, 0, {}}), Describe(Current())));
}

void ParserBase::Fail(std::string what) { FailAt(Current().line, std::move(what)); }

void ParserBase::FailAt(int line, std::string what) {
  if (status_.ok()) status_ = Error(Code::kInvalidArgument, "{}, line {}: {}", source_, line, what);
  pos_ = tokens_.size() - 1;
}

Node* ParserBase::Make(NodeKind kind, int line) {
  if (tree_.nodes.size() >= limits_.nodes) Fail(fmt::format("more than {} nodes", limits_.nodes));
  Node* node = tree_.nodes.emplace_back(std::make_unique<Node>()).get();
  node->kind = kind;
  node->line = line;
  return node;
}

Node* ParserBase::Done(Node* node) {
  int depth = 0;
  const auto look = [&depth](const Node* child) {
    if (child) depth = std::max(depth, child->depth);
  };
  for (const Node* child : {node->left, node->right, node->other, node->star, node->star_star}) look(child);
  for (const auto* list : {&node->items, &node->body, &node->otherwise, &node->defaults})
    for (const Node* child : *list) look(child);
  for (const auto& named : node->named) look(named.second);
  node->depth = depth + 1;
  if (node->depth > limits_.chain) Fail(fmt::format("a chain of more than {} operations", limits_.chain));
  return node;
}

}  // namespace nibble::jinja
