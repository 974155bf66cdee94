// SPDX-License-Identifier: Apache-2.0
#include "apps/server/auth.h"

#include <cstdint>

namespace nibble::server {
namespace {

constexpr std::string_view kBearer = "Bearer ", kBasic = "Basic ";

int Base64Digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Up to the first character that is none of base64.
std::string FromBase64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int digit = Base64Digit(c);
    if (digit < 0) break;
    bits = (bits << 6) | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>((bits >> count) & 0xFF);
  }
  return out;
}

// memcmp would stop at the first difference.
bool Equal(std::string_view key, std::string_view given) {
  volatile unsigned difference = key.size() == given.size() ? 0 : 1;
  for (size_t i = 0; i < key.size(); ++i) {
    const char other = given.empty() ? '\0' : given[i % given.size()];
    difference = difference | static_cast<unsigned>(static_cast<unsigned char>(key[i] ^ other));
  }
  return difference == 0;
}

}  // namespace

std::string GivenKey(const HttpRequest& head) {
  const std::string_view authorization = head.authorization;
  if (authorization.starts_with(kBearer)) return std::string(authorization.substr(kBearer.size()));
  if (!head.api_key.empty()) return head.api_key;
  if (!authorization.starts_with(kBasic)) return "";
  const std::string decoded = FromBase64(authorization.substr(kBasic.size()));
  const size_t colon = decoded.find(':');
  return colon == decoded.npos ? "" : decoded.substr(colon + 1);
}

bool KeyMatches(const std::vector<std::string>& keys, std::string_view given) {
  bool matches = false;
  for (const std::string& key : keys) matches = Equal(key, given) || matches;
  return matches;
}

}  // namespace nibble::server
