// SPDX-License-Identifier: Apache-2.0
// Floor 9. The options of `nibble serve`.
#pragma once
#include <string>
#include <vector>

#include "apps/cli/common.h"
#include "apps/cli/config_file.h"
#include "apps/server/http_server.h"
#include "engine/serving.h"

namespace nibble::cli {

struct ServeOptions {
  CommonOptions common;
  ConfigFile config;
  // Every model is served under every recipe. Names: one a model, or any number for a single model.
  std::vector<std::string> models, names, recipe_lists;
  std::vector<std::string> recipes;  // of --recipes or --recipe, at least one, none twice
  std::string template_file, key_file;
  std::string tls_certificate_file, tls_key_file;
  server::HttpServerOptions http;
  ServingOptions engine;
  std::string admission = "prompt", preempt = "recompute";
  double swap_gib = 4;      // --swap-space
  int max_connections = 0;  // 0: those of the limits, fewer where the system allows fewer open files
  bool no_prefix_cache = false, print_limits = false, no_log = false;
  std::vector<std::string> api_keys, cors_origins;
  double watchdog_seconds = 120;
};

void AddServeOptions(Parser parser, ServeOptions& options);
// Throws UsageError for what only the whole command line shows; fills in the recipes.
void CheckServeOptions(Parser parser, ServeOptions& options);

ServingOptions ToServingOptions(const ServeOptions& options, const std::string& model);
// Of --api-key, NIBBLE_API_KEY and --api-key-file, a key a line.
Result<std::vector<std::string>> ReadApiKeys(const ServeOptions& options);

}  // namespace nibble::cli
