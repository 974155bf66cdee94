// SPDX-License-Identifier: Apache-2.0
#include "apps/server/token_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/server/log.h"
#include "base/utf8.h"

namespace nibble::server {
namespace {

constexpr float kLeastLogprob = -9999;  // JSON has no infinity

size_t CountChars(std::string_view bytes) {
  return static_cast<size_t>(std::count_if(bytes.begin(), bytes.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;  // all but continuation bytes
  }));
}

std::string ByteList(std::string_view bytes) {
  std::string out = "[";
  for (const char c : bytes)
    out +=
        fmt::format("{}{}", out.size() > 1 ? "," : "", static_cast<unsigned>(static_cast<unsigned char>(c)));
  return out + "]";
}

}  // namespace

TokenWords::TokenWords(const Tokenizer& tokenizer) : bytes_(static_cast<size_t>(tokenizer.vocab_size())) {
  auto spellings = tokenizer.Spellings();
  for (size_t i = 0; i < bytes_.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (tokenizer.IsSpecial(id)) {
      bytes_[i] = tokenizer.TokenText(id);
    } else if (spellings.ok()) {
      bytes_[i] = spellings->anywhere[i];
    } else {  // its bytes depend on its neighbours: what it is by itself
      bytes_[i] = tokenizer.Decode({&id, 1}, /*skip_special=*/false);
    }
  }
}

std::string_view TokenWords::Bytes(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < bytes_.size()
             ? std::string_view(bytes_[static_cast<size_t>(id)])
             : std::string_view();
}

std::string TokenWords::Word(int32_t id) const {
  const std::string_view bytes = Bytes(id);
  if (FindInvalidUtf8(bytes) == bytes.npos) return Quoted(bytes);
  std::string out = "\"bytes:";
  for (const char c : bytes)
    out += fmt::format("\\\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  return out + '"';
}

std::string LogprobText(float logprob) {
  if (std::isnan(logprob)) return "null";
  return fmt::format("{}", std::clamp(logprob, kLeastLogprob, -kLeastLogprob));
}

std::string TokenWords::ChatLogprobs(std::span<const TokenEntry> entries) const {
  const auto item = [this](const TokenLogprob& t) {
    return fmt::format(R"("token":{},"logprob":{},"bytes":{})", Word(t.id), LogprobText(t.logprob),
                       ByteList(Bytes(t.id)));
  };
  std::string out = R"({"content":[)";
  for (size_t i = 0; i < entries.size(); ++i) {
    out += fmt::format(R"({}{{{},"top_logprobs":[)", i > 0 ? "," : "", item(entries[i].token));
    for (size_t j = 0; j < entries[i].top.size(); ++j)
      out += fmt::format("{}{{{}}}", j > 0 ? "," : "", item(entries[i].top[j]));
    out += "]}";
  }
  return out + R"(],"refusal":null})";
}

std::string TokenWords::CompletionLogprobs(std::span<const TokenEntry> entries, int32_t first,
                                           size_t* offset) const {
  std::string tokens, logprobs, tops, offsets;
  const auto add = [&](int32_t id, const std::string& logprob, const std::string& top) {
    const char* comma = tokens.empty() ? "" : ",";
    tokens += comma + Word(id);
    logprobs += comma + logprob;
    tops += comma + top;
    offsets += fmt::format("{}{}", comma, *offset);
    *offset += CountChars(Bytes(id));
  };
  if (first >= 0) add(first, "null", "null");
  for (const TokenEntry& entry : entries) {
    std::string top = "{";
    std::vector<std::string> seen;  // two tokens may be spelled alike, keys may not
    for (const TokenLogprob& t : entry.top) {
      std::string word = Word(t.id);
      if (std::find(seen.begin(), seen.end(), word) != seen.end()) continue;
      top += fmt::format("{}{}:{}", seen.empty() ? "" : ",", word, LogprobText(t.logprob));
      seen.push_back(std::move(word));
    }
    // The chosen one is always among them, as clients that look it up expect.
    std::string word = Word(entry.token.id);
    if (std::find(seen.begin(), seen.end(), word) == seen.end())
      top += fmt::format("{}{}:{}", seen.empty() ? "" : ",", word, LogprobText(entry.token.logprob));
    add(entry.token.id, LogprobText(entry.token.logprob), top + "}");
  }
  return fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
                     tokens, logprobs, tops, offsets);
}

}  // namespace nibble::server
