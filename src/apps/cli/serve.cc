// SPDX-License-Identifier: Apache-2.0
// Floor 9. nibble serve: the engine behind HTTP until a signal comes.
#include <chrono>
#include <csignal>
#include <cstdlib>

#include "apps/cli/common.h"
#include "apps/cli/memory_plan.h"
#include "apps/cli/serve_options.h"
#include "apps/server/app.h"
#include "apps/server/log.h"

namespace nibble::cli {
namespace {

constexpr double kWatchSeconds = 1, kCutSeconds = 2;
constexpr double kMiB = 1 << 20;

// What the model will take, before anything of it is read.
Status PrintMemoryPlan(const ServingOptions& options, const CommonOptions& common) {
  if (common.quiet) return {};
  NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(options.engine.model));
  NIBBLE_ASSIGN(const auto weights, io::Weights::Open(options.engine.model));
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(options.engine.recipe, options.engine.dtype));
  const KvShape shape{config.layers, config.kv_heads, config.head_dim};
  const KvSizes one = PlanKv(shape, config.heads, recipe, 1, config.max_position);
  fmt::print(stderr,
             "nibble: plan: weights {:.1f} MiB, KV {:.3f} MiB per 1000 tokens, {:.2f} MiB per sequence\n",
             static_cast<double>(PackedWeightBytes(weights->tensors(), options.engine.dtype)) / kMiB,
             static_cast<double>(one.pool_bytes) / kMiB * 1000 / static_cast<double>(config.max_position),
             static_cast<double>(one.tail_bytes_per_seq) / kMiB);
  return {};
}

// Looks after the engine until a signal comes. kIo when the engine is beyond help: whoever supervises the
// process starts it again.
Result<int> Watch(server::HttpServer& http, const ServingEngine& engine, double limit) {
  while (true) {
    if (const int signal = http.WaitForSignal(kWatchSeconds); signal != 0) return signal;
    NIBBLE_RETURN_IF_ERROR(engine.Health());
    if (const double step = engine.Stats().step_under_way_seconds; step > limit)
      return Error(Code::kIo,
                   "a step of the engine has been running for {:.0f} s, at most {:.0f} are allowed", step,
                   limit);
  }
}

// What runs is answered, what comes is refused; then what still runs is cut.
int Drain(server::HttpServer& http, server::App& app, ServingEngine& engine, double seconds) {
  server::Log("info", "drain",
              fmt::format("\"under_way\":{},\"seconds\":{}", http.requests_under_way(), seconds));
  app.BeginDrain();
  http.Drain();
  const bool whole = http.WaitIdle(seconds);
  engine.Drain();
  const int cut = whole ? 0 : http.requests_under_way();
  engine.Stop();
  http.WaitIdle(kCutSeconds);
  server::Log("info", "end", fmt::format("\"cut\":{}", cut));
  return cut;
}

Result<int> Serve(const ServeOptions& o) {
  const ServingOptions options = ToServingOptions(o);
  NIBBLE_ASSIGN(const std::vector<std::string> keys, ReadApiKeys(o));
  server::HttpServerOptions http_options = o.http;
  if (!o.tls_certificate_file.empty()) {
    NIBBLE_ASSIGN(http_options.tls, server::LoadTls(o.tls_certificate_file, o.tls_key_file));
  }
  NIBBLE_RETURN_IF_ERROR(PrintMemoryPlan(options, o.common));
  const auto began = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN(const std::unique_ptr<ServingEngine> engine, ServingEngine::Start(options));
  NIBBLE_ASSIGN(const auto model, server::ServedModel::Make(engine.get(), o.model, o.name, o.template_file));
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - began;
  PrintNotes(engine->Notes(), o.common);
  if (o.common.explain)
    for (const std::string& line : engine->Explain()) fmt::print(stderr, "{}\n", line);
  server::App app({.limits = o.http.limits,
                   .api_keys = keys,
                   .cors_origins = o.cors_origins,
                   .threads = o.http.threads,
                   .device = o.common.device,
                   .load_seconds = load.count()},
                  model.get());
  NIBBLE_ASSIGN(const std::unique_ptr<server::HttpServer> http,
                server::HttpServer::Start(http_options, &app));
  app.SetConnections([&http] { return http->connections(); });
  if (!o.common.quiet)
    fmt::print(stderr, "nibble: {} ({}) loaded in {:.2f} s, {} KV tokens\n", model->name(),
               options.engine.recipe, load.count(), engine->options().kv_tokens);
  Print(fmt::format("{}://{}\n", http_options.tls ? "https" : "http", http->address()));
  server::Log("info", "ready", fmt::format("\"address\":\"{}\"", http->address()));
  auto signal = Watch(*http, *engine, o.watchdog_seconds);
  if (!signal.ok()) {  // the engine thread may hang, so nothing waits for it
    server::Log("error", "engine", fmt::format("\"error\":{}", server::Quoted(signal.status().message())));
    std::_Exit(kExitFailed);
  }
  const int cut = Drain(*http, app, *engine, o.http.limits.drain_seconds);
  return cut == 0 ? kExitOk : kExitSignal + *signal;
}

Result<int> Run(const ServeOptions& o, Parser parser) {
  if (o.config.print) {
    Print(DescribeConfig(parser, o.config, {"api-key"}));
    return kExitOk;
  }
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
  parser.Check([o] { CheckServeOptions(*o); });
  parser.Footer(
      "Examples:\n"
      "  nibble serve -m models/novelist-10m\n"
      "  nibble serve -m out/novelist-w4a8 --recipe qserve --host 0.0.0.0 --api-key-file keys.txt\n"
      "SIGTERM and Ctrl-C let running requests finish for --drain-seconds; a second one ends the server at "
      "once.");
  return {parser, [o, parser] { return Run(*o, parser); }};
}

}  // namespace nibble::cli
