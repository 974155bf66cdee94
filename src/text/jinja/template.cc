// SPDX-License-Identifier: Apache-2.0
// Floor 5. Compiling and rendering.
#include "text/jinja/template.h"

#include "text/jinja/parser.h"
#include "text/jinja/renderer.h"

namespace nibble::jinja {

Template::Template(std::unique_ptr<Tree> tree, std::string source, const Limits& limits)
    : tree_(std::move(tree)), source_(std::move(source)), limits_(limits) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Result<Template> Template::Compile(std::string_view text, std::string source, const Limits& limits,
                                   Trimming trimming) {
  NIBBLE_ASSIGN(Tree tree, Parse(text, source, limits, trimming));
  return Template(std::make_unique<Tree>(std::move(tree)), std::move(source), limits);
}

Result<std::string> Template::Render(const Entries& variables, std::time_t now) const {
  Run run(limits_, source_);
  run.now = now;
  std::string text = Renderer(run, *tree_, variables).Render();
  if (run.failed()) return run.status();
  return text;
}

}  // namespace nibble::jinja
