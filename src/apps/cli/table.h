// SPDX-License-Identifier: Apache-2.0
// Floor 9. Aligned text tables and numbers for people.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace nibble::cli {

// Columns are as wide as their widest cell, two blanks apart; 'l' or 'r' a column says how it is aligned.
class Table {
 public:
  explicit Table(std::string alignment) : alignment_(std::move(alignment)) {}
  void AddRow(std::vector<std::string> cells);  // REQUIRES as many cells as columns
  void AddRule();                               // a line of dashes
  std::string ToString() const;                 // each line indented by two blanks

 private:
  std::string alignment_;
  std::vector<std::vector<std::string>> rows_;  // no cells: a rule
};

std::string HumanBytes(uint64_t bytes);                     // 20.9 MB, decimal units
std::string HumanCount(int64_t n);                          // 1,234,567
std::string HumanShape(const std::vector<int64_t>& shape);  // [4096, 384]

}  // namespace nibble::cli
