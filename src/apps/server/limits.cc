// SPDX-License-Identifier: Apache-2.0
#include "apps/server/limits.h"

#include <fmt/format.h>

namespace nibble::server {

std::string Limits::ToString() const {
  std::string out;
  const auto line = [&out](const char* name, auto value) { out += fmt::format("{} {}\n", name, value); };
  line("max_connections", max_connections);
  line("max_header_bytes", max_header_bytes);
  line("max_headers", max_headers);
  line("max_body_bytes", max_body_bytes);
  line("min_body_rate", min_body_rate);
  line("max_unsent_bytes", max_unsent_bytes);
  line("header_seconds", header_seconds);
  line("body_seconds", body_seconds);
  line("idle_seconds", idle_seconds);
  line("send_seconds", send_seconds);
  line("ping_seconds", ping_seconds);
  line("drain_seconds", drain_seconds);
  line("max_queued_requests", max_queued_requests);
  line("max_queued_tokens", max_queued_tokens);
  line("max_parsing", max_parsing);
  line("max_json_depth", max_json_depth);
  line("max_json_nodes", max_json_nodes);
  line("max_choices", max_choices);
  line("max_stops", max_stops);
  line("max_stop_bytes", max_stop_bytes);
  line("max_logprobs", max_logprobs);
  line("max_logit_biases", max_logit_biases);
  line("max_messages", max_messages);
  line("max_tools", max_tools);
  return out;
}

}  // namespace nibble::server
