// SPDX-License-Identifier: Apache-2.0
// Floor 5. One rendering's budget and its error. Nothing throws: the first Fail stays, the value it gives is
// harmless, and whoever loops or recurses asks failed().
#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>

#include "base/printable.h"
#include "base/result.h"
#include "text/jinja/limits.h"
#include "text/jinja/value.h"

namespace nibble::jinja {

class Run {
 public:
  // `source` opens the message: "tokenizer_config.json: chat_template".
  Run(const Limits& limits, std::string_view source) : limits_(limits), source_(source) {}

  template <class... Args>
  Value Fail(fmt::format_string<Args...> format, Args&&... args) {
    if (status_.ok()) SetError(fmt::format(format, std::forward<Args>(args)...));
    return Value::None();
  }
  bool failed() const { return !status_.ok(); }
  const Status& status() const { return status_; }

  // False when the rendering has failed or fails now for having worked too long.
  bool Step(int64_t n = 1);
  bool Turn();  // of a loop
  // Work on that many bytes or entries, which is quicker than as many steps.
  bool Scan(size_t n) { return Step(static_cast<int64_t>(n / 16)); }
  // Before making a text or a list of that size.
  bool AllowText(size_t bytes);
  bool AllowItems(size_t n);
  bool Take(size_t bytes);  // of what is kept to the end of the rendering

  // Values that are counted; None when they are too much.
  Value String(std::string text);
  Value List(Values items);
  Value Tuple(Values items);
  Value Dict(Entries entries);
  Value Iterator(Values items);
  Value View(const char* name, Values items);

  const Limits& limits() const { return limits_; }
  int line = 1;         // of the template, for the message
  int depth = 0;        // evaluations inside evaluations
  int calls = 0;        // macros inside macros
  std::time_t now = 0;  // what strftime_now shows

 private:
  void SetError(std::string what);
  Value Kept(const Value& v);

  Limits limits_;
  std::string source_;
  Status status_;
  int64_t steps_ = 0, turns_ = 0;
  size_t bytes_ = 0;
};

// Counts one evaluation inside another while it lives.
class Deeper {
 public:
  explicit Deeper(Run& run) : run_(run) {
    if (++run_.depth > run_.limits().depth)
      run_.Fail("evaluations nested more than {} deep", run_.limits().depth);
  }
  ~Deeper() { --run_.depth; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Run& run_;
};

}  // namespace nibble::jinja
