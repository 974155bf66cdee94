// SPDX-License-Identifier: Apache-2.0
// Floor 5. The budget of a rendering.
#include "text/jinja/run.h"

namespace nibble::jinja {

std::string Limits::ToString() const {
  return fmt::format(
      "source_bytes {}\nnesting {}\nchain {}\nnodes {}\nsteps {}\nturns {}\nrange {}\nbytes {}\nstring_bytes "
      "{}\n"
      "calls {}\ndepth {}\nvalue_depth {}\n",
      source_bytes, nesting, chain, nodes, steps, turns, range, bytes, string_bytes, calls, depth,
      value_depth);
}

void Run::SetError(std::string what) {
  status_ = Error(Code::kInvalidArgument, "{}, line {}: {}", source_, line, what);
}

bool Run::Step(int64_t n) {
  steps_ += n;
  if (steps_ > limits_.steps) Fail("takes more than {} steps", limits_.steps);
  return !failed();
}

bool Run::Turn() {
  if (++turns_ > limits_.turns) Fail("takes more than {} loop turns", limits_.turns);
  return Step();
}

bool Run::Take(size_t bytes) {
  bytes_ += bytes;
  if (bytes_ > limits_.bytes) Fail("makes values of more than {} bytes", limits_.bytes);
  return !failed();
}

bool Run::AllowText(size_t bytes) {
  if (bytes > limits_.string_bytes)
    Fail("a text of {} bytes, at most {} are allowed", bytes, limits_.string_bytes);
  return !failed() && Scan(bytes);
}

bool Run::AllowItems(size_t n) {
  if (n > (limits_.bytes - std::min(bytes_, limits_.bytes)) / sizeof(Value))
    Fail("makes values of more than {} bytes", limits_.bytes);
  return !failed() && Scan(n);
}

Value Run::Kept(const Value& v) {
  if (v.depth() > limits_.value_depth) return Fail("values nested more than {} deep", limits_.value_depth);
  return failed() ? Value::None() : v;
}

Value Run::String(std::string text) {
  constexpr size_t kOverhead = 64;  // of the object and its reference count
  if (!AllowText(text.size()) || !Take(text.size() + kOverhead)) return Value::None();
  return Value::String(std::move(text));
}

Value Run::List(Values items) {
  if (!Take((items.size() + 2) * sizeof(Value))) return Value::None();
  return Kept(Value::List(std::move(items)));
}

Value Run::Tuple(Values items) {
  if (!Take((items.size() + 2) * sizeof(Value))) return Value::None();
  return Kept(Value::Tuple(std::move(items)));
}

Value Run::Dict(Entries entries) {
  if (!Take((entries.size() + 1) * 2 * sizeof(Value))) return Value::None();
  return Kept(Value::Dict(std::move(entries)));
}

Value Run::Iterator(Values items) {
  if (!Take((items.size() + 2) * sizeof(Value))) return Value::None();
  return Kept(Value::Iterator(std::move(items)));
}

Value Run::View(const char* name, Values items) {
  if (!Take((items.size() + 2) * sizeof(Value))) return Value::None();
  return Kept(Value::View(name, std::move(items)));
}

}  // namespace nibble::jinja
