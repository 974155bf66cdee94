// SPDX-License-Identifier: Apache-2.0
// Floor 5. The tokenizer that tokenizer.json describes: added tokens, normalizer, pre-tokenizer, BPE,
// post-processor, decoder.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decode_run.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace nibble {

class BpeTokenizer final : public Tokenizer {
 public:
  static Result<std::unique_ptr<BpeTokenizer>> Create(JsonRef root);

  Result<std::vector<int32_t>> Encode(std::string_view text, SpecialTokens special,
                                      SpecialText special_text) const override;
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override;
  std::string TokenText(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  int vocab_size() const override { return static_cast<int>(entries_.size()); }
  Result<TokenSpellings> Spellings() const override;
  std::unique_ptr<DecodeRun> StartDecode(bool skip_special) const override;

 private:
  explicit BpeTokenizer(Bpe bpe) : bpe_(std::move(bpe)) {}
  Status LoadAdded(JsonRef root);
  Status NormalizeAdded();
  Status FillEntries(JsonRef root);

  Status EncodeSection(Span section, std::string_view text, SpecialText special_text,
                       std::vector<int32_t>* ids) const;
  Status EncodeText(PieceList list, SpecialText special_text, std::vector<int32_t>* ids) const;

  Bpe bpe_;
  std::vector<AddedToken> added_;
  std::unordered_set<std::string_view> special_contents_;  // of added_
  std::unique_ptr<TokenFinder> exact_, normalized_;        // tokens found before and after normalizing
  std::unique_ptr<Normalizer> normalizer_;                 // null: none
  std::unique_ptr<PreTokenizer> pre_tokenizer_;            // null: none
  std::unique_ptr<TextDecoder> decoder_;
  PostProcessor post_processor_;
  std::vector<TokenEntry> entries_;  // by id
};

}  // namespace nibble
