// SPDX-License-Identifier: Apache-2.0
// Floor 5. The tokens of a vocabulary by the bytes that they add to a text, as a tree of common beginnings.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/automaton.h"
#include "text/tokenizer.h"

namespace nibble {

class TokenTrie {
 public:
  // A node is a beginning of a token, all but the empty one. Those below it follow it.
  struct Node {
    int32_t after;   // the first node that is not below it
    int32_t tokens;  // first of its tokens in tokens(); they end where those of the next node begin
    uint16_t depth;  // bytes
    uint8_t byte;    // the last of them
  };
  static constexpr size_t kMaxTokenBytes = 1024;  // a longer token is never allowed

  // `vocab`: rows of the model's logits, at least the tokens of the tokenizer. Special tokens are never
  // allowed, apart from `ends`, which end the text. kUnsupported when the tokenizer's decoder makes the bytes
  // of a token depend on others.
  static Result<std::shared_ptr<const TokenTrie>> Make(const Tokenizer& tokenizer, int vocab,
                                                       std::span<const int32_t> ends);
  TokenTrie(TokenSpellings tokens, std::span<const int32_t> ends);

  std::span<const Node> nodes() const { return {nodes_.data(), nodes_.size() - 1}; }
  std::span<const int32_t> TokensAt(int32_t node) const {
    const size_t begin = static_cast<size_t>(nodes_[node].tokens),
                 end = static_cast<size_t>(nodes_[node + 1].tokens);
    return std::span(by_bytes_).subspan(begin, end - begin);
  }
  // "" for a token that is never allowed. What the first token of a text adds may be less, even nothing.
  std::string_view Bytes(int32_t token) const { return tokens_.anywhere[static_cast<size_t>(token)]; }
  std::string_view FirstBytes(int32_t token) const { return tokens_.first[static_cast<size_t>(token)]; }
  bool first_differs() const { return first_differs_; }
  int vocab() const { return static_cast<int>(tokens_.anywhere.size()); }
  std::span<const int32_t> ends() const { return ends_; }
  const TokenShape& shape() const { return shape_; }

 private:
  void AddNodes(const std::vector<int32_t>& sorted);

  TokenSpellings tokens_;
  std::vector<int32_t> by_bytes_;  // ids, sorted by bytes
  std::vector<Node> nodes_;        // and one behind the last
  std::vector<int32_t> ends_;
  bool first_differs_ = false;  // for some token
  TokenShape shape_;
};

}  // namespace nibble
