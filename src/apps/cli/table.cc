// SPDX-License-Identifier: Apache-2.0
// Floor 9. Aligned text tables and numbers for people.
#include "apps/cli/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"

namespace nibble::cli {
namespace {

size_t Columns(const std::string& text) {  // characters, not bytes: names may be UTF-8
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

void Table::AddRow(std::vector<std::string> cells) {
  NIBBLE_CHECK(cells.size() == alignment_.size(), "one cell a column");
  rows_.push_back(std::move(cells));
}

void Table::AddRule() { rows_.emplace_back(); }

std::string Table::ToString() const {
  std::vector<size_t> width(alignment_.size());
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], Columns(row[i]));
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < width.size(); ++i) {
      const std::string cell = row.empty() ? std::string(width[i], '-') : row[i];
      const std::string pad(width[i] - Columns(cell), ' ');
      line += "  ";
      line += alignment_[i] == 'r' ? pad + cell : cell + pad;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line;
    out += '\n';
  }
  return out;
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  double value = double(bytes);
  const char* unit = "";
  for (const char* next : {"kB", "MB", "GB", "TB"}) {
    value /= 1000;
    unit = next;
    if (value < 999.5) break;
  }
  return value < 100 ? fmt::format("{:.1f} {}", value, unit) : fmt::format("{:.0f} {}", value, unit);
}

std::string HumanCount(int64_t n) {
  const std::string digits = fmt::format("{}", n);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    const bool group = (digits.size() - i) % 3 == 0 && i > 0 && digits[i - 1] != '-';
    if (group) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out;
}

std::string HumanShape(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace nibble::cli
