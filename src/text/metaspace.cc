// SPDX-License-Identifier: Apache-2.0
// Floor 5. The fields of Metaspace, the older add_prefix_space among them.
#include "text/metaspace.h"

#include "base/printable.h"
#include "base/utf8.h"

namespace nibble {

Result<Metaspace> LoadMetaspace(JsonRef section) {
  Metaspace m;
  NIBBLE_ASSIGN(const std::string_view mark, section.GetString("replacement"));
  size_t pos = 0;
  if (!mark.empty()) NextChar(mark, &pos);
  if (mark.empty() || pos != mark.size()) {
    return Error(Code::kInvalidArgument, "{}: replacement \"{}\" is not one character", section.Where(),
                 Printable(mark));
  }
  m.mark = mark;
  NIBBLE_ASSIGN(const std::string_view scheme, section.GetStringOr("prepend_scheme", "always"));
  if (scheme == "first") {
    m.scheme = PrependScheme::kFirst;
  } else if (scheme == "never") {
    m.scheme = PrependScheme::kNever;
  } else if (scheme != "always") {
    return Error(Code::kInvalidArgument, "{}: prepend_scheme {}; wanted always, first or never",
                 section.Where(), Printable(scheme));
  }
  NIBBLE_ASSIGN(const bool add_prefix_space, section.GetBoolOr("add_prefix_space", true));
  if (!add_prefix_space && m.scheme != PrependScheme::kNever) {
    return Error(Code::kInvalidArgument, "{}: add_prefix_space is false but prepend_scheme is {}",
                 section.Where(), scheme);
  }
  NIBBLE_ASSIGN(m.split, section.GetBoolOr("split", true));
  return m;
}

}  // namespace nibble
