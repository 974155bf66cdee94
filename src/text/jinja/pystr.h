// SPDX-License-Identifier: Apache-2.0
// Floor 5. Python's str over UTF-8: what its methods answer, counted in characters.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

using Text = std::string_view;  // REQUIRES UTF-8 everywhere here

bool IsSpace(char32_t c);  // str.isspace, also what a template's "-" marker strips

int64_t Length(Text s);
// Byte offset of character `index`. REQUIRES: 0 <= index <= Length(s).
size_t OffsetOf(Text s, int64_t index);

// Offset of the first occurrence at or after `from`, and of the last one; npos without. Linear, unlike those
// of std::string, also for texts that mean harm.
size_t Search(Text s, Text part, size_t from = 0);
size_t SearchBack(Text s, Text part);

enum class Ends : uint8_t { kBoth, kLeft, kRight };
Text Strip(Text s, std::optional<Text> chars = std::nullopt, Ends ends = Ends::kBoth);

std::string Upper(Text s);
std::string Lower(Text s);
std::string Capitalize(Text s);
std::string Title(Text s);       // str.title: a letter after anything but a letter
std::string TitleWords(Text s);  // Jinja's filter: a character after blanks, dashes and opening brackets
std::string SwapCase(Text s);

// str.split and str.rsplit; without a separator at runs of whitespace. max < 0: all.
std::vector<Text> Split(Text s, std::optional<Text> separator, int64_t max);
std::vector<Text> SplitRight(Text s, std::optional<Text> separator, int64_t max);
std::vector<Text> SplitLines(Text s, bool keep_ends = false);

// Occurrences of `part` that do not overlap; of an empty one, Length(s) + 1.
int64_t Count(Text s, Text part);
std::string Replace(Text s, Text old, Text with, int64_t max);  // max < 0: all

// str.isalpha and its neighbours: false for an empty text.
bool IsAlpha(Text s);
bool IsDigit(Text s);
bool IsAlnum(Text s);
bool IsSpace(Text s);
bool IsLower(Text s);
bool IsUpper(Text s);

bool IsPrintable(char32_t c);  // whether repr() shows it as it is

}  // namespace nibble::jinja
