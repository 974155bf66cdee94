// SPDX-License-Identifier: Apache-2.0
// Floor 5. A Jinja template, compiled once and rendered often: the subset that chat templates use, in the
// environment that transformers sets up for them (docs/formats/chat_template.md).
#pragma once
#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/jinja/lexer.h"
#include "text/jinja/value.h"

namespace nibble::jinja {

struct Tree;

class Template {
 public:
  // `source` opens every message. kInvalidArgument: "SOURCE, line N: what".
  static Result<Template> Compile(std::string_view text, std::string source, const Limits& limits = {},
                                  Trimming trimming = {});
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  // The names of `variables` are str. `now` is what strftime_now shows. Thread-safe.
  Result<std::string> Render(const Entries& variables, std::time_t now) const;

 private:
  Template(std::unique_ptr<Tree> tree, std::string source, const Limits& limits);
  std::unique_ptr<Tree> tree_;
  std::string source_;
  Limits limits_;
};

}  // namespace nibble::jinja
