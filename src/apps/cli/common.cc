// SPDX-License-Identifier: Apache-2.0
// Floor 9. What the commands share.
#include "apps/cli/common.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace nibble::cli {
namespace {

constexpr int kMaxThreads = 1024;

int g_stdout_errno = 0;  // of the first write that failed
std::atomic<bool> g_interrupted{false};
std::atomic<int> g_signal{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void OnSignal(int signal) {
  g_signal = signal;
  g_interrupted = true;
}

// SA_RESETHAND: the second signal finds the default action, which ends the process.
void SetHandler(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = handler == SIG_DFL ? 0 : int(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

Status ReadAll(int fd, const std::string& path, uint64_t max_bytes, std::string& text) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return Error(Code::kIo, "{}: {}", path, std::strerror(errno));
  if (S_ISDIR(info.st_mode)) return Error(Code::kIo, "{}: is a folder, expected a text file", path);
  if (S_ISREG(info.st_mode)) text.reserve(std::min(uint64_t(info.st_size), max_bytes) + 1);
  char chunk[1 << 16];
  while (true) {
    const ssize_t n = read(fd, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error(Code::kIo, "{}: {}", path, std::strerror(errno));
    if (n == 0) return {};
    text.append(chunk, size_t(n));
    if (text.size() > max_bytes)
      return Error(Code::kInvalidArgument, "{}: longer than {} bytes", path, max_bytes);
  }
}

}  // namespace

void AddCommon(Parser parser, CommonOptions& options) {
  const char* group = "Common";
  parser.Add("-t,--threads", options.threads, "Threads; 0 takes all available processors [0]")
      .Range(0, kMaxThreads)
      .Type("N")
      .Group(group);
  parser
      .Add("--device", options.device,
           "Where the model runs: cpu, cuda, or auto for a GPU where there is one [cpu]")
      .OneOf({"cpu", "cuda", "auto"})
      .Type("D")
      .Group(group);
  parser
      .Add("--recipe", options.recipe,
           "How attention is computed and cached: a preset (exact, kv8, qserve) or k=... v=... [exact]")
      .Type("R")
      .Group(group);
  parser.Add("--plan", options.plan, "What nibble calibrate found for this model, for any recipe [none]")
      .Type("FILE")
      .Group(group);
  parser.Add("--dtype", options.dtype, "Arithmetic of the exact path: f32 or bf16 [f32]")
      .OneOf({"f32", "bf16"})
      .Type("T")
      .Group(group);
  parser.Flag("--explain", options.explain, "Print device, recipe and chosen kernels to standard error")
      .Group(group);
  parser.Flag("--quiet", options.quiet, "No progress bar, notes or summary on standard error").Group(group);
  parser.HelpAndVersion(group);
}

void AddPlacement(Parser parser, CommonOptions& options) {
  parser
      .Add("--pack-cache", options.pack_cache,
           "Weights in the form that the CPU reads, in a file inside the model folder: on maps it, or writes "
           "it "
           "where there is none; rebuild writes it anew [off]")
      .OneOf({"off", "on", "rebuild"})
      .Type("MODE")
      .Group("Common");
  parser
      .Add("--numa", options.numa,
           "On machines with several memory nodes: distribute spreads threads and memory over all, isolate "
           "keeps "
           "both on the node where the program starts, numactl takes what numactl set [off]")
      .OneOf({"off", "distribute", "isolate", "numactl"})
      .Type("MODE")
      .Group("Common");
}

void AddModel(Parser parser, std::string& model) {
  parser.Add("-m,--model", model, "Hugging Face model folder").Required().Type("DIR");
}

void CheckRecipe(const std::string& option, const std::string& recipe, const std::string& dtype) {
  const auto parsed = ParseRecipe(recipe, ToDType(dtype));
  if (!parsed.ok()) throw UsageError(option, parsed.status().message());
}

DType ToDType(const std::string& name) { return name == "bf16" ? DType::kBF16 : DType::kF32; }

DeviceChoice ToDevice(const std::string& name) {
  return name == "cuda" ? DeviceChoice::kCuda : name == "auto" ? DeviceChoice::kAuto : DeviceChoice::kCpu;
}

NumaMode ToNumaMode(const std::string& name) {
  for (const NumaMode mode : {NumaMode::kDistribute, NumaMode::kIsolate, NumaMode::kNumactl})
    if (name == ToString(mode)) return mode;
  return NumaMode::kOff;
}

PackCache ToPackCache(const std::string& name) {
  return name == "on" ? PackCache::kOn : name == "rebuild" ? PackCache::kRebuild : PackCache::kOff;
}

EngineOptions ToEngineOptions(const std::string& model, const CommonOptions& common) {
  EngineOptions options;
  options.model = model;
  options.recipe = common.recipe;
  options.dtype = ToDType(common.dtype);
  options.device = ToDevice(common.device);
  options.threads = common.threads;
  options.plan = common.plan;
  options.numa = ToNumaMode(common.numa);
  options.pack_cache = ToPackCache(common.pack_cache);
  return options;
}

Result<std::unique_ptr<Engine>> LoadEngine(const EngineOptions& options, const CommonOptions& common) {
  NIBBLE_ASSIGN(std::unique_ptr<Engine> engine, Engine::Load(options));
  PrintNotes(engine->Notes(), common);
  if (common.explain)
    for (const std::string& line : engine->Explain()) fmt::print(stderr, "{}\n", line);
  return engine;
}

void PrintNotes(const std::vector<std::string>& notes, const CommonOptions& common) {
  if (common.quiet) return;
  for (const std::string& note : notes) fmt::print(stderr, "nibble: note: {}\n", note);
}

void AddReads(const RowReads& reads, Json* json) {
  if (reads.sas_rows > 0) {
    (*json)["sas_dropped_mass"] = reads.sas_mass;
    (*json)["sas_dropped_weights"] = reads.sas_weights;
  }
  if (reads.tail_values > 0) (*json)["tail_clamped"] = reads.tail_clamped;
  if (reads.rows == 0) return;
  (*json)["decode_rows"] = reads.rows;
  (*json)["bytes_read_per_row"] = reads.bytes;
  (*json)["scalars_read_per_row"] = reads.scalars;
  (*json)["tokens_read_per_row"] = reads.tokens;
  (*json)["dense_fallbacks"] = reads.dense_fallbacks;
}

Result<std::string> ReadText(const std::string& path, uint64_t max_bytes) {
  std::string text;
  const bool standard_input = path == "-";
  const int fd = standard_input ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return Error(errno == ENOENT ? Code::kNotFound : Code::kIo, "{}: {}", path, std::strerror(errno));
  const Status status = ReadAll(fd, standard_input ? "standard input" : path, max_bytes, text);
  if (!standard_input) close(fd);
  if (!status.ok()) return status;
  return text;
}

void Print(std::string_view text) {
  const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if ((written < text.size() || std::fflush(stdout) != 0) && g_stdout_errno == 0) g_stdout_errno = errno;
}

void PrintJson(const Json& value) {
  Print(value.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

Status FinishStdout() {
  Print("");
  if (g_stdout_errno == 0) return {};
  return Error(Code::kIo, "cannot write to standard output: {}", std::strerror(g_stdout_errno));
}

SignalGuard::SignalGuard() {
  g_interrupted = false;
  g_signal = 0;
  for (int signal : {SIGINT, SIGTERM}) SetHandler(signal, OnSignal);
}

SignalGuard::~SignalGuard() {
  for (int signal : {SIGINT, SIGTERM}) SetHandler(signal, SIG_DFL);
}

const std::atomic<bool>* SignalGuard::flag() const { return &g_interrupted; }

int SignalGuard::ExitCode() const {
  const int signal = g_signal;
  return signal == 0 ? kExitOk : kExitSignal + signal;
}

}  // namespace nibble::cli
