// SPDX-License-Identifier: Apache-2.0
// Floor 9. A JSON value written again as text.
#pragma once
#include <string>

#include "base/json.h"

namespace nibble::server {

// Of the same value; spelled without spaces, numbers as short as they can be read back.
std::string ToText(JsonRef value);

}  // namespace nibble::server
