// SPDX-License-Identifier: Apache-2.0
// Floor 4. FlashQ, the quantizers of TurboAttention (arXiv 2412.08585): INT8 blocks, the integer second stage
// by channel, the INT8 buffer of new tokens, and the priority of heads.
#pragma once
#include <vector>

#include "kernels/ref/matrix.h"
#include "kernels/ref/rounding.h"

namespace nibble::ref {

inline constexpr int kFlashRange = 119;  // 119 plus half of the widest INT4 step is 127

// x ~ codes * scale. One scale for the block, or one a row. The codes are made with the stored scale.
struct FlashBlock {
  std::vector<double> scale;  // [1] or [rows]
  Codes codes;
  double Scale(int row) const { return scale[scale.size() == 1 ? 0 : size_t(row)]; }
};
enum class FlashScale { kBlock, kRow };
FlashBlock FlashStage1(View block, int range = kFlashRange, FlashScale granularity = FlashScale::kBlock,
                       Storage storage = Storage::kExact, Rounding rounding = Rounding::kEven);

enum class Stage2Form {
  kCanonical,     // kGridZero for INT4, kMinRound for INT3 and INT2: neither leaves INT8
  kGridZero,      // (code + zero) * step with zero = round(lo / step)
  kPaperLiteral,  // kGridZero at every width, saturated to [-127, 127]
  kMinRound,      // lo + code * step, step rounded to nearest
  kMinCeil,       // step rounded up: no code is clipped
  kMinSearch,     // step rounded down or up, whichever has the lesser squared error (s_search)
};

// Stage 2 of one channel over the INT8 codes of a block.
struct Stage2Channel {
  int bits = 4, step = 1;
  int base = 0;            // zero point in steps (grid) or least code (min-anchored)
  bool grid_zero = false;  // which of the two
  bool saturate = false;
  Rounding rounding = Rounding::kEven;

  int Levels() const { return (1 << bits) - 1; }
  int Encode(int q8) const;
  int Decode(int code) const;
};
Stage2Channel FitStage2(const std::vector<int>& channel, int bits, Stage2Form form,
                        Rounding rounding = Rounding::kEven);

struct Stage2Block {
  std::vector<Stage2Channel> channels;
  Codes codes;
};
Stage2Block FlashStage2(const Codes& q8, int bits, Stage2Form form, Rounding rounding = Rounding::kEven);
Codes ExpandStage2(const Stage2Block& block);  // back to INT8

// sum over tokens of p * decoded of one channel, without expanding: the affine form folds out. Equal to the
// expanded sum for every form that does not saturate.
int64_t FoldedPv(const int* p, const Stage2Block& block, int channel);

// The INT8 buffer of a head's newest tokens: one universal scale frozen when the buffer starts, codes beyond
// 119 clamped and counted; doubling the scale is exact in the scale and rounds the codes once.
class FlashBuffer {
 public:
  static constexpr double kRescaleRate = .005;  // of clamped values; feature F-T6

  FlashBuffer(double scale, int dim, Rounding rounding = Rounding::kEven);
  void Append(const double* row);
  void DoubleScale();
  bool WantsRescale() const;  // more than kRescaleRate of the values since the last flush were clamped
  void Flush();               // empties it and clears the counters; the scale stays
  double scale() const { return scale_; }
  const Codes& codes() const { return codes_; }
  int64_t clamped() const { return clamped_; }

 private:
  double scale_;
  Rounding rounding_;
  Codes codes_;
  int64_t clamped_ = 0;
};
// The universal scale: that of the head's last block, full or not, at least 1e-6.
double UniversalScale(View last_block);

// gap(head) * population std over channels of gap(channel). K and V apart.
double HeadPriority(View head);
// The `count` heads of lowest priority get 2 bits; of equal ones the lower head keeps 4.
std::vector<bool> TwoBitHeads(const std::vector<double>& priority, int count);

// Stored bits a value of a block [tokens, dim]: codes, two metadata fields of meta_bits by channel, one
// 16-bit scale.
double FlashBitsPerValue(double bits, int meta_bits, int tokens, int dim);

}  // namespace nibble::ref
