// SPDX-License-Identifier: Apache-2.0
// Floor 9. nibble serve: the engine behind HTTP until a signal comes.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>

#include "apps/cli/common.h"
#include "apps/cli/serve_models.h"
#include "apps/server/app.h"
#include "apps/server/log.h"

namespace nibble::cli {
namespace {

constexpr double kWatchSeconds = 1, kCutSeconds = 2;
// Looks after the engines until a signal comes. kIo when one is beyond help: whoever supervises the process
// starts it again.
Result<int> Watch(server::HttpServer& http, const Served& served, double limit) {
  while (true) {
    if (const int signal = http.WaitForSignal(kWatchSeconds); signal != 0) return signal;
    for (const auto& engine : served.engines) {
      NIBBLE_RETURN_IF_ERROR(engine->Health());
      if (const double step = engine->Stats().step_under_way_seconds; step > limit)
        return Error(Code::kIo,
                     "a step of the engine has been running for {:.0f} s, at most {:.0f} are allowed", step,
                     limit);
    }
  }
}

// What runs is answered, what comes is refused; then what still runs is cut.
int Drain(server::HttpServer& http, server::App& app, const Served& served, double seconds) {
  server::Log("info", "drain",
              fmt::format("\"under_way\":{},\"seconds\":{}", http.requests_under_way(), seconds));
  app.BeginDrain();
  http.Drain();
  const bool whole = http.WaitIdle(seconds);
  for (const auto& engine : served.engines) engine->Drain();
  const int cut = whole ? 0 : http.requests_under_way();
  for (const auto& engine : served.engines) engine->Stop();
  http.WaitIdle(kCutSeconds);
  server::Log("info", "end", fmt::format("\"cut\":{}", cut));
  return cut;
}

void PrintLoaded(const ServeOptions& o, const Served& served, double seconds) {
  PrintNotes(served.engines[0]->Notes(), o.common);
  for (const auto& model : served.models.all()) {
    if (o.common.explain)
      for (const std::string& line : model->engine().Explain())
        fmt::print(stderr, "{}: {}\n", model->name(), line);
    const ServingOptions& options = model->engine().options();
    if (!o.common.quiet)
      fmt::print(stderr, "nibble: {} ({}) loaded in {:.2f} s, {} KV tokens\n", model->name(),
                 options.engine.recipe, seconds, options.kv_tokens);
  }
}

Result<int> Serve(const ServeOptions& o) {
  NIBBLE_ASSIGN(const std::vector<std::string> keys, ReadApiKeys(o));
  server::HttpServerOptions http_options = o.http;
  if (!o.tls_certificate_file.empty()) {
    NIBBLE_ASSIGN(http_options.tls, server::LoadTls(o.tls_certificate_file, o.tls_key_file));
  }
  NIBBLE_RETURN_IF_ERROR(PrintServePlan(o));
  const auto began = std::chrono::steady_clock::now();
  Served served;
  NIBBLE_RETURN_IF_ERROR(LoadServed(o, &served));
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - began;
  PrintLoaded(o, served, load.count());
  server::App app({.limits = o.http.limits,
                   .api_keys = keys,
                   .cors_origins = o.cors_origins,
                   .threads = o.http.threads,
                   .device = o.common.device,
                   .load_seconds = load.count()},
                  &served.models);
  NIBBLE_ASSIGN(const std::unique_ptr<server::HttpServer> http,
                server::HttpServer::Start(http_options, &app));
  app.SetConnections([&http] { return http->connections(); });
  Print(fmt::format("{}://{}\n", http_options.tls ? "https" : "http", http->address()));
  server::Log("info", "ready", fmt::format("\"address\":\"{}\"", http->address()));
  auto signal = Watch(*http, served, o.watchdog_seconds);
  if (!signal.ok()) {  // the engine thread may hang, so nothing waits for it
    server::Log("error", "engine", fmt::format("\"error\":{}", server::Quoted(signal.status().message())));
    std::_Exit(kExitFailed);
  }
  const int cut = Drain(*http, app, served, o.http.limits.drain_seconds);
  return cut == 0 ? kExitOk : kExitSignal + *signal;
}

// As many connections as asked for, else as many as there may be.
void FitConnections(ServeOptions& o) {
  int& most = o.http.limits.max_connections;
  if (o.max_connections > 0) {
    most = o.max_connections;
    return;
  }
  const int allowed = std::max(1, server::ConnectionsAllowed());
  if (allowed >= most) return;
  most = allowed;
  if (!o.common.quiet)
    fmt::print(stderr,
               "nibble: at most {} connections: the system's limit on open files (ulimit -Hn) is low\n",
               most);
}

Result<int> Run(ServeOptions& o, Parser parser) {
  if (o.config.print) {
    Print(DescribeConfig(parser, o.config, {"api-key"}));
    return kExitOk;
  }
  FitConnections(o);
  if (o.print_limits) {
    Print(o.http.limits.ToString());
    return kExitOk;
  }
  std::signal(SIGPIPE, SIG_IGN);  // a log that nobody reads must not end the server
  server::EnableLog(!o.no_log);
  return Serve(o);
}

}  // namespace

Command AddServe(Parser app) {
  auto o = std::make_shared<ServeOptions>();
  const Parser parser = app.Command("serve", "Answer OpenAI's API over HTTP");
  AddServeOptions(parser, *o);
  parser.Check([o, parser] { CheckServeOptions(parser, *o); });
  parser.Footer(
      "Examples:\n"
      "  nibble serve -m models/novelist-10m\n"
      "  nibble serve -m models/novelist-10m --recipes exact,qserve\n"
      "  nibble serve -m out/novelist-w4a8 --recipe qserve --host 0.0.0.0 --api-key-file keys.txt\n"
      "SIGTERM and Ctrl-C let running requests finish for --drain-seconds; a second one ends the server at "
      "once.");
  return {parser, [o, parser] { return Run(*o, parser); }};
}

}  // namespace nibble::cli
