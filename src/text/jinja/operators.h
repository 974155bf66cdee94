// SPDX-License-Identifier: Apache-2.0
// Floor 5. Python's operators on values: truth, equality, order, arithmetic, length, walking, subscripts.
#pragma once
#include "text/jinja/ast.h"
#include "text/jinja/run.h"

namespace nibble::jinja {

bool Truthy(const Value& v);
bool Equal(Run& run, const Value& a, const Value& b);
bool Ordered(Run& run, Operator op, const Value& a, const Value& b);  // kLt, kLe, kGt, kGe
bool Contains(Run& run, const Value& container, const Value& item);
bool Compare(Run& run, Operator op, const Value& a, const Value& b);  // all comparisons
Value Arithmetic(Run& run, Operator op, const Value& a, const Value& b);
Value Negated(Run& run, const Value& v);
Value Plus(Run& run, const Value& v);

// len(): -1 when `v` has none.
int64_t LengthOf(const Value& v);
// list(): what a loop over `v` sees. Fails when `v` cannot be walked. An iterator is empty afterwards.
Values Walked(Run& run, const Value& v);
bool CanWalk(const Value& v);

bool Hashable(const Value& v);
// The entry for `key`, which may be 1 for True; nullptr where there is none. REQUIRES a dict or namespace.
const Value* Lookup(Run& run, const Entries& entries, const Value& key);
void Assign(Run& run, Entries* entries, const Value& key, const Value& value);

// object.name and object[key] as Jinja's sandbox resolves them: what is not there or not allowed is
// undefined.
Value GetAttr(Run& run, const Value& object, std::string_view name);
Value GetItem(Run& run, const Value& object, const Value& key);
Value GetSlice(Run& run, const Value& object, const Value& start, const Value& stop, const Value& step);

}  // namespace nibble::jinja
