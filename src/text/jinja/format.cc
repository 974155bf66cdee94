// SPDX-License-Identifier: Apache-2.0
// Floor 5. printf-style and brace-style formatting as Python does them.
#include "text/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/utf8.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxPrecision = 1000;  // digits; a double has no more that matter

struct Spec {
  std::string fill = " ";
  char align = 0;  // < > ^ =
  char sign = 0;   // + or blank
  bool alternate = false, zero = false;
  int64_t width = 0;
  char grouping = 0;  // , or _
  int precision = -1;
  char type = 0;
};

std::string RealDigits(double d, char type, int precision, bool alternate) {
  if (precision < 0) precision = 6;
  const char format[] = {
      '%', alternate ? '#' : '.', alternate ? '.' : '*', alternate ? '*' : type, alternate ? type : '\0',
      '\0'};
  std::string out(static_cast<size_t>(precision) + 330, '\0');  // 1e308 has 309 digits before the point
  // NOLINTNEXTLINE(clang-diagnostic-format-nonliteral): built from one letter above
  const int n = std::snprintf(out.data(), out.size(), format, precision, d);
  out.resize(static_cast<size_t>(n));
  return out;
}

std::string IntegerDigits(uint64_t n, char type) {
  switch (type) {
    case 'x':
      return fmt::format("{:x}", n);
    case 'X':
      return fmt::format("{:X}", n);
    case 'o':
      return fmt::format("{:o}", n);
    case 'b':
      return fmt::format("{:b}", n);
    default:
      return fmt::format("{}", n);
  }
}

void Group(std::string* digits, char separator) {
  size_t end = std::min(digits->find_first_not_of("0123456789"), digits->size());
  for (; end > 3; end -= 3) digits->insert(end - 3, 1, separator);
}

// `body` has no sign and no padding yet.
Value Padded(Run& run, const Spec& s, const std::string& sign, const std::string& body, char default_align) {
  const int64_t pad = s.width - Length(body) - static_cast<int64_t>(sign.size());
  const char align = s.align ? s.align : s.zero ? '=' : default_align;
  const std::string fill = s.zero && s.fill == " " ? "0" : s.fill;
  if (pad > 0 && !run.AllowText(static_cast<size_t>(std::min<int64_t>(pad, INT32_MAX)) * fill.size()))
    return Value::None();
  std::string before, after;
  const int64_t left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
  for (int64_t i = 0; i < pad; ++i) (i < left ? before : after) += fill;
  return run.String(align == '=' ? sign + before + body + after : before + sign + body + after);
}

std::string SignOf(const Spec& s, bool negative) {
  return negative ? "-" : s.sign ? std::string(1, s.sign) : std::string();
}

Value FormatInteger(Run& run, const Spec& s, int64_t n) {
  if (s.precision >= 0) return run.Fail("an integer is formatted without a precision");
  const uint64_t size = n < 0 ? uint64_t{0} - static_cast<uint64_t>(n) : static_cast<uint64_t>(n);
  std::string digits = IntegerDigits(size, s.type);
  if (s.grouping) Group(&digits, s.grouping);
  std::string sign = SignOf(s, n < 0);
  if (s.alternate && s.type && s.type != 'd') sign += {'0', s.type};
  return Padded(run, s, sign, digits, '>');
}

Value FormatReal(Run& run, const Spec& s, double d) {
  const double size = std::fabs(d);
  std::string digits;
  if (!std::isfinite(d)) {
    digits = std::isnan(d) ? "nan" : "inf";
  } else if (s.type == '%') {
    digits = RealDigits(size * 100, 'f', s.precision, s.alternate) + "%";
  } else if (s.type) {
    digits = RealDigits(size, s.type, s.precision, s.alternate);
  } else if (s.precision < 0) {
    digits = FloatText(size);
  } else {
    digits = RealDigits(size, 'g', s.precision, s.alternate);
    if (digits.find_first_of(".e") == std::string::npos) digits += ".0";
  }
  if (s.grouping) Group(&digits, s.grouping);
  return Padded(run, s, SignOf(s, std::signbit(d) && !std::isnan(d)), digits, '>');
}

Value FormatText(Run& run, const Spec& s, Text text) {
  if (s.precision >= 0 && Length(text) > s.precision) text = text.substr(0, OffsetOf(text, s.precision));
  Spec plain = s;
  if (plain.zero && !plain.align) plain.align = '<';
  return Padded(run, plain, {}, std::string(text), '<');
}

