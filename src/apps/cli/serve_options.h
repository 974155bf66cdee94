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
  std::string model, name, template_file, key_file;
  std::string tls_certificate_file, tls_key_file;
  server::HttpServerOptions http;
  ServingOptions engine;
  std::string admission = "prompt";
  bool no_prefix_cache = false, print_limits = false, no_log = false;
  std::vector<std::string> api_keys, cors_origins;
  double watchdog_seconds = 120;
};

void AddServeOptions(Parser parser, ServeOptions& options);
// Throws UsageError for what only the whole command line shows.
void CheckServeOptions(const ServeOptions& options);

ServingOptions ToServingOptions(const ServeOptions& options);
// Of --api-key, NIBBLE_API_KEY and --api-key-file, a key a line.
Result<std::vector<std::string>> ReadApiKeys(const ServeOptions& options);

}  // namespace nibble::cli
