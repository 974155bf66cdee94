// SPDX-License-Identifier: Apache-2.0
// Floor 5. The normalizers, one class each.
#include "text/normalizer.h"

#include <utility>
#include <vector>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/replace.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kMaxInsertBytes = 256;  // Prepend and Replace insert words, not texts

Result<std::string> LoadInsert(JsonRef section, std::string_view key) {
  NIBBLE_ASSIGN(const std::string_view text, section.GetString(key));
  if (text.size() > kMaxInsertBytes) {
    return Error(Code::kUnsupported, "{}: {} of {} bytes; at most {}", section.Where(), key, text.size(),
                 kMaxInsertBytes);
  }
  return std::string(text);
}

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(unicode::NormalForm form) : form_(form) {}
  Status Apply(NormalText* t) const override {
    t->text = unicode::Normalize(t->text, form_);
    return Status();
  }

 private:
  unicode::NormalForm form_;
};

class Lowercase final : public Normalizer {
 public:
  Status Apply(NormalText* t) const override {
    std::string out;
    out.reserve(t->text.size());
    for (size_t pos = 0; pos < t->text.size();) unicode::AppendLowercase(NextChar(t->text, &pos), &out);
    t->text = std::move(out);
    return Status();
  }
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  Status Apply(NormalText* t) const override {
    size_t begin = 0, end = t->text.size();
    while (right_ && end > 0) {
      size_t pos = end;
      if (!unicode::IsWhitespace(PreviousChar(t->text, &pos))) break;
      end = pos;
    }
    while (left_ && begin < end) {
      size_t pos = begin;
      if (!unicode::IsWhitespace(NextChar(t->text, &pos))) break;
      begin = pos;
    }
    if (begin > 0) t->at_start = false;
    t->text = t->text.substr(begin, end - begin);
    return Status();
  }

 private:
  bool left_, right_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  Status Apply(NormalText* t) const override {
    if (!t->text.empty()) t->text.insert(0, text_);
    return Status();
  }

 private:
  std::string text_;
};

class Replace final : public Normalizer {
 public:
  explicit Replace(Replacement replacement) : replacement_(std::move(replacement)) {}
  Status Apply(NormalText* t) const override {
    size_t first_char = 0;
    if (!t->text.empty()) NextChar(t->text, &first_char);
    std::vector<Span> matches;
    NIBBLE_RETURN_IF_ERROR(replacement_.Apply(&t->text, &matches));
    // What replaces a match counts as coming from the match's last character.
    const bool moved = !matches.empty() && matches[0].begin == 0;
    if (moved && (replacement_.content.empty() || matches[0].end > first_char)) t->at_start = false;
    return Status();
  }

 private:
  Replacement replacement_;
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  Status Apply(NormalText* t) const override {
    for (const auto& part : parts_) NIBBLE_RETURN_IF_ERROR(part->Apply(t));
    return Status();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

using Made = Result<std::unique_ptr<Normalizer>>;

Made LoadSequence(JsonRef section) {
  NIBBLE_ASSIGN(const JsonRef list, section.Get("normalizers"));
  if (!list.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", list.Where());
  std::vector<std::unique_ptr<Normalizer>> parts;
  for (size_t i = 0; i < list.size(); ++i) {
    NIBBLE_ASSIGN(auto part, LoadNormalizer(list[i]));
    parts.push_back(std::move(part));
  }
  return Made(std::make_unique<Sequence>(std::move(parts)));
}

}  // namespace

Result<Regex> LoadPattern(JsonRef section, std::string_view key) {
  NIBBLE_ASSIGN(const JsonRef pattern, section.Get(key));
  const auto literal = pattern.Find("String"), expression = pattern.Find("Regex");
  if (literal.has_value() == expression.has_value()) {
    return Error(Code::kInvalidArgument, "{}: wanted {{\"String\": ...}} or {{\"Regex\": ...}}",
                 pattern.Where());
  }
  NIBBLE_ASSIGN(const std::string_view text, (literal ? literal : expression)->String());
  Result<Regex> regex = literal ? Regex::Literal(text) : Regex::Compile(text);
  if (!regex.ok()) return Error(regex.status().code(), "{}: {}", pattern.Where(), regex.status().message());
  return regex;
}

Result<Replacement> Replacement::Load(JsonRef section) {
  NIBBLE_ASSIGN(Regex pattern, LoadPattern(section, "pattern"));
  NIBBLE_ASSIGN(std::string content, LoadInsert(section, "content"));
  return Replacement{std::move(pattern), std::move(content)};
}

Status Replacement::Apply(std::string* text, std::vector<Span>* matches) const {
  NIBBLE_RETURN_IF_ERROR(pattern.FindAll(*text, matches));
  if (matches->empty()) return Status();
  if (text->size() + matches->size() * content.size() > kMaxNormalizedBytes) {
    return Error(Code::kInvalidArgument, "normalizing grows the text beyond {} bytes", kMaxNormalizedBytes);
  }
  std::string out;
  out.reserve(text->size());
  size_t done = 0;
  for (const Span& match : *matches) {
    out.append(*text, done, match.begin - done);
    out.append(content);
    done = match.end;
  }
  out.append(*text, done);
  *text = std::move(out);
  return Status();
}

Result<std::unique_ptr<Normalizer>> LoadNormalizer(JsonRef section) {
  NIBBLE_ASSIGN(const std::string_view type, section.GetString("type"));
  if (type == "Sequence") return LoadSequence(section);
  if (type == "NFC") return Made(std::make_unique<UnicodeForm>(unicode::NormalForm::kNfc));
  if (type == "NFD") return Made(std::make_unique<UnicodeForm>(unicode::NormalForm::kNfd));
  if (type == "NFKC") return Made(std::make_unique<UnicodeForm>(unicode::NormalForm::kNfkc));
  if (type == "NFKD") return Made(std::make_unique<UnicodeForm>(unicode::NormalForm::kNfkd));
  if (type == "Lowercase") return Made(std::make_unique<Lowercase>());
  if (type == "Prepend") {
    NIBBLE_ASSIGN(std::string text, LoadInsert(section, "prepend"));
    return Made(std::make_unique<Prepend>(std::move(text)));
  }
  if (type == "Replace") {
    NIBBLE_ASSIGN(Replacement replacement, Replacement::Load(section));
    return Made(std::make_unique<Replace>(std::move(replacement)));
  }
  if (type == "Strip") {
    NIBBLE_ASSIGN(const bool left, section.GetBool("strip_left"));
    NIBBLE_ASSIGN(const bool right, section.GetBool("strip_right"));
    return Made(std::make_unique<Strip>(left, right));
  }
  return Error(Code::kUnsupported, "{}: normalizer {} is not supported", section.Where(), Printable(type));
}

}  // namespace nibble