bool ReadNumber(Text format, size_t* pos, int64_t* out) {
  int64_t n = 0;
  const size_t start = *pos;
  for (; *pos < format.size() && format[*pos] >= '0' && format[*pos] <= '9'; ++*pos)
    n = std::min<int64_t>(n * 10 + (format[*pos] - '0'), INT32_MAX);
  *out = n;
  return *pos > start;
}

double AsReal(const Value& v) { return v.is(Type::kFloat) ? v.real() : static_cast<double>(v.integer()); }

class Percent {
 public:
  Percent(Run& run, Text format, const Value& values) : run_(run), format_(format), values_(values) {}

  Value Format() {
    std::string out;
    while (pos_ < format_.size() && !run_.failed() && run_.Step()) {
      const size_t at = std::min(format_.find('%', pos_), format_.size());
      out += format_.substr(pos_, at - pos_);
      pos_ = at + 1;
      if (at < format_.size()) out += Conversion();
      if (out.size() > run_.limits().string_bytes) run_.AllowText(out.size());
    }
    const bool sequence = values_.is(Type::kTuple);
    const bool spare =
        sequence ? used_ < values_.items().size()
                 : used_ == 0 && !named_ && (values_.is_number() || values_.is_string() || values_.is_none());
    if (spare) run_.Fail("%: not all values are used by the format");
    return run_.String(std::move(out));
  }

 private:
  Value Next() {
    if (values_.is(Type::kTuple)) {
      if (used_ < values_.items().size()) return values_.items()[used_++];
    } else if (used_++ == 0) {
      return values_;
    }
    return run_.Fail("%: not enough values for the format");
  }

  Value Named() {
    const size_t close = format_.find(')', pos_);
    if (close == Text::npos) return run_.Fail("%: a name without )");
    const Value key = run_.String(std::string(format_.substr(pos_ + 1, close - pos_ - 1)));
    pos_ = close + 1;
    if (!values_.is(Type::kDict)) return run_.Fail("%: names need a dict");
    if (run_.failed()) return Value::None();
    const Value* found = Lookup(run_, values_.entries(), key);
    return found ? *found : run_.Fail("%: no value named {}", Printable(key.text()));
  }

  int64_t Number() {
    int64_t n = 0;
    if (pos_ < format_.size() && format_[pos_] == '*') {
      ++pos_;
      const Value v = Next();
      if (!v.is_integral()) run_.Fail("%: * wants an int");
      return run_.failed() ? 0 : std::clamp<int64_t>(v.integer(), -INT32_MAX, INT32_MAX);
    }
    ReadNumber(format_, &pos_, &n);
    return n;
  }

  std::string Conversion() {
    Spec s;
    Value named;
    if (pos_ < format_.size() && format_[pos_] == '(') {
      named = Named();
      named_ = true;
    }
    for (; pos_ < format_.size() && Text("#0- +").find(format_[pos_]) != Text::npos; ++pos_) {
      const char flag = format_[pos_];
      s.alternate |= flag == '#';
      s.zero |= flag == '0';
      if (flag == '-') s.align = '<';
      if (flag == '+' || (flag == ' ' && !s.sign)) s.sign = flag;
    }
    s.width = Number();
    if (s.width < 0) s.align = '<', s.width = -s.width;
    if (s.align) s.zero = false;
    if (pos_ < format_.size() && format_[pos_] == '.') {
      ++pos_;
      s.precision = static_cast<int>(std::clamp<int64_t>(Number(), 0, INT32_MAX));
    }
    while (pos_ < format_.size() && Text("hlL").find(format_[pos_]) != Text::npos) ++pos_;
    if (pos_ >= format_.size()) return run_.Fail("%: the format ends inside a conversion"), std::string();
    s.type = format_[pos_++];
    if (s.type == '%') return "%";
    return Convert(s, named.is_missing() ? Next() : named);
  }

  std::string Convert(Spec s, const Value& v) {
    if (run_.failed()) return {};
    Value made;
    switch (s.type) {
      case 's':
      case 'r':
        s.zero = false;
        made = FormatText(run_, RightAligned(s), s.type == 's' ? Str(run_, v) : Repr(run_, v));
        break;
      case 'd':
      case 'i':
      case 'u':
        made = Decimal(s, v);
        break;
      case 'x':
      case 'X':
      case 'o':
        made = v.is_integral() ? FormatInteger(run_, s, v.integer()) : Wrong(s, v);
        break;
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        if (s.precision > kMaxPrecision)
          return run_.Fail("%: more than {} digits", kMaxPrecision), std::string();
        made = v.is_number() ? FormatReal(run_, s, AsReal(v)) : Wrong(s, v);
        break;
      case 'c':
        made = Character(s, v);
        break;
      default:
        run_.Fail("%: unknown conversion '{}'", Printable(std::string(1, s.type)));
    }
    return run_.failed() ? std::string() : made.text();
  }

