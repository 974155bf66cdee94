// SPDX-License-Identifier: Apache-2.0
// Floor 9. The server's log: one JSON object a line on standard error, whole lines whatever threads write.
#pragma once
#include <string>
#include <string_view>

namespace nibble::server {

// `fields` is the inside of a JSON object, such as R"("status":200)", or empty. A log that cannot be written
// (a full disk, a closed pipe) loses its lines and nothing else.
void Log(std::string_view level, std::string_view event, std::string_view fields);

// For the whole process; true at start.
void EnableLog(bool on);

// A JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD.
std::string Quoted(std::string_view text);

}  // namespace nibble::server
