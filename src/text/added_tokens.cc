// SPDX-License-Identifier: Apache-2.0
// Floor 5. Finding added tokens in linear time, with the strip and single-word rules.
#include "text/added_tokens.h"

#include <algorithm>
#include <deque>
#include <unordered_set>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/bpe.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kMaxAddedBytes = size_t{4} << 20;  // contents together; the automaton has a node a byte

uint64_t EdgeKey(int32_t node, unsigned char byte) { return static_cast<uint64_t>(node) << 8 | byte; }

bool WordBefore(std::string_view text, size_t pos) {
  return pos > 0 && unicode::IsWord(PreviousChar(text, &pos));
}

bool WordAt(std::string_view text, size_t pos) {
  return pos < text.size() && unicode::IsWord(NextChar(text, &pos));
}

}  // namespace

TokenFinder::TokenFinder(const std::vector<AddedToken>* tokens, bool normalized)
    : tokens_(tokens), nodes_(1) {
  for (size_t i = 0; i < tokens->size(); ++i) {
    if ((*tokens)[i].normalized == normalized) Add(static_cast<int32_t>(i));
  }
  LinkFailures();
}

void TokenFinder::Add(int32_t index) {
  const std::string& match = (*tokens_)[static_cast<size_t>(index)].match;
  int32_t node = 0;
  for (size_t i = match.size(); i-- > 0;) {
    const auto [edge, fresh] = edges_.try_emplace(EdgeKey(node, static_cast<unsigned char>(match[i])),
                                                  static_cast<int32_t>(nodes_.size()));
    if (fresh) nodes_.emplace_back();
    node = edge->second;
  }
  nodes_[static_cast<size_t>(node)].token = index;
}

// Breadth first, so that the failure target of a node is complete before the node is visited.
void TokenFinder::LinkFailures() {
  std::vector<std::vector<std::pair<unsigned char, int32_t>>> children(nodes_.size());
  for (const auto& [key, child] : edges_) {
    children[static_cast<size_t>(key >> 8)].emplace_back(static_cast<unsigned char>(key), child);
  }
  std::deque<int32_t> queue = {0};
  while (!queue.empty()) {
    const int32_t node = queue.front();
    queue.pop_front();
    for (const auto& [byte, child] : children[static_cast<size_t>(node)]) {
      Node& n = nodes_[static_cast<size_t>(child)];
      n.fail = node == 0 ? 0 : Step(nodes_[static_cast<size_t>(node)].fail, byte);
      if (n.token < 0) n.token = nodes_[static_cast<size_t>(n.fail)].token;
      queue.push_back(child);
    }
  }
}

int32_t TokenFinder::Step(int32_t node, unsigned char byte) const {
  for (;;) {
    const auto edge = edges_.find(EdgeKey(node, byte));
    if (edge != edges_.end()) return edge->second;
    if (node == 0) return 0;
    node = nodes_[static_cast<size_t>(node)].fail;
  }
}

// The matches that leftmost-longest search takes, in order.
void TokenFinder::FindStarts(std::string_view text, std::vector<TextPart>* matches) const {
  matches->clear();
  if (nodes_.size() == 1) return;
  std::vector<TextPart> starts;  // from the end of the text to its beginning
  int32_t node = 0;
  for (size_t i = text.size(); i-- > 0;) {
    node = Step(node, static_cast<unsigned char>(text[i]));
    const int32_t token = nodes_[static_cast<size_t>(node)].token;
    if (token >= 0) starts.push_back({{i, i + (*tokens_)[static_cast<size_t>(token)].match.size()}, token});
  }
  size_t free_from = 0;
  for (size_t i = starts.size(); i-- > 0;) {
    if (starts[i].span.begin < free_from) continue;
    matches->push_back(starts[i]);
    free_from = starts[i].span.end;
  }
}

void TokenFinder::Split(std::string_view text, bool skip_special, std::vector<TextPart>* parts) const {
  parts->clear();
  std::vector<TextPart> matches;
  FindStarts(text, &matches);
  size_t done = 0;
  Span space;  // the last run of whitespace that rstrip walked over: walked once, however many tokens need it
  for (const TextPart& match : matches) {
    const AddedToken& token = (*tokens_)[static_cast<size_t>(match.token)];
    Span span = match.span;
    if (token.special && skip_special) continue;
    if (token.single_word && (WordBefore(text, span.begin) || WordAt(text, span.end))) continue;
    if (token.lstrip) {
      for (size_t pos = span.begin; pos > done;) {
        if (!unicode::IsWhitespace(PreviousChar(text, &pos))) break;
        span.begin = std::max(pos, done);
      }
    }
    if (token.rstrip && span.end >= space.begin && span.end < space.end) {
      span.end = space.end;
    } else if (token.rstrip) {
      space.begin = span.end;
      for (size_t pos = span.end; pos < text.size();) {
        if (!unicode::IsWhitespace(NextChar(text, &pos))) break;
        span.end = pos;
      }
      space.end = span.end;
    }
    if (done < span.begin) parts->push_back({{done, span.begin}, -1});
    parts->push_back({span, match.token});
    done = span.end;
  }
  if (done < text.size()) parts->push_back({{done, text.size()}, -1});
}

Result<std::vector<AddedToken>> LoadAddedTokens(JsonRef section) {
  if (!section.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", section.Where());
  std::vector<AddedToken> tokens;
  std::unordered_set<std::string_view> contents;
  std::unordered_set<int32_t> ids;
  size_t bytes = 0;
  for (size_t i = 0; i < section.size(); ++i) {
    const JsonRef entry = section[i];
    AddedToken token;
    NIBBLE_ASSIGN(const int64_t id, entry.GetInt("id", 0, kMaxTokenId));
    NIBBLE_ASSIGN(const std::string_view content, entry.GetString("content"));
    token.id = static_cast<int32_t>(id);
    token.content = content;
    NIBBLE_ASSIGN(token.single_word, entry.GetBoolOr("single_word", false));
    NIBBLE_ASSIGN(token.lstrip, entry.GetBoolOr("lstrip", false));
    NIBBLE_ASSIGN(token.rstrip, entry.GetBoolOr("rstrip", false));
    NIBBLE_ASSIGN(token.special, entry.GetBoolOr("special", false));
    NIBBLE_ASSIGN(token.normalized, entry.GetBoolOr("normalized", !token.special));
    bytes += content.size();
    if (content.empty() || content.size() > kMaxTokenBytes || bytes > kMaxAddedBytes) {
      return Error(Code::kInvalidArgument,
                   "{}: content of {} bytes; 1 to {} a token and {} together are supported", entry.Where(),
                   content.size(), kMaxTokenBytes, kMaxAddedBytes);
    }
    if (!contents.insert(content).second || !ids.insert(token.id).second) {
      return Error(Code::kInvalidArgument, "{}: \"{}\" with id {} repeats a content or an id", entry.Where(),
                   Printable(content), token.id);
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace nibble
