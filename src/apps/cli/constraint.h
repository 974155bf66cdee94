// SPDX-License-Identifier: Apache-2.0
// Floor 9. The options of `nibble generate` that say what the text must be.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "apps/cli/common.h"
#include "text/token_mask.h"

namespace nibble::cli {

struct ConstraintOptions {
  std::string grammar, grammar_file, schema, schema_file, regex;
};
void AddConstraint(Parser parser, ConstraintOptions& options);

// Throws UsageError when a text on the command line cannot be used, or options go against each
// other.
void CheckConstraint(const ConstraintOptions& options, bool ignore_eos);

// Null when no option is given. The message of an error names the option or the file. Notes go to standard
// error.
Result<std::shared_ptr<Constraint>> MakeConstraint(const ConstraintOptions& options, const Engine& engine,
                                                   const CommonOptions& common);

}  // namespace nibble::cli
