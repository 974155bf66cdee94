// SPDX-License-Identifier: Apache-2.0
// Floor 5. The values of a template: Python's, as far as JSON and Jinja make them. Immutable, except
// namespaces and iterators.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble::jinja {

class Value;
struct Macro;      // text/jinja/frame.h
struct LoopState;  // text/jinja/frame.h

enum class Type : uint8_t {
  kMissing,  // an empty slot: a parameter that was not given, a variable that is not set yet
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kView,       // what dict.keys(), values() and items() give
  kIterator,   // what filters such as map give: can be walked once
  kNamespace,  // the only value that a template can change
  kMethod,     // "text".upper
  kFunction,   // range
  kMacro,
  kLoop
};

using Values = std::vector<Value>;
using Entries = std::vector<std::pair<Value, Value>>;

class Value {
 public:
  Value() = default;  // kMissing
  static Value None() { return Value(Type::kNone); }
  static Value Bool(bool b);
  static Value Int(int64_t i);
  static Value Float(double d);
  static Value String(std::string text);  // REQUIRES UTF-8
  static Value List(Values items);
  static Value Tuple(Values items);
  static Value Dict(Entries entries);  // REQUIRES different keys
  static Value Range(int64_t start, int64_t stop, int64_t step);
  static Value View(const char* name, Values items);
  static Value Iterator(Values items);
  static Value Method(const Value& self, int id);
  static Value Function(int id);
  static Value Undefined(std::string message);  // what an attempt to use it will say
  // The objects of one rendering, which outlive its values.
  static Value Of(Entries* names);
  static Value Of(Macro* macro);
  static Value Of(LoopState* loop);

  // kInvalidArgument for integers beyond 64 bits.
  static Result<Value> FromJson(JsonRef json);

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }
  bool is_missing() const { return type_ == Type::kMissing; }
  bool is_undefined() const { return type_ == Type::kUndefined; }
  bool is_none() const { return type_ == Type::kNone; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_integral() const { return type_ == Type::kInt || type_ == Type::kBool; }  // Python's bool is an int
  bool is_number() const { return is_integral() || type_ == Type::kFloat; }
  bool is_list() const { return type_ == Type::kList || type_ == Type::kTuple; }

  // REQUIRES the type that the name says.
  bool boolean() const { return integer_ != 0; }
  int64_t integer() const { return integer_; }  // also of a bool
  double real() const { return real_; }
  const std::string& text() const { return *static_cast<const std::string*>(heap_.get()); }
  const Values& items() const;  // list, tuple, view
  const Entries& entries() const { return static_cast<const Heap<Entries>*>(heap_.get())->data; }
  const std::string& message() const { return *static_cast<const std::string*>(heap_.get()); }
  const char* view_name() const { return name_; }
  Entries* names() const { return static_cast<Entries*>(pointer_); }
  Macro* macro() const { return static_cast<Macro*>(pointer_); }
  LoopState* loop() const { return static_cast<LoopState*>(pointer_); }
  int id() const { return static_cast<int>(integer_); }  // method, function
  const Value& self() const { return items()[0]; }       // method
  struct Bounds {
    int64_t start, stop, step;
    int64_t size() const;
  };
  const Bounds& range() const { return *static_cast<const Bounds*>(heap_.get()); }
  // What is left of an iterator, which is empty afterwards.
  Values TakeRest() const;
  // The next of an iterator; false at its end.
  bool TakeNext(Value* out) const;

  int depth() const { return depth_; }  // of containers in containers; 0 for scalars
  const void* identity() const { return heap_ ? heap_.get() : pointer_; }

 private:
  template <class T>
  struct Heap {
    T data;
  };
  struct Walk {
    Values items;
    size_t next = 0;
  };
  explicit Value(Type type) : type_(type) {}

  Type type_ = Type::kMissing;
  int depth_ = 0;
  union {
    int64_t integer_ = 0;
    double real_;
    void* pointer_;
    const char* name_;
  };
  std::shared_ptr<void> heap_;
};

// Python's words for a value's type, for messages: "str", "dict", ...
const char* TypeName(const Value& v);

// A dict's entry by name; nullptr when there is none or `v` is no dict.
const Value* Find(const Value& v, std::string_view key);

}  // namespace nibble::jinja
