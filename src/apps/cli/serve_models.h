// SPDX-License-Identifier: Apache-2.0
// Floor 9. What `nibble serve` serves: every model under every recipe, an engine each, over one copy of a
// model's weights.
#pragma once
#include <memory>
#include <vector>

#include "apps/cli/serve_options.h"
#include "apps/server/served_model.h"
#include "base/fair_turns.h"

namespace nibble::cli {

struct Served {
  FairTurns turns;  // of all engines: there is one set of processors
  std::vector<std::unique_ptr<ServingEngine>> engines;
  server::ServedModels models;
};

// What all of it will take in memory, before anything is loaded; one line a model and recipe.
Status PrintServePlan(const ServeOptions& options);
Status LoadServed(const ServeOptions& options, Served* served);

}  // namespace nibble::cli
