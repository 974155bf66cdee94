// SPDX-License-Identifier: Apache-2.0
// Floor 5. Sorts the tokens and lays out the tree in the order in which it is walked.
#include "text/token_trie.h"

#include <algorithm>

namespace nibble {

Result<std::shared_ptr<const TokenTrie>> TokenTrie::Make(const Tokenizer& tokenizer, int vocab,
                                                         std::span<const int32_t> ends) {
  NIBBLE_ASSIGN(TokenSpellings tokens, tokenizer.Spellings());
  tokens.anywhere.resize(static_cast<size_t>(vocab));
  tokens.first.resize(static_cast<size_t>(vocab));
  return std::make_shared<const TokenTrie>(std::move(tokens), ends);
}

TokenTrie::TokenTrie(TokenSpellings tokens, std::span<const int32_t> ends) : tokens_(std::move(tokens)) {
  for (const int32_t id : ends) {
    if (id < 0 || id >= vocab()) continue;
    ends_.push_back(id);
    tokens_.anywhere[static_cast<size_t>(id)].clear();
  }
  std::vector<int32_t> sorted;
  for (int32_t id = 0; id < vocab(); ++id) {
    std::string& bytes = tokens_.anywhere[static_cast<size_t>(id)];
    if (bytes.size() > kMaxTokenBytes) bytes.clear();
    if (bytes.empty()) continue;
    sorted.push_back(id);
    first_differs_ |= bytes != FirstBytes(id);
    if (bytes.size() == 1) shape_.bytes.set(static_cast<unsigned char>(bytes[0]));
    shape_.longest = std::max(shape_.longest, static_cast<int>(bytes.size()));
  }
  // std::string compares bytes as unsigned.
  std::sort(sorted.begin(), sorted.end(), [this](int32_t a, int32_t b) {
    const int order = Bytes(a).compare(Bytes(b));
    return order != 0 ? order < 0 : a < b;
  });
  AddNodes(sorted);
}

void TokenTrie::AddNodes(const std::vector<int32_t>& sorted) {
  std::vector<size_t> path;  // nodes of the token before
  std::string_view before;
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[path.back()].after = static_cast<int32_t>(nodes_.size());
  };
  for (const int32_t id : sorted) {
    const std::string_view bytes = Bytes(id);
    const size_t shared = static_cast<size_t>(
        std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first - bytes.begin());
    close(shared);
    for (size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(nodes_.size());
      nodes_.push_back({0, static_cast<int32_t>(by_bytes_.size()), static_cast<uint16_t>(i + 1),
                        static_cast<uint8_t>(bytes[i])});
    }
    by_bytes_.push_back(id);
    before = bytes;
  }
  close(0);
  nodes_.push_back({0, static_cast<int32_t>(by_bytes_.size()), 0, 0});
}

}  // namespace nibble
