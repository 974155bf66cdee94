// SPDX-License-Identifier: Apache-2.0
// Floor 9. What the commands share: common options, exit codes, reading prompts, loading an engine, signals.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/cli/parser.h"
#include "engine/engine.h"

namespace nibble::cli {

// Exit codes. Usage errors are what the command line alone shows to be wrong; 128 + signal follows the
// shells.
inline constexpr int kExitOk = 0, kExitFailed = 1, kExitUsage = 2, kExitSignal = 128;

// Keys in the order in which they are written.
using Json = nlohmann::ordered_json;

// A subcommand. `run` gives the exit code, or the error that main prints (exit code 1). Mistakes in the
// command line are thrown as UsageError by the parser and its callbacks, before `run`.
struct Command {
  Parser parser;
  std::function<Result<int>()> run;
};

// Each in the file of its name. The options live as long as the Command.
Command AddGenerate(Parser app);
Command AddQuantize(Parser app);
Command AddEval(Parser app);
Command AddCompare(Parser app);
Command AddTokenize(Parser app);
Command AddInspect(Parser app);
Command AddCalibrate(Parser app);
Command AddBench(Parser app);
Command AddServe(Parser app);

struct CommonOptions {
  int threads = 0;  // 0: all available
  std::string device = "cpu", recipe = "exact", dtype = "f32", plan = "";
  std::string pack_cache = "off", numa = "off";  // of AddPlacement
  bool explain = false, quiet = false;
};
void AddCommon(Parser parser, CommonOptions& options);
// Where weights come from and where threads and memory are: of commands that pass all of CommonOptions on.
void AddPlacement(Parser parser, CommonOptions& options);
void AddModel(Parser parser, std::string& model);  // -m, required

// Throws UsageError when `recipe` does not parse.
void CheckRecipe(const std::string& option, const std::string& recipe, const std::string& dtype);
DType ToDType(const std::string& name);          // REQUIRES "f32" or "bf16"
DeviceChoice ToDevice(const std::string& name);  // REQUIRES "cpu", "cuda" or "auto"
NumaMode ToNumaMode(const std::string& name);    // REQUIRES "off", "distribute", "isolate" or "numactl"
PackCache ToPackCache(const std::string& name);  // REQUIRES "off", "on" or "rebuild"

// Loads, prints notes ("nibble: note: ...") unless quiet, and the explanation when asked; both to stderr.
Result<std::unique_ptr<Engine>> LoadEngine(const EngineOptions& options, const CommonOptions& common);
EngineOptions ToEngineOptions(const std::string& model, const CommonOptions& common);
void PrintNotes(const std::vector<std::string>& notes, const CommonOptions& common);

// The bytes of a file or pipe, "-" for standard input. kIo and kNotFound name the path; at most `max_bytes`.
inline constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;
Result<std::string> ReadText(const std::string& path, uint64_t max_bytes = kMaxTextBytes);

// Writes to stdout at once. Whether everything reached it is told by FinishStdout.
void Print(std::string_view text);
// What a decode row read: "bytes_read_per_row" and its neighbours; nothing when no row was counted.
void AddReads(const RowReads& reads, Json* json);
void PrintJson(const Json& value);  // one line; bytes that are not UTF-8 become U+FFFD
Status FinishStdout();

// While it lives, the first SIGINT or SIGTERM sets the flag and the second ends the process at once.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
  const std::atomic<bool>* flag() const;
  int ExitCode() const;  // kExitOk, or kExitSignal + the signal that came
};

}  // namespace nibble::cli