  static Spec RightAligned(Spec s) {
    if (!s.align) s.align = '>';
    return s;
  }

  Value Decimal(Spec s, const Value& v) {
    const int64_t digits = std::exchange(s.precision, -1);
    s.type = 'd';
    if (digits > 0) return run_.Fail("%: a precision of integers is not supported");
    if (v.is_integral()) return FormatInteger(run_, s, v.integer());
    if (v.is(Type::kFloat) && std::fabs(v.real()) < 9.2e18)
      return FormatInteger(run_, s, static_cast<int64_t>(v.real()));
    return Wrong(s, v);
  }

  Value Character(const Spec& s, const Value& v) {
    std::string c;
    if (v.is_string() && Length(v.text()) == 1) {
      c = v.text();
    } else if (v.is_integral() && v.integer() >= 0 && v.integer() < 0x110000 &&
               (v.integer() < 0xD800 || v.integer() >= 0xE000)) {
      AppendUtf8(static_cast<char32_t>(v.integer()), &c);
    } else {
      return Wrong(s, v);
    }
    return FormatText(run_, RightAligned(s), c);
  }

  Value Wrong(const Spec& s, const Value& v) {
    if (v.is_undefined()) return run_.Fail("{}", v.message());
    return run_.Fail("%{} of a {}", s.type, TypeName(v));
  }

  Run& run_;
  Text format_;
  const Value& values_;
  size_t pos_ = 0, used_ = 0;
  bool named_ = false;
};

class Brace {
 public:
  Brace(Run& run, Text format, const Args& args) : run_(run), format_(format), args_(args) {}

  Value Format() {
    std::string out;
    for (size_t pos = 0; pos < format_.size() && !run_.failed() && run_.Step();) {
      const size_t at = std::min(format_.find_first_of("{}", pos), format_.size());
      out += format_.substr(pos, at - pos);
      pos = at + 1;
      if (at == format_.size()) break;
      if (pos < format_.size() && format_[pos] == format_[at]) {
        out += format_[pos++];
        continue;
      }
      const size_t close = format_.find('}', at);
      if (format_[at] == '}' || close == Text::npos) return run_.Fail("format: a single {}", format_[at]);
      const Value made = Field(format_.substr(pos, close - pos));
      if (run_.failed()) break;
      out += made.text();
      pos = close + 1;
      if (out.size() > run_.limits().string_bytes) run_.AllowText(out.size());
    }
    return run_.String(std::move(out));
  }

 private:
  Value Field(Text field) {
    if (field.find('{') != Text::npos) return run_.Fail("format: a field inside a field is not supported");
    const size_t colon = std::min(field.find(':'), field.size());
    Text name = field.substr(0, colon);
    char conversion = 0;
    if (const size_t mark = name.find('!'); mark != Text::npos) {
      if (mark + 2 != name.size() || Text("rs").find(name[mark + 1]) == Text::npos)
        return run_.Fail("format: conversions are !r and !s");
      conversion = name[mark + 1];
      name = name.substr(0, mark);
    }
    Value v = Named(name);
    if (conversion == 'r') v = run_.String(Repr(run_, v));
    if (conversion == 's') v = run_.String(Str(run_, v));
    Spec s;
    if (run_.failed() || !ParseSpec(field.substr(std::min(colon + 1, field.size())), &s))
      return Value::None();
    return Apply(s, v, colon + 1 < field.size());
  }

  Value Named(Text name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    Value v = First(name.substr(0, end));
    for (size_t pos = end; pos < name.size() && !run_.failed();) {
      if (name[pos] == '.') {
        const size_t stop = std::min(name.find_first_of(".[", pos + 1), name.size());
        if (stop == pos + 1) return run_.Fail("format: an empty attribute");
        v = GetAttr(run_, v, name.substr(pos + 1, stop - pos - 1));
        pos = stop;
        continue;
      }
      const size_t stop = name.find(']', pos);
      if (name[pos] != '[' || stop == Text::npos || stop == pos + 1) return run_.Fail("format: [ without ]");
      const Text key = name.substr(pos + 1, stop - pos - 1);
      size_t digits = 0;
      int64_t index = 0;
      const bool number = ReadNumber(key, &digits, &index) && digits == key.size();
      v = GetItem(run_, v, number ? Value::Int(index) : run_.String(std::string(key)));
      pos = stop + 1;
    }
    return v;
  }

