// SPDX-License-Identifier: Apache-2.0
// Floor 0. Status and Result<T>: errors that a caller, a file, the network or memory can cause.
#pragma once
#include <fmt/format.h>

#include <string>
#include <utility>
#include <variant>

namespace nibble {

enum class Code : unsigned char {
  kOk,
  kInvalidArgument,
  kNotFound,
  kUnsupported,
  kCorrupt,
  kIo,
  kOutOfMemory,
  kCancelled,
  kBusy,        // no room now: the same may succeed later
  kUnavailable  // going away
};

// The outcome of an operation without a value. The message is one line that names the file, key and value.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// Error(Code::kCorrupt, "{}: {} tensors", path, n): a Status with a formatted message.
template <class... Args>
Status Error(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

// A value or the Status that says why there is none. REQUIRES ok() before * and ->.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::move(value)) {}
  Result(Status error) : v_(std::move(error)) {}
  bool ok() const { return v_.index() == 0; }
  T& operator*() & { return *std::get_if<0>(&v_); }
  const T& operator*() const& { return *std::get_if<0>(&v_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&v_)); }
  T* operator->() { return std::get_if<0>(&v_); }
  const T* operator->() const { return std::get_if<0>(&v_); }
  Status status() const { return ok() ? Status{} : *std::get_if<1>(&v_); }

 private:
  std::variant<T, Status> v_;
};

}  // namespace nibble

#define NIBBLE_RETURN_IF_ERROR(expr)                       \
  do {                                                     \
    if (::nibble::Status s_ = (expr); !s_.ok()) return s_; \
  } while (0)

#define NIBBLE_CONCAT2(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT2(a, b)
// NIBBLE_ASSIGN(auto x, F()): declares or assigns x from a Result, or returns its Status.
#define NIBBLE_ASSIGN(lhs, expr)                                                                \
  auto NIBBLE_CONCAT(result_, __LINE__) = (expr);                                               \
  if (!NIBBLE_CONCAT(result_, __LINE__).ok()) return NIBBLE_CONCAT(result_, __LINE__).status(); \
  lhs = *std::move(NIBBLE_CONCAT(result_, __LINE__))
