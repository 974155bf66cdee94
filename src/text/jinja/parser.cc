// SPDX-License-Identifier: Apache-2.0
// Floor 5. Statements.
#include "text/jinja/parser.h"

#include <initializer_list>

#include "base/printable.h"
#include "text/jinja/parser_expressions.h"
#include "text/jinja/scopes.h"

namespace nibble::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Result<Tree> Run() {
    tree_.body = Body({});
    if (failed()) return status_;
    return std::move(tree_);
  }

 private:
  using Ends = std::initializer_list<std::string_view>;

  bool AtAny(Ends ends) const {
    for (const std::string_view end : ends)
      if (AtName(end)) return true;
    return false;
  }

  // Up to a tag of `ends`, whose name is then the current token; up to the end of the template without any.
  std::vector<Node*> Body(Ends ends) {
    const Nested nested(*this);
    std::vector<Node*> body;
    while (!failed()) {
      const Token& token = Current();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0) Fail(fmt::format("the template ends before {}", *(ends.end() - 1)));
        break;
      }
      Node* node = nullptr;
      if (token.kind == TokenKind::kText) {
        node = Make(NodeKind::kText, token.line);
        node->name = token.text;
        Skip();
      } else if (token.kind == TokenKind::kPrintBegin) {
        node = Make(NodeKind::kPrint, token.line);
        Skip();
        node->left = TupleOrExpression();
        Expect(TokenKind::kPrintEnd);
        Done(node);
      } else {
        Expect(TokenKind::kBlockBegin);
        if (AtAny(ends)) break;
        node = Statement();
        Expect(TokenKind::kBlockEnd);
      }
      body.push_back(node);
    }
    return body;
  }

  // The rest of a tag, then its body up to the tag `end`.
  std::vector<Node*> BodyOf(Ends ends) {
    SkipOperator(":");
    Expect(TokenKind::kBlockEnd);
    return Body(ends);
  }

  Node* Statement() {
    const int line = Current().line;
    const std::string tag = TakeName();
    if (tag == "for") return For(line);
    if (tag == "if") return If(line);
    if (tag == "set") return Set(line);
    if (tag == "macro") return MacroDefinition(line);
    if (tag == "call") return CallBlock(line);
    if (tag == "filter") return FilterBlock(line);
    if (tag == "with") return With(line);
    if (tag == "generation") {
      Node* node = Make(NodeKind::kGeneration, line);
      node->body = FunctionBody({"endgeneration"});
      return Done(node);
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) FailAt(line, fmt::format("{} outside a loop", tag));
      return Make(tag == "break" ? NodeKind::kBreak : NodeKind::kContinue, line);
    }
    for (const std::string_view other :
         {"include", "import", "from", "extends", "block", "autoescape", "print"})
      if (tag == other) FailAt(line, fmt::format("the tag {} is not supported", tag));
    FailAt(line, fmt::format("unknown tag {}", Printable(tag)));
    return Make(NodeKind::kText, line);
  }

  // A body that is a function for Jinja: no break leaves it.
  std::vector<Node*> FunctionBody(Ends ends) {
    const int loops = std::exchange(loops_, 0);
    std::vector<Node*> body = BodyOf(ends);
    Skip();
    loops_ = loops;
    return body;
  }

  Node* For(int line) {
    Node* node = Make(NodeKind::kFor, line);
    node->left = Target(false, "in");
    ExpectName("in");
    node->right = TupleOrExpression(Conditional::kNot, Parentheses::kNone, "recursive");
    if (SkipName("if")) node->other = Expression();
    if (AtName("recursive")) Fail("recursive loops are not supported");
    ++loops_;
    node->body = BodyOf({"else", "endfor"});
    --loops_;
    if (SkipName("else")) node->otherwise = BodyOf({"endfor"});
    ExpectName("endfor");
    return Done(node);
  }

  Node* If(int line) {
    Node* const first = Make(NodeKind::kIf, line);
    Node* node = first;
    for (;;) {
      node->left = TupleOrExpression(Conditional::kNot);
      node->body = BodyOf({"elif", "else", "endif"});
      if (node != first) Done(node);
      const int next_line = Current().line;
      if (failed() || !SkipName("elif")) break;
      first->items.push_back(node = Make(NodeKind::kIf, next_line));
    }
    if (SkipName("else")) first->otherwise = BodyOf({"endif"});
    ExpectName("endif");
    return Done(first);
  }

  Node* Set(int line) {
    Node* target = Target(true, {});
    if (SkipOperator("=")) {
      Node* node = Make(NodeKind::kSet, line);
      node->left = target;
      node->right = TupleOrExpression();
      return Done(node);
    }
    Node* node = Make(NodeKind::kSetBlock, line);
    node->left = target;
    node->right = AtOperator("|") ? Filters(nullptr) : nullptr;
    node->body = BodyOf({"endset"});
    Skip();
    return Done(node);
  }

  void Signature(Node* node) {
    ExpectOperator("(");
    while (!failed() && !AtOperator(")")) {
      if (!node->items.empty()) ExpectOperator(",");
      Node* parameter = Make(NodeKind::kName, Current().line);
      parameter->name = TakeName();
      for (const Node* other : node->items)
        if (other->name == parameter->name)
          Fail(fmt::format("two parameters named {}", Printable(parameter->name)));
      node->items.push_back(parameter);
      if (SkipOperator("=")) {
        node->defaults.push_back(Expression());
      } else if (!node->defaults.empty()) {
        Fail("a parameter without a default after one with");
      }
    }
    ExpectOperator(")");
  }

  Node* MacroDefinition(int line) {
    Node* node = Make(NodeKind::kMacro, line);
    node->left = Make(NodeKind::kName, line);
    node->left->name = TakeName();
    Signature(node);
    node->body = FunctionBody({"endmacro"});
    return Done(node);
  }

  Node* CallBlock(int line) {
    Node* node = Make(NodeKind::kCallBlock, line);
    if (AtOperator("(")) Signature(node);
    node->left = Expression();
    if (node->left->kind != NodeKind::kCall) FailAt(line, "call wants a call");
    node->body = FunctionBody({"endcall"});
    return Done(node);
  }

  Node* FilterBlock(int line) {
    Node* node = Make(NodeKind::kFilterBlock, line);
    node->left = Filters(Filter(nullptr));
    node->body = BodyOf({"endfilter"});
    Skip();
    return Done(node);
  }

  Node* With(int line) {
    Node* node = Make(NodeKind::kWith, line);
    while (!failed() && Current().kind != TokenKind::kBlockEnd) {
      if (!node->items.empty()) ExpectOperator(",");
      node->items.push_back(Target(false, {}));
      ExpectOperator("=");
      node->defaults.push_back(Expression());
    }
    node->body = BodyOf({"endwith"});
    Skip();
    return Done(node);
  }

  int loops_ = 0;  // around the current statement, inside the current macro
};

}  // namespace

Result<Tree> Parse(std::string_view text, std::string_view source, const Limits& limits, Trimming trimming) {
  NIBBLE_ASSIGN(std::vector<Token> tokens, Tokenize(text, source, limits, trimming));
  NIBBLE_ASSIGN(Tree tree, Parser(std::move(tokens), source, limits).Run());
  NIBBLE_RETURN_IF_ERROR(ResolveNames(&tree, source));
  return tree;
}

}  // namespace nibble::jinja