  Value First(Text name) {
    size_t digits = 0;
    int64_t index = 0;
    const bool number = ReadNumber(name, &digits, &index) && digits == name.size();
    if (name.empty() || number) {
      (name.empty() ? automatic_ : manual_) = true;
      if (automatic_ && manual_) return run_.Fail("format: numbered and unnumbered fields");
      if (name.empty()) index = next_++;
      if (static_cast<size_t>(index) < args_.positional.size())
        return args_.positional[static_cast<size_t>(index)];
      return run_.Fail("format: no value for field {}", index);
    }
    for (const auto& [key, value] : args_.named)
      if (key == name) return value;
    return run_.Fail("format: no value named {}", Printable(name));
  }

  bool ParseSpec(Text t, Spec* s) {
    size_t pos = 0;
    const auto is_align = [](char c) { return c != 0 && Text("<>=^").find(c) != Text::npos; };
    size_t first = 0;
    if (!t.empty()) NextChar(t, &first);
    if (first < t.size() && is_align(t[first])) {
      s->fill = t.substr(0, first);
      s->align = t[first];
      pos = first + 1;
    } else if (!t.empty() && is_align(t[0])) {
      s->align = t[pos++];
    }
    const auto take = [&](Text any) {
      return pos < t.size() && any.find(t[pos]) != Text::npos ? t[pos++] : char{0};
    };
    s->sign = take("+- ");
    if (s->sign == '-') s->sign = 0;
    s->alternate = take("#") != 0;
    s->zero = take("0") != 0;
    ReadNumber(t, &pos, &s->width);
    s->grouping = take(",_");
    if (take(".")) {
      int64_t digits = 0;
      if (!ReadNumber(t, &pos, &digits)) return run_.Fail("format: a point without digits"), false;
      s->precision = static_cast<int>(digits);
    }
    s->type = take("sdfFeEgGxXobc%");
    if (pos != t.size()) run_.Fail("format: unknown format '{}'", Printable(t));
    return !run_.failed();
  }

  Value Apply(const Spec& s, const Value& v, bool any) {
    if (!any) return run_.String(Str(run_, v));
    const bool real_type = s.type && Text("fFeEgG%").find(s.type) != Text::npos;
    if (real_type && s.precision > kMaxPrecision)
      return run_.Fail("format: more than {} digits", kMaxPrecision);
    if (v.is_string()) {
      if ((s.type && s.type != 's') || s.align == '=' || s.sign || s.grouping || s.alternate)
        return run_.Fail("format: that format is not for text");
      return FormatText(run_, s, v.text());
    }
    if (v.is_number() && real_type) return FormatReal(run_, s, AsReal(v));
    if (v.is_integral() && s.type != 's' && s.type != 'c') return FormatInteger(run_, s, v.integer());
    if (v.is(Type::kFloat) && !s.type) return FormatReal(run_, s, v.real());
    return run_.Fail("format: that format is not for a {}", TypeName(v));
  }

  Run& run_;
  Text format_;
  const Args& args_;
  int64_t next_ = 0;
  bool automatic_ = false, manual_ = false;
};

}  // namespace

Value PercentFormat(Run& run, std::string_view format, const Value& values) {
  return Percent(run, format, values).Format();
}

Value BraceFormat(Run& run, std::string_view format, const Args& args) {
  return Brace(run, format, args).Format();
}

Value Replaced(Run& run, std::string_view text, std::string_view old, std::string_view with, int64_t max) {
  if (!run.Scan(text.size())) return Value::None();
  int64_t times = Count(text, old);
  if (max >= 0) times = std::min(times, max);
  if (with.size() > old.size()) {
    const size_t growth = with.size() - old.size();
    if (static_cast<size_t>(times) > run.limits().string_bytes / growth)
      return run.Fail("replace makes more than {} bytes", run.limits().string_bytes);
    if (!run.AllowText(text.size() + static_cast<size_t>(times) * growth)) return Value::None();
  }
  return run.String(Replace(text, old, with, max));
}

}  // namespace nibble::jinja
