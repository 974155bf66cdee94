// SPDX-License-Identifier: Apache-2.0
// Floor 5. str(), repr() and json.dumps(). Recursion: values are at most Limits::value_depth deep, namespaces
// and macros in them count as evaluations.
#include "text/jinja/print.h"

#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/frame.h"
#include "text/jinja/operators.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

void AppendQuoted(std::string_view text, std::string* out) {
  const bool has_single = text.find('\'') != Text::npos, has_double = text.find('"') != Text::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out->push_back(quote);
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = NextChar(text, &pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      *out += {'\\', static_cast<char>(c)};
    } else if (c == '\n') {
      *out += "\\n";
    } else if (c == '\r') {
      *out += "\\r";
    } else if (c == '\t') {
      *out += "\\t";
    } else if (IsPrintable(c)) {
      *out += text.substr(at, pos - at);
    } else if (c < 0x100) {
      *out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      *out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      *out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out->push_back(quote);
}

class Printer {
 public:
  Printer(Run& run, std::string* out) : run_(run), out_(*out) {}

  void Repr(const Value& v) {
    const Deeper deeper(run_);
    if (!run_.Step() || !TextFits()) return;
    switch (v.type()) {
      case Type::kString:
        if (run_.AllowText(v.text().size())) AppendQuoted(v.text(), &out_);
        return;
      case Type::kMissing:
      case Type::kUndefined:
        out_ += "Undefined";
        return;
      case Type::kNone:
        out_ += "None";
        return;
      case Type::kBool:
        out_ += v.boolean() ? "True" : "False";
        return;
      case Type::kInt:
        out_ += std::to_string(v.integer());
        return;
      case Type::kFloat:
        out_ += FloatText(v.real());
        return;
      case Type::kRange:
        out_ += fmt::format("range({}, {}", v.range().start, v.range().stop);
        out_ += v.range().step == 1 ? ")" : fmt::format(", {})", v.range().step);
        return;
      case Type::kMacro:
        return Macro(*v.macro());
      case Type::kLoop:
      case Type::kIterator:
      case Type::kMethod:
      case Type::kFunction:
        run_.Fail("a {} has no text (Python would print an address)", TypeName(v));
        return;
      default:
        return Container(v);
    }
  }

 private:
  bool TextFits() {
    if (out_.size() > run_.limits().string_bytes) return run_.AllowText(out_.size());
    return !run_.failed();
  }

  void Container(const Value& v) {
    switch (v.type()) {
      case Type::kList:
        return Items(v.items(), "[", "]");
      case Type::kTuple:
        return Items(v.items(), "(", v.items().size() == 1 ? ",)" : ")");
      case Type::kView:
        out_ += v.view_name();
        return Items(v.items(), "([", "])");
      case Type::kDict:
        return Pairs(v.entries());
      default:
        out_ += "<Namespace ";
        Pairs(*v.names());
        out_ += ">";
    }
  }

  void Macro(const jinja::Macro& macro) {
    out_ += "<Macro ";
    if (macro.node->kind == NodeKind::kMacro) {
      AppendQuoted(macro.node->left->name, &out_);
    } else {
      out_ += "anonymous";
    }
    out_ += ">";
  }

  void Items(const Values& items, std::string_view open, std::string_view close) {
    out_ += open;
    for (size_t i = 0; i < items.size() && !run_.failed(); ++i) {
      if (i > 0) out_ += ", ";
      Repr(items[i]);
    }
    out_ += close;
  }

  void Pairs(const Entries& entries) {
    out_ += "{";
    for (size_t i = 0; i < entries.size() && !run_.failed(); ++i) {
      if (i > 0) out_ += ", ";
      Repr(entries[i].first);
      out_ += ": ";
      Repr(entries[i].second);
    }
    out_ += "}";
  }

  Run& run_;
  std::string& out_;
};

class JsonWriter {
 public:
  JsonWriter(Run& run, const JsonStyle& style, std::string* out) : run_(run), style_(style), out_(*out) {}

  void Write(const Value& v, int level) {
    if (!run_.Step() || !TextFits()) return;
    switch (v.type()) {
      case Type::kNone:
        out_ += "null";
        return;
      case Type::kBool:
        out_ += v.boolean() ? "true" : "false";
        return;
      case Type::kInt:
        out_ += std::to_string(v.integer());
        return;
      case Type::kFloat:
        out_ += Number(v.real());
        return;
      case Type::kString:
        return Quoted(v.text());
      case Type::kList:
      case Type::kTuple:
        return Items(v.items(), level);
      case Type::kDict:
        return Pairs(v.entries(), level);
      default:
        run_.Fail("tojson: an object of type {} has no JSON", TypeName(v));
    }
  }

 private:
  bool TextFits() {
    if (out_.size() > run_.limits().string_bytes) return run_.AllowText(out_.size());
    return !run_.failed();
  }

  static std::string Number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
    return FloatText(d);
  }

  void NewLine(int level) {
    if (!style_.indent) return;
    out_ += "\n";
    for (int i = 0; i < level && TextFits(); ++i) out_ += *style_.indent;
  }

  void Items(const Values& items, int level) {
    out_ += "[";
    for (size_t i = 0; i < items.size() && !run_.failed(); ++i) {
      if (i > 0) out_ += style_.between;
      NewLine(level + 1);
      Write(items[i], level + 1);
    }
    if (!items.empty()) NewLine(level);
    out_ += "]";
  }

  void Pairs(const Entries& entries, int level) {
    std::vector<const std::pair<Value, Value>*> order;
    for (const auto& entry : entries) order.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [this](const auto* a, const auto* b) {
        return Ordered(run_, Operator::kLt, a->first, b->first);
      });
    }
    out_ += "{";
    for (size_t i = 0; i < order.size() && !run_.failed(); ++i) {
      if (i > 0) out_ += style_.between;
      NewLine(level + 1);
      Key(order[i]->first);
      out_ += style_.after_key;
      Write(order[i]->second, level + 1);
    }
    if (!entries.empty()) NewLine(level);
    out_ += "}";
  }

  void Key(const Value& key) {
    if (key.is_string()) return Quoted(key.text());
    if (!key.is_number() && !key.is_none()) {
      run_.Fail("tojson: keys must be str, int, float, bool or None, not {}", TypeName(key));
      return;
    }
    out_ += '"';
    Write(key, 0);
    out_ += '"';
  }

  void Quoted(std::string_view text) {
    if (!run_.AllowText(text.size())) return;
    out_ += '"';
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const char32_t c = NextChar(text, &pos);
      constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kNames = "\"\\bfnrt";
      const size_t i = c < 0x80 ? kShort.find(static_cast<char>(c)) : Text::npos;
      if (i != Text::npos) {
        out_ += {'\\', kNames[i]};
      } else if (c < 0x20 || (style_.ascii && c >= 0x80)) {
        Escape(c);
      } else {
        out_ += text.substr(at, pos - at);
      }
    }
    out_ += '"';
  }

  void Escape(char32_t c) {
    if (c < 0x10000) {
      out_ += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {  // as a pair of surrogates
      const uint32_t rest = static_cast<uint32_t>(c) - 0x10000;
      out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
    }
  }

  Run& run_;
  const JsonStyle& style_;
  std::string& out_;
};

}  // namespace

std::string FloatText(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", d);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string Repr(Run& run, const Value& v) {
  std::string out;
  Printer(run, &out).Repr(v);
  return run.failed() ? std::string() : out;
}

std::string Str(Run& run, const Value& v) {
  if (v.is_string()) return run.Scan(v.text().size()) ? v.text() : std::string();
  if (v.is_undefined() || v.is_missing()) return {};
  return Repr(run, v);
}

std::string ToJson(Run& run, const Value& v, const JsonStyle& style) {
  std::string out;
  JsonWriter(run, style, &out).Write(v, 0);
  return run.failed() ? std::string() : out;
}

}  // namespace nibble::jinja
