// SPDX-License-Identifier: Apache-2.0
// Floor 9. The page of a comparison: the template of compare_page.html, embedded at build time, and the JSON.
#include "apps/cli/compare_page.h"

#include "apps/cli/compare_report.h"
#include "base/check.h"

namespace nibble::cli {

std::string CompareToPage(const Json& json) {
  constexpr std::string_view kPlace = "{{DATA}}";
  std::string data;
  // Inside a script element only "<" can end it or begin a comment; JSON may spell it otherwise.
  for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace))
    data += c == '<' ? "\\u003c" : std::string(1, c);
  std::string page(kComparePage);
  const size_t at = page.find(kPlace);
  NIBBLE_CHECK(at != page.npos, "the template has a place for its data");
  page.replace(at, kPlace.size(), data);
  return page;
}

}  // namespace nibble::cli
