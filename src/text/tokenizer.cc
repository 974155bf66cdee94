// SPDX-License-Identifier: Apache-2.0
// Floor 5. Encoding, decoding and streaming.
#include "text/tokenizer.h"

#include <utility>

#include "base/utf8.h"
#include "text/bpe_tokenizer.h"
#include "text/decode_run.h"

namespace nibble {
namespace {

constexpr size_t kMaxTextBytes = size_t{64}
                                 << 20;  // encoding needs up to 40 bytes of memory a byte of one piece

}  // namespace

Result<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text, SpecialTokens special,
                                                  SpecialText special_text) const {
  if (text.size() > kMaxTextBytes) {
    return Error(Code::kInvalidArgument, "a text of {} bytes; at most {}", text.size(), kMaxTextBytes);
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return Error(Code::kInvalidArgument, "the text is not UTF-8: byte {} is 0x{:02X}", bad,
                 static_cast<unsigned char>(text[bad]));
  }
  std::vector<int32_t> ids;
  if (special == SpecialTokens::kAdd) ids = post_processor_.before;
  std::vector<TextPart> parts;
  exact_->Split(text, special_text == SpecialText::kPlain, &parts);
  for (const TextPart& part : parts) {
    if (part.token >= 0) {
      ids.push_back(added_[static_cast<size_t>(part.token)].id);
    } else {
      NIBBLE_RETURN_IF_ERROR(EncodeSection(part.span, text, special_text, &ids));
    }
  }
  if (special == SpecialTokens::kAdd) {
    ids.insert(ids.end(), post_processor_.after.begin(), post_processor_.after.end());
  }
  return ids;
}

// Text between added tokens that are matched before normalizing.
Status BpeTokenizer::EncodeSection(Span section, std::string_view text, SpecialText special_text,
                                   std::vector<int32_t>* ids) const {
  NormalText normal = {std::string(section.In(text)), section.begin == 0};
  if (normalizer_) NIBBLE_RETURN_IF_ERROR(normalizer_->Apply(&normal));
  std::vector<TextPart> parts;
  normalized_->Split(normal.text, special_text == SpecialText::kPlain, &parts);
  for (const TextPart& part : parts) {
    if (part.token >= 0) {
      ids->push_back(added_[static_cast<size_t>(part.token)].id);
      continue;
    }
    PieceList list;
    list.text = part.span.In(normal.text);
    list.pieces = {{0, list.text.size()}};
    list.at_start = normal.at_start && part.span.begin == 0;
    NIBBLE_RETURN_IF_ERROR(EncodeText(std::move(list), special_text, ids));
  }
  return Status();
}

Status BpeTokenizer::EncodeText(PieceList list, SpecialText special_text, std::vector<int32_t>* ids) const {
  if (pre_tokenizer_) NIBBLE_RETURN_IF_ERROR(pre_tokenizer_->Apply(&list));
  for (const Span& span : list.pieces) {
    const std::string_view piece = span.In(list.text);
    // A piece that spells a special token must not become it by the shortcut of ignore_merges.
    const bool spells = special_text == SpecialText::kPlain && special_contents_.count(piece) != 0;
    spells ? bpe_.EncodeByMerges(piece, ids) : bpe_.Encode(piece, ids);
  }
  return Status();
}

std::string BpeTokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  DecodeRun run(entries_, *decoder_, skip_special);
  for (const int32_t id : ids) run.Push(id);
  run.Finish();
  return run.Take();
}

std::string BpeTokenizer::TokenText(int32_t id) const {
  return id >= 0 && id < vocab_size() ? entries_[static_cast<size_t>(id)].text : std::string();
}

bool BpeTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && entries_[static_cast<size_t>(id)].special;
}

Result<TokenSpellings> BpeTokenizer::Spellings() const {
  TokenSpellings bytes;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TokenEntry& entry = entries_[i];
    std::string& anywhere = bytes.anywhere.emplace_back();
    std::string& first = bytes.first.emplace_back();
    if (!entry.exists || entry.special || entry.skip_special) continue;
    anywhere = entry.form;
    NIBBLE_RETURN_IF_ERROR(decoder_->ToBytes(false, &anywhere));
    const auto id = static_cast<int32_t>(i);
    // Decoding alone would replace a part of a character; what it drops at the beginning is whole.
    first = FindInvalidUtf8(anywhere) == std::string_view::npos ? Decode({&id, 1}, true) : anywhere;
  }
  return bytes;
}

std::unique_ptr<DecodeRun> BpeTokenizer::StartDecode(bool skip_special) const {
  return std::make_unique<DecodeRun>(entries_, *decoder_, skip_special);
}

DecodeRun::DecodeRun(const std::vector<TokenEntry>& entries, const TextDecoder& decoder, bool skip_special)
    : entries_(entries), skip_special_(skip_special) {
  auto sink = std::make_unique<DecodeSink>();
  sink_ = sink.get();
  first_ = decoder.Start(std::move(sink), false);
}

void DecodeRun::Push(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= entries_.size()) return;
  const TokenEntry& entry = entries_[static_cast<size_t>(id)];
  if (!entry.exists || (skip_special_ && entry.skip_special)) return;
  first_->Push(entry.form);
}

void DecodeRun::Finish() { first_->Finish(); }

std::string DecodeRun::Take() { return sink_->Take(); }

void DecodeRun::MoveTo(std::string* text) { sink_->MoveTo(text); }

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special), run_(tokenizer.StartDecode(skip_special)) {}

StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;

std::string StreamDecoder::Push(int32_t id) {
  run_->Push(id);
  return run_->Take();
}

void StreamDecoder::Push(int32_t id, std::string* text) {
  run_->Push(id);
  run_->MoveTo(text);
}

std::string StreamDecoder::Flush() {
  run_->Finish();
  std::string rest = run_->Take();
  run_ = tokenizer_->StartDecode(skip_special_);
  return rest;
}

}  // namespace nibble
