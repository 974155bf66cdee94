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

// The INT8 buffer of a head's newest tokens. Its scale is frozen when it begins; codes beyond 119 are clamped
// and counted. Once more than kRescaleRate of the values it holds were clamped since the step was last
// doubled, later tokens take twice the step; tokens that are in it stay as they are. Which code a value gets
// is a decision in f32, as every kernel makes it.
class FlashBuffer {
 public:
  static constexpr double kRescaleRate = .005;  // feature F-T6
  static constexpr int kBroken = -128;          // the code of a value that is not finite

  FlashBuffer(float scale, int dim, Rounding rounding = Rounding::kEven);
  void Append(const float* row);
  double Decoded(int token, int channel) const;  // NaN for kBroken
  // What stage 2 takes: all codes at the greatest step, and that step. REQUIRES none broken.
  Codes SealedCodes() const;
  float SealedScale() const { return Step(exponents_.back()); }

  const Codes& codes() const { return codes_; }
  const std::vector<int>& exponents() const { return exponents_; }  // by token: the step is scale * 2^e
  int64_t clamped() const { return clamped_; }
  float greatest() const { return greatest_; }  // finite |x|, clamped or not

 private:
  float Step(int exponent) const;

  float scale_;
  Rounding rounding_;
  Codes codes_;
  std::vector<int> exponents_;
  int64_t clamped_ = 0, clamped_since_ = 0;  // since the step was last doubled
  float greatest_ = 0;
};
// The universal scale over a greatest magnitude: that of the head's last buffer, or of what there is. At
// least 1e-6.
float UniversalScale(float greatest, float headroom = 1);

// gap(head) * population std over channels of gap(channel). K and V apart.
double HeadPriority(View head);
// The `count` heads of lowest priority get 2 bits; of equal ones the lower head keeps 4.
std::vector<bool> TwoBitHeads(const std::vector<double>& priority, int count);

// Stored bits a value of a block [tokens, dim]: codes, two metadata fields of meta_bits by channel, one
// 16-bit scale.
double FlashBitsPerValue(double bits, int meta_bits, int tokens, int dim);

}  // namespace nibble::ref
