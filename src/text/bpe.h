// SPDX-License-Identifier: Apache-2.0
// Floor 5. The BPE model of tokenizer.json: vocabulary, merges, byte fallback.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;
inline constexpr size_t kMaxTokenBytes = size_t{64} << 10;

// (left id, right id) -> (rank, joined id): open addressing, filled once.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair = UINT64_MAX;
    uint32_t rank = 0;
    int32_t id = -1;
  };
  explicit MergeTable(size_t merges);
  void Put(int32_t left, int32_t right, uint32_t rank, int32_t id);  // a later merge of a pair replaces
  const Entry* Find(int32_t left, int32_t right) const;              // nullptr when the pair does not merge

 private:
  size_t Slot(uint64_t pair) const;
  std::vector<Entry> entries_;
};

class Bpe {
 public:
  static Result<Bpe> Load(JsonRef model);
  Bpe(Bpe&&) = default;
  Bpe& operator=(Bpe&&) = default;

  // Appends the ids of one pre-tokenized piece. O(n log n). REQUIRES: UTF-8, at most 2^31 - 1 bytes.
  void Encode(std::string_view piece, std::vector<int32_t>* ids) const;
  // The same without the shortcut of ignore_merges (a piece that is a token stays whole).
  void EncodeByMerges(std::string_view piece, std::vector<int32_t>* ids) const;

  std::optional<int32_t> Find(std::string_view token) const;
  bool ignore_merges() const { return ignore_merges_; }
  // Entries of the vocabulary with their ids, in file order.
  struct Token {
    std::string text;
    int32_t id;
  };
  const std::vector<Token>& tokens() const { return tokens_; }

 private:
  Bpe() : merges_(0) {}
  Status LoadVocabulary(JsonRef vocab);
  Status LoadMerges(JsonRef merges);
  Status LoadUnknown(JsonRef model);
  int32_t FindChar(std::string_view piece, size_t* pos) const;
  bool AppendBytes(std::string_view character, std::vector<int32_t>* ids) const;
  void SplitToCharacters(std::string_view piece, std::vector<int32_t>* ids) const;

  std::vector<Token> tokens_;
  std::unordered_map<std::string_view, int32_t> by_text_;  // keys live in tokens_
  std::array<int32_t, 0x400> low_chars_{};  // id of each one-character token below U+0400, or -1
  std::array<int32_t, 256> byte_tokens_{};  // id of "<0xHH>", or -1
  MergeTable merges_;
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
};

}  // namespace nibble
