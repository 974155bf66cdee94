// SPDX-License-Identifier: Apache-2.0
// Floor 5. The methods of str, list, tuple and dict.
#pragma once
#include <string_view>

#include "text/jinja/args.h"

namespace nibble::jinja {

enum class Access : uint8_t { kNone, kMethod, kForbidden };

// Whether `object` has a method of that name, and then its number, or one that the sandbox keeps from it (it
// would change the object, or is internal to Python).
Access FindMethod(const Value& object, std::string_view name, int* id);

Value CallMethod(Run& run, const Value& self, int id, const Args& args);

}  // namespace nibble::jinja
