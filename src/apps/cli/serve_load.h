// SPDX-License-Identifier: Apache-2.0
// Floor 9. The load that `nibble bench serve` puts on a server, and what became of every request.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace nibble::cli {

struct LoadOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;
  std::string api_key;
  int prompts = 100;
  double rate = 0;  // requests a second, Poisson; 0: all at once
  int input_tokens = 256, output_tokens = 64;
  int shared_prefix = 0;   // of the input: the same in all
  int max_id = 4000;       // prompts are random ids below it
  double temperature = 0;  // 0: greedy
  uint64_t seed = 0;
};

struct RequestOutcome {
  bool ok = false;
  int status = 0;                     // 0: no answer
  std::string error;                  // why not ok
  double first_token = 0, total = 0;  // seconds
  std::vector<double> gaps;           // between the pieces of the stream
  int new_tokens = 0;
};

// Seconds after the start at which each request is sent: gaps are drawn from an exponential distribution.
std::vector<double> Arrivals(const LoadOptions& options);
// A body of /v1/completions.
std::string LoadBody(const LoadOptions& options, int index);

struct LoadResult {
  std::vector<RequestOutcome> requests;
  double seconds = 0;  // from the first request to the last answer
};
LoadResult RunLoad(const LoadOptions& options);

}  // namespace nibble::cli
