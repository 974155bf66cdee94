// SPDX-License-Identifier: Apache-2.0
// Floor 5. What a template may cost. A template comes with a model, so it is a program that we did not write.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace nibble::jinja {

// All of them count work, none of them time: a template that renders today renders on a busy machine too.
struct Limits {
  size_t source_bytes = size_t{1} << 20;
  int nesting = 128;                // of expressions and of blocks in the source, each
  int chain = 1000;                 // operators, filters or attributes in a row: a.b.c, a + b + c
  size_t nodes = 100'000;           // of the syntax tree, about 250 bytes each
  int64_t steps = 10'000'000;       // nodes evaluated, loop turns, entries compared
  int64_t turns = 1'000'000;        // of all loops together
  int64_t range = 100'000;          // numbers in a range(), as Jinja's own sandbox has it
  size_t bytes = 256u << 20;        // of all values made, also those already dropped
  size_t string_bytes = 16u << 20;  // of one string, and of the output
  int calls = 256;                  // of macros inside macros
  int depth = 2000;                 // of evaluations inside evaluations, so that the stack suffices
  int value_depth = 100;            // of lists in lists

  std::string ToString() const;  // one "name value" a line
};

}  // namespace nibble::jinja
