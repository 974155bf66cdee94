// SPDX-License-Identifier: Apache-2.0
// Floor 5. The pre-tokenizers, one class each.
#include "text/pre_tokenizer.h"

#include <utility>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/metaspace.h"
#include "text/replace.h"
#include "text/split.h"
#include "text/unicode.h"

namespace nibble {
namespace {

// Replaces the text by the one that `rewrite` appends piece by piece; a piece stays one piece.
template <class Rewrite>
void RewritePieces(PieceList* list, const Rewrite& rewrite) {
  std::string text;
  text.reserve(list->text.size() + list->text.size() / 8);
  const bool starts = list->at_start && !list->pieces.empty() && list->pieces[0].begin == 0;
  for (Span& piece : list->pieces) {
    const size_t begin = text.size();
    rewrite(piece.In(list->text), starts && piece.begin == 0, &text);
    piece = {begin, text.size()};
  }
  list->text = std::move(text);
  list->at_start = starts;
}

// Cuts every piece at the matches that `find` reports.
template <class Find>
Status SplitPieces(PieceList* list, bool invert, SplitBehavior behavior, const Find& find) {
  std::vector<Span> pieces, matches;
  pieces.reserve(list->pieces.size());
  for (const Span& piece : list->pieces) {
    matches.clear();
    NIBBLE_RETURN_IF_ERROR(find(piece.In(list->text), &matches));
    SplitPiece(piece, matches, invert, behavior, &pieces);
  }
  list->pieces = std::move(pieces);
  return Status();
}

template <class Test>
Status SplitAtChars(PieceList* list, SplitBehavior behavior, const Test& test) {
  return SplitPieces(list, false, behavior, [&](std::string_view text, std::vector<Span>* matches) {
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      if (test(NextChar(text, &pos))) matches->push_back({begin, pos});
    }
    return Status();
  });
}

class Split final : public PreTokenizer {
 public:
  Split(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  Status Apply(PieceList* list) const override {
    return SplitPieces(list, invert_, behavior_,
                       [&](std::string_view text, std::vector<Span>* m) { return regex_.FindAll(text, m); });
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, std::unique_ptr<PreTokenizer> split)
      : add_prefix_space_(add_prefix_space), split_(std::move(split)) {}
  Status Apply(PieceList* list) const override {
    if (add_prefix_space_) {
      RewritePieces(list, [](std::string_view piece, bool, std::string* out) {
        if (piece[0] != ' ') out->push_back(' ');
        out->append(piece);
      });
    }
    if (split_) NIBBLE_RETURN_IF_ERROR(split_->Apply(list));
    RewritePieces(list, [](std::string_view piece, bool, std::string* out) {
      for (const char b : piece) AppendUtf8(kByteAlphabet.to_char[static_cast<unsigned char>(b)], out);
    });
    return Status();
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<PreTokenizer> split_;  // the pattern of GPT-2; null without use_regex
};

class MetaspaceSplit final : public PreTokenizer {
 public:
  explicit MetaspaceSplit(Metaspace options) : options_(std::move(options)) {}
  Status Apply(PieceList* list) const override {
    RewritePieces(list, [&](std::string_view piece, bool at_start, std::string* out) {
      const bool marked = piece[0] == ' ' || piece.substr(0, options_.mark.size()) == options_.mark;
      const bool prepend =
          options_.scheme == PrependScheme::kAlways || (options_.scheme == PrependScheme::kFirst && at_start);
      if (prepend && !marked) out->append(options_.mark);
      for (const char b : piece) b == ' ' ? out->append(options_.mark) : out->append(1, b);
    });
    if (!options_.split) return Status();
    size_t pos = 0;
    const char32_t mark = NextChar(options_.mark, &pos);
    return SplitAtChars(list, SplitBehavior::kMergedWithNext, [mark](char32_t c) { return c == mark; });
  }

 private:
  Metaspace options_;
};

class Digits final : public PreTokenizer {
 public:
  explicit Digits(bool individual) : individual_(individual) {}
  Status Apply(PieceList* list) const override {
    const auto behavior = individual_ ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    return SplitAtChars(list, behavior, unicode::IsNumeric);
  }

 private:
  bool individual_;
};

class Punctuation final : public PreTokenizer {
 public:
  explicit Punctuation(SplitBehavior behavior) : behavior_(behavior) {}
  Status Apply(PieceList* list) const override {
    return SplitAtChars(list, behavior_, unicode::IsPunctuation);
  }

 private:
  SplitBehavior behavior_;
};

class WhitespaceSplit final : public PreTokenizer {
 public:
  Status Apply(PieceList* list) const override {
    return SplitAtChars(list, SplitBehavior::kRemoved, unicode::IsWhitespace);
  }
};

class Whitespace final : public PreTokenizer {
 public:
  Status Apply(PieceList* list) const override {
    return SplitPieces(list, true, SplitBehavior::kRemoved, [](std::string_view text, std::vector<Span>* m) {
      return Regex::WordOrSymbolRun().FindAll(text, m);
    });
  }
};

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  Status Apply(PieceList* list) const override {
    for (const auto& part : parts_) NIBBLE_RETURN_IF_ERROR(part->Apply(list));
    return Status();
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

using Made = Result<std::unique_ptr<PreTokenizer>>;

Made LoadSplit(JsonRef section) {
  NIBBLE_ASSIGN(Regex regex, LoadPattern(section, "pattern"));
  NIBBLE_ASSIGN(const SplitBehavior behavior, LoadSplitBehavior(section, "behavior"));
  NIBBLE_ASSIGN(const bool invert, section.GetBoolOr("invert", false));
  return Made(std::make_unique<Split>(std::move(regex), behavior, invert));
}

Made LoadByteLevel(JsonRef section) {
  NIBBLE_ASSIGN(const bool add_prefix_space, section.GetBoolOr("add_prefix_space", true));
  NIBBLE_ASSIGN(const bool use_regex, section.GetBoolOr("use_regex", true));
  std::unique_ptr<PreTokenizer> split;
  if (use_regex) {
    NIBBLE_ASSIGN(Regex regex,
                  Regex::Compile("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                                 "|\\s+(?!\\S)|\\s+"));
    split = std::make_unique<Split>(std::move(regex), SplitBehavior::kIsolated, false);
  }
  return Made(std::make_unique<ByteLevel>(add_prefix_space, std::move(split)));
}

Made LoadSequence(JsonRef section) {
  NIBBLE_ASSIGN(const JsonRef list, section.Get("pretokenizers"));
  if (!list.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", list.Where());
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  for (size_t i = 0; i < list.size(); ++i) {
    NIBBLE_ASSIGN(auto part, LoadPreTokenizer(list[i]));
    parts.push_back(std::move(part));
  }
  return Made(std::make_unique<Sequence>(std::move(parts)));
}

}  // namespace

Result<std::unique_ptr<PreTokenizer>> LoadPreTokenizer(JsonRef section) {
  NIBBLE_ASSIGN(const std::string_view type, section.GetString("type"));
  if (type == "Sequence") return LoadSequence(section);
  if (type == "Split") return LoadSplit(section);
  if (type == "ByteLevel") return LoadByteLevel(section);
  if (type == "Whitespace") return Made(std::make_unique<Whitespace>());
  if (type == "WhitespaceSplit") return Made(std::make_unique<WhitespaceSplit>());
  if (type == "Metaspace") {
    NIBBLE_ASSIGN(Metaspace options, LoadMetaspace(section));
    return Made(std::make_unique<MetaspaceSplit>(std::move(options)));
  }
  if (type == "Digits") {
    NIBBLE_ASSIGN(const bool individual, section.GetBoolOr("individual_digits", false));
    return Made(std::make_unique<Digits>(individual));
  }
  if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (section.Find("behavior")) {
      NIBBLE_ASSIGN(behavior, LoadSplitBehavior(section, "behavior"));
    }
    return Made(std::make_unique<Punctuation>(behavior));
  }
  return Error(Code::kUnsupported, "{}: pre_tokenizer {} is not supported", section.Where(), Printable(type));
}

}  // namespace nibble
