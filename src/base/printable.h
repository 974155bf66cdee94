// SPDX-License-Identifier: Apache-2.0
// Floor 0. Text from files that we did not write, made safe for one line of a message: controls, quotes and
// everything outside ASCII are escaped (a right-to-left override must not reorder the message), long text is
// cut.
#pragma once
#include <string>
#include <string_view>

namespace nibble {

std::string Printable(std::string_view text, size_t max_bytes = 80);

}  // namespace nibble
