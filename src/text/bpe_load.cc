// SPDX-License-Identifier: Apache-2.0
// Floor 5. Reads the model section of tokenizer.json and checks it: ids, merges, options. Rules and limits:
// docs/formats/tokenizer.md.
#include <fmt/format.h>

#include <unordered_set>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/bpe.h"

namespace nibble {
namespace {

constexpr size_t kMaxMerges = size_t{1} << 22;

Status RequireAbsent(JsonRef model, std::string_view key) {
  const auto value = model.Find(key);
  if (!value || value->is_null()) return Status();
  if (value->is_string() && (*value->String()).empty()) return Status();
  return Error(Code::kUnsupported, "{}: only null or \"\" is supported", value->Where());
}

}  // namespace

Result<Bpe> Bpe::Load(JsonRef model) {
  NIBBLE_ASSIGN(const std::string_view type, model.GetStringOr("type", "BPE"));
  if (type != "BPE") {
    return Error(Code::kUnsupported, "{}: model type {}; only BPE is supported", model.Where(),
                 Printable(type));
  }
  NIBBLE_RETURN_IF_ERROR(RequireAbsent(model, "continuing_subword_prefix"));
  NIBBLE_RETURN_IF_ERROR(RequireAbsent(model, "end_of_word_suffix"));
  NIBBLE_ASSIGN(const double dropout, model.GetNumberOr("dropout", 0.0));
  if (dropout != 0.0) {
    return Error(Code::kUnsupported, "{}: dropout {}; only null or 0 is supported", model.Where(), dropout);
  }
  Bpe bpe;
  NIBBLE_ASSIGN(bpe.fuse_unknown_, model.GetBoolOr("fuse_unk", false));
  NIBBLE_ASSIGN(bpe.byte_fallback_, model.GetBoolOr("byte_fallback", false));
  NIBBLE_ASSIGN(bpe.ignore_merges_, model.GetBoolOr("ignore_merges", false));
  NIBBLE_ASSIGN(const JsonRef vocab, model.Get("vocab"));
  NIBBLE_RETURN_IF_ERROR(bpe.LoadVocabulary(vocab));
  NIBBLE_ASSIGN(const JsonRef merges, model.Get("merges"));
  NIBBLE_RETURN_IF_ERROR(bpe.LoadMerges(merges));
  NIBBLE_RETURN_IF_ERROR(bpe.LoadUnknown(model));
  return bpe;
}

Status Bpe::LoadVocabulary(JsonRef vocab) {
  if (!vocab.is_object()) return Error(Code::kInvalidArgument, "{}: wanted an object", vocab.Where());
  tokens_.reserve(vocab.size());  // never grows: by_text_ points into it
  by_text_.reserve(vocab.size());
  low_chars_.fill(-1);
  byte_tokens_.fill(-1);
  std::unordered_set<int32_t> ids;
  ids.reserve(vocab.size());
  for (size_t i = 0; i < vocab.size(); ++i) {
    const std::string_view text = vocab.KeyAt(i);
    NIBBLE_ASSIGN(const int64_t wide, vocab[i].Int(0, kMaxTokenId));
    const auto id = static_cast<int32_t>(wide);
    if (text.size() > kMaxTokenBytes) {
      return Error(Code::kInvalidArgument, "{}: a token of {} bytes; at most {}", vocab.Where(), text.size(),
                   kMaxTokenBytes);
    }
    if (!ids.insert(id).second) {
      return Error(Code::kInvalidArgument, "{}: id {} is taken by another token", vocab[i].Where(), id);
    }
    tokens_.push_back({std::string(text), id});
    by_text_.emplace(tokens_.back().text, id);
    size_t pos = 0;
    const char32_t first = text.empty() ? char32_t{0x400} : NextChar(text, &pos);
    if (first < low_chars_.size() && pos == text.size()) low_chars_[first] = id;
  }
  for (int b = 0; b < 256; ++b)
    byte_tokens_[static_cast<size_t>(b)] = Find(fmt::format("<0x{:02X}>", b)).value_or(-1);
  return Status();
}

Status Bpe::LoadMerges(JsonRef merges) {
  if (!merges.is_array() || merges.size() > kMaxMerges) {
    return Error(Code::kInvalidArgument, "{}: wanted an array of at most {} merges", merges.Where(),
                 kMaxMerges);
  }
  merges_ = MergeTable(merges.size());
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const JsonRef merge = merges[i];
    std::string_view left, right;
    if (merge.is_string()) {
      NIBBLE_ASSIGN(const std::string_view both, merge.String());
      const size_t space = both.find(' ');
      if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
        return Error(Code::kInvalidArgument, "{}: \"{}\" is not two pieces", merge.Where(), Printable(both));
      }
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2) {
      NIBBLE_ASSIGN(left, merge[0].String());
      NIBBLE_ASSIGN(right, merge[1].String());
    } else {
      return Error(Code::kInvalidArgument, "{}: wanted \"left right\" or [left, right]", merge.Where());
    }
    joined.assign(left).append(right);
    const auto left_id = Find(left), right_id = Find(right), joined_id = Find(joined);
    if (left.empty() || right.empty() || !left_id || !right_id || !joined_id) {
      const std::string_view missing = !left_id || left.empty()     ? left
                                       : !right_id || right.empty() ? right
                                                                    : joined;
      return Error(Code::kInvalidArgument, "{}: \"{}\" is not in the vocabulary", merge.Where(),
                   Printable(missing));
    }
    merges_.Put(*left_id, *right_id, static_cast<uint32_t>(i), *joined_id);
  }
  return Status();
}

Status Bpe::LoadUnknown(JsonRef model) {
  const auto unknown = model.Find("unk_token");
  if (!unknown || unknown->is_null()) return Status();
  NIBBLE_ASSIGN(const std::string_view text, unknown->String());
  const auto id = Find(text);
  if (!id) {
    return Error(Code::kInvalidArgument, "{}: \"{}\" is not in the vocabulary", unknown->Where(),
                 Printable(text));
  }
  unknown_ = *id;
  return Status();
}

}  // namespace nibble
