// SPDX-License-Identifier: Apache-2.0
// Floor 9. Everything that a client of the server can make it spend, in one place; `nibble serve` prints it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace nibble::server {

struct Limits {
  // Connections.
  int max_connections = 4096;           // beyond: 503 and closed
  size_t max_header_bytes = 16u << 10;  // request line and headers together
  int max_headers = 100;                // lines
  size_t max_body_bytes = 32u << 20;    // after chunked coding is taken off
  size_t min_body_rate = 16u << 10;     // bytes a second beyond body_seconds
  size_t max_unsent_bytes = 1u << 20;   // of a stream; a client that reads slower loses it
  double header_seconds = 10;           // from the first byte of a request to the end of its headers
  double body_seconds = 30;             // for a body, and its bytes / min_body_rate more
  double idle_seconds = 75;             // between requests
  double send_seconds = 30;             // without the client taking a byte
  double ping_seconds = 15;             // of silence before a stream says that it lives
  double drain_seconds = 30;            // after SIGTERM, for what runs

  // Requests.
  int max_queued_requests = 1024;       // waiting in the engine; each of n and best_of counts
  int64_t max_queued_tokens = 1 << 20;  // of the prompts among them
  int max_parsing = 256;                // read but not yet given to the engine
  int max_json_depth = 64;
  size_t max_json_nodes = 1'000'000;
  int max_choices = 128;  // n and best_of, and their product with the prompts of a call
  int max_stops = 4;
  size_t max_stop_bytes = 1024;  // of one stop text
  int max_logprobs = 20;
  int max_logit_biases = 1024;
  int max_messages = 4096;
  int max_tools = 128;

  std::string ToString() const;  // one "name value" a line
};

}  // namespace nibble::server
