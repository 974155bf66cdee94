// SPDX-License-Identifier: Apache-2.0
// Floor 5. Reads tokenizer.json and checks it as a whole. Rules and limits: docs/formats/tokenizer.md.
#include <algorithm>
#include <utility>

#include "base/printable.h"
#include "text/bpe_tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr size_t kMaxIdGaps = 65536;  // ids that may be unused beyond one a token: tables are indexed by id

JsonRef FindOrNull(JsonRef root, std::string_view key) { return root.Find(key).value_or(JsonRef()); }

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& dir) {
  NIBBLE_ASSIGN(const Json json, Json::ReadFile(dir + "/tokenizer.json", {.max_bytes = kMaxFileBytes}));
  return Parse(json.root());
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::Parse(JsonRef root) {
  NIBBLE_ASSIGN(std::unique_ptr<Tokenizer> tokenizer, BpeTokenizer::Create(root));
  return tokenizer;
}

Result<std::unique_ptr<BpeTokenizer>> BpeTokenizer::Create(JsonRef root) {
  NIBBLE_ASSIGN(const std::string_view version, root.GetStringOr("version", "1.0"));
  if (version != "1.0") {
    return Error(Code::kUnsupported, "{}: version {}; only 1.0 is supported", root.Where(),
                 Printable(version));
  }
  NIBBLE_ASSIGN(const JsonRef model, root.Get("model"));
  NIBBLE_ASSIGN(Bpe bpe, Bpe::Load(model));
  std::unique_ptr<BpeTokenizer> t(new BpeTokenizer(std::move(bpe)));
  if (const JsonRef section = FindOrNull(root, "normalizer"); !section.is_null()) {
    NIBBLE_ASSIGN(t->normalizer_, LoadNormalizer(section));
  }
  if (const JsonRef section = FindOrNull(root, "pre_tokenizer"); !section.is_null()) {
    NIBBLE_ASSIGN(t->pre_tokenizer_, LoadPreTokenizer(section));
  }
  NIBBLE_ASSIGN(t->decoder_, LoadDecoder(FindOrNull(root, "decoder")));
  NIBBLE_RETURN_IF_ERROR(t->LoadAdded(root));
  NIBBLE_RETURN_IF_ERROR(t->FillEntries(root));
  const auto find = [&](std::string_view text) -> std::optional<int32_t> {
    if (const auto id = t->bpe_.Find(text)) return id;
    for (const AddedToken& token : t->added_) {
      if (token.content == text) return token.id;
    }
    return std::nullopt;
  };
  NIBBLE_ASSIGN(t->post_processor_, LoadPostProcessor(FindOrNull(root, "post_processor"), find));
  return t;
}

Status BpeTokenizer::LoadAdded(JsonRef root) {
  const JsonRef section = FindOrNull(root, "added_tokens");
  if (!section.is_null()) {
    NIBBLE_ASSIGN(added_, LoadAddedTokens(section));
  }
  NIBBLE_RETURN_IF_ERROR(NormalizeAdded());
  for (const AddedToken& token : added_) {
    if (token.special) special_contents_.insert(token.content);
    const auto id = bpe_.Find(token.content);
    if (id && *id != token.id) {
      return Error(Code::kInvalidArgument, "{}: added token \"{}\" has id {} but the vocabulary says {}",
                   section.Where(), Printable(token.content), token.id, *id);
    }
  }
  exact_ = std::make_unique<TokenFinder>(&added_, false);
  normalized_ = std::make_unique<TokenFinder>(&added_, true);
  return Status();
}

// Tokens marked `normalized` are looked for in normalized text, so their own normal form is what counts.
Status BpeTokenizer::NormalizeAdded() {
  std::unordered_set<std::string_view> forms;
  for (AddedToken& token : added_) {
    token.match = token.content;
    if (!token.normalized) continue;
    if (normalizer_) {
      NormalText normal = {token.content};
      NIBBLE_RETURN_IF_ERROR(normalizer_->Apply(&normal));
      token.match = std::move(normal.text);
    }
    if (token.match.empty() || !forms.insert(token.match).second) {
      return Error(Code::kUnsupported, "added token \"{}\" is {} when normalized", Printable(token.content),
                   token.match.empty() ? "empty" : "the same as another one");
    }
  }
  return Status();
}

Status BpeTokenizer::FillEntries(JsonRef root) {
  int32_t last = -1;
  for (const Bpe::Token& token : bpe_.tokens()) last = std::max(last, token.id);
  for (const AddedToken& token : added_) last = std::max(last, token.id);
  const size_t count = bpe_.tokens().size() + added_.size();
  if (last < 0) return Error(Code::kInvalidArgument, "{}: no tokens", root.Where());
  if (static_cast<size_t>(last) >= count * 2 + kMaxIdGaps) {
    return Error(Code::kInvalidArgument, "{}: id {} with only {} tokens", root.Where(), last, count);
  }
  entries_.resize(static_cast<size_t>(last) + 1);
  for (const Bpe::Token& token : bpe_.tokens()) {
    entries_[static_cast<size_t>(token.id)] = {token.text, token.text, true, false, false};
  }
  for (const AddedToken& token : added_) {
    TokenEntry& entry = entries_[static_cast<size_t>(token.id)];
    if (entry.exists && entry.text != token.content) {
      return Error(Code::kInvalidArgument,
                   "{}: added token \"{}\" has id {}, which is \"{}\" in the vocabulary", root.Where(),
                   Printable(token.content), token.id, Printable(entry.text));
    }
    entry = {token.content, token.match, true, token.special, false};
  }
  for (TokenEntry& entry : entries_)
    entry.skip_special = entry.exists && special_contents_.count(entry.form) != 0;
  return Status();
}

}  // namespace nibble
