// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of QAQ (arXiv 2403.04643): how much error a key or value may have, how many bits
// that takes, the midpoint quantizer with nested bit planes, outliers, the window of importances, and both
// ways to count the compression.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

namespace nibble::ref {

inline constexpr int kQaqMaxBits = 8;

// Standard deviation that a value of token t may have so that the output's stays below sigma_x: errors
// independent, the budget split equally over the tokens. Infinite for a token without attention.
double QaqValueSigma(int tokens, double attention, double sigma_x);
// And a key, so that an attention weight's stays below sigma_s; q_norm2 is |q|^2 of the query that is
// multiplied, i.e. |q|^2 / head_dim when scores carry head_dim^-0.5. 0, all bits, for a single token.
double QaqKeySigma(int tokens, double q_norm2, double sigma_s);

// ceil(log2(range / (2 sqrt(3) sigma))): the midpoint quantizer's error is uniform over half a step each way.
int QaqBits(double range, double sigma, int min_bits = 0, int max_bits = kQaqMaxBits);
// The released code: ceil(log2(range / (2 * 2 sqrt(3) sigma) + 1)), twice the paper's step.
int QaqCodeBits(double range, double sigma, int min_bits = 0, int max_bits = kQaqMaxBits);

// Midpoint quantizer: [min, min + range] in 2^bits segments, decoded at their middles. The code of fewer bits
// is the high bits of the code of more, so dropping planes is quantizing anew.
int MidpointCode(double x, double min, double range, int bits);
double MidpointDecode(int code, double min, double range, int bits);
inline int NarrowCode(int code, int bits, int fewer_bits) { return code >> (bits - fewer_bits); }

// Indices, ascending. By quantile: alpha / 2 of the values at each end, as the released code counts them.
std::vector<int> QuantileOutliers(const std::vector<double>& x, double alpha);
// F-Q3: as many of the lowest and of the highest (at most max_each) as minimise
// outliers * outlier_bits + (n - outliers) * bits(range of the rest); of equal costs the fewest outliers.
struct OutlierChoice {
  int low = 0, high = 0, bits = 0;
  int64_t cost = 0;
};
int64_t OutlierCost(const std::vector<double>& sorted, int low, int high, double sigma, int outlier_bits,
                    int* bits);
OutlierChoice CheapestOutliers(const std::vector<double>& x, double sigma, int max_each = 4,
                               int outlier_bits = 24);

// One key or value of a head. Outliers are kept as they are; the range is the others'.
struct QaqVector {
  int bits = 0;
  double min = 0, range = 0;
  std::vector<int> codes;     // of every element, outliers too (0)
  std::vector<int> outliers;  // indices
  std::vector<double> outlier_values;
};
QaqVector QaqEncode(const std::vector<double>& x, int bits, const std::vector<int>& outliers);
std::vector<double> QaqDecode(const QaqVector& vector);
QaqVector QaqNarrow(const QaqVector& vector, int bits);  // drops planes

// A token's expected attention: its greatest over the last n decode steps. Tokens may be appended; one that
// was not there in a step counts as 0 in it.
class ImportanceWindow {
 public:
  explicit ImportanceWindow(int steps) : steps_(steps) {}
  void Push(const std::vector<double>& attention);
  std::vector<double> Importance() const;

 private:
  int steps_;
  std::deque<std::vector<double>> history_;
};
// F-Q4: importance = max(attention, lambda * importance).
class DecayedImportance {
 public:
  explicit DecayedImportance(double lambda) : lambda_(lambda) {}
  void Push(const std::vector<double>& attention);
  const std::vector<double>& Importance() const { return importance_; }

 private:
  double lambda_;
  std::vector<double> importance_;
};

// F-Q2: the width follows the wanted one only when that has differed for `steps` updates in a row.
class WidthHysteresis {
 public:
  WidthHysteresis(int bits, int steps) : bits_(bits), steps_(steps) {}
  int Update(int wanted);

 private:
  int bits_, steps_, differed_ = 0;
};

// The least value that at least `share` of the values do not exceed (0.9 for the norm of the queries).
double UpperQuantile(std::vector<double> values, double share);

// The paper's ratio: 16 bits against codes, outliers at 16 bits and mean and scale, which it counts by token,
// by layer or by head; indices, widths and copies are not counted.
enum class QaqLevel { kToken, kLayer, kHead };
double QaqPaperRatio(double bits, double outlier_share, QaqLevel level, int layers, int heads, int hidden,
                     bool symmetric = false);
// Honest bits a value of one head vector: codes, outliers with their 8-bit indices, f16 min and range, 4-bit
// width.
double QaqHonestBits(int bits, int head_dim, int outliers);

}  // namespace nibble::ref
