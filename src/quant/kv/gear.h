// SPDX-License-Identifier: Apache-2.0
// Floor 2. GEAR (arXiv 2403.05527): a grouped quantizer, a low-rank part of what it lost, and outliers kept
// as they are. A page is one of its chunks of 64 tokens, with the chunk's rank 2. gear4-*: one group a
// channel (keys) or token (values). gear2-*: groups of 64. 2% of a line, at least one value on each side, are
// outliers. gear-l*: GEAR-L, without outliers. Page: the page of GroupedPage (kivi.h), then f16 Q [2][token],
// f16 P [2][head_dim], then of the outliers f16 value and u8 (lines up to 256) or u16 place, [line][2 *
// count] each. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/kivi.h"
#include "quant/kv/low_rank.h"

namespace nibble::kv {

template <int kCodeBits, class GroupAxis, bool kSparse>
struct Gear {
  using Quantized = GroupedPage<kCodeBits, GroupAxis>;
  using Axis = GroupAxis;
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kRank = 2;
  static constexpr bool kKeepsOutliers = kSparse;
  // Q is stored times 8 and P divided by 8. A column of P is at most sqrt(64) times the greatest residual,
  // which f16 could not hold for the greatest rows; columns of Q are at most 1.
  static constexpr float kBalance = 8.0f;

  NIBBLE_HD static int Outliers(PageShape s) {  // of a line
    if (!kSparse) return 0;
    const int side = (Axis::Length(s) + 50) / 100;
    return 2 * (side > 0 ? side : 1);
  }
  NIBBLE_HD static int PlaceBytes(PageShape s) { return Axis::Length(s) <= 256 ? 1 : 2; }
  NIBBLE_HD static int QOffset(PageShape s) { return Quantized::EndOffset(s); }
  NIBBLE_HD static int POffset(PageShape s) { return QOffset(s) + 2 * kRank * s.tokens; }
  NIBBLE_HD static int ValueOffset(PageShape s) { return POffset(s) + 2 * kRank * s.head_dim; }
  NIBBLE_HD static int PlaceOffset(PageShape s) { return ValueOffset(s) + 2 * Axis::Lines(s) * Outliers(s); }
  NIBBLE_HD static int PageBytes(PageShape s) {
    return (PlaceOffset(s) + PlaceBytes(s) * Axis::Lines(s) * Outliers(s) + 3) / 4 * 4;
  }
  NIBBLE_HD static int SharedBytes(PageShape s) {  // P; by channel the groups and outliers too
    const int p = 2 * kRank * s.head_dim;
    return Axis::kByChannel ? PageBytes(s) - Quantized::ScaleOffset(s) - 2 * kRank * s.tokens : p;
  }

  NIBBLE_HD static int Place(PageShape s, const std::byte* page, int line, int i) {
    const int at = line * Outliers(s) + i;
    const std::byte* p = page + PlaceOffset(s) + PlaceBytes(s) * at;
    return PlaceBytes(s) == 1 ? int(*p) : int(LoadU16(p));
  }
  NIBBLE_HD static float Value(PageShape s, const std::byte* page, int line, int i) {
    return HalfToFloat(LoadU16(page + ValueOffset(s) + 2 * (line * Outliers(s) + i)));
  }
  NIBBLE_HD static float Q(PageShape s, const std::byte* page, int r, int token) {
    return HalfToFloat(LoadU16(page + QOffset(s) + 2 * (r * s.tokens + token)));
  }
  NIBBLE_HD static float P(PageShape s, const std::byte* page, int r, int channel) {
    return HalfToFloat(LoadU16(page + POffset(s) + 2 * (r * s.head_dim + channel)));
  }

  // The place of the line's greatest (or least) value among those not taken; the first of equals. A line of
  // one value gives it twice.
  NIBBLE_HD static int Extreme(const Line& x, const bool* taken, bool greatest) {
    int best = -1;
    for (int i = 0; i < x.n; ++i) {
      if (taken[i]) continue;
      if (best < 0 || (greatest ? x.x[i] > x.x[best] : x.x[i] < x.x[best])) best = i;
    }
    return best < 0 ? 0 : best;
  }

  // Stores the line's outliers and puts the mean of the rest in their places. A line that f16 cannot hold is
  // left to GroupedPage, which makes it NaN; its outliers are then NaN as well.
  NIBBLE_HD static void TakeOutliers(PageShape s, Line& x, int line, std::byte* page) {
    bool taken[kMaxHeadDim] = {};
    bool fits = true;
    double rest = 0;
    for (int i = 0; i < x.n; ++i) fits &= (x.x[i] >= -kHalfMax) & (x.x[i] <= kHalfMax);
    const int count = Outliers(s);
    int left = x.n;
    for (int k = 0; k < count; ++k) {
      const int place = fits ? Extreme(x, taken, k < count / 2) : 0;
      left -= !taken[place];
      taken[place] = true;
      const int at = line * count + k;
      StoreU16(page + ValueOffset(s) + 2 * at, fits ? FloatToHalf(x.x[place]) : uint16_t{0x7e00});
      if (PlaceBytes(s) == 1) {
        page[PlaceOffset(s) + at] = std::byte(place);
      } else {
        StoreU16(page + PlaceOffset(s) + 2 * at, uint16_t(place));
      }
    }
    if (!fits) return;
    for (int i = 0; i < x.n; ++i) rest += taken[i] ? 0.0 : double(x.x[i]);
    const float mean = left > 0 ? float(rest / left) : 0.0f;
    for (int i = 0; i < x.n; ++i) x.x[i] = taken[i] ? mean : x.x[i];
    for (int i = x.n; i < x.n + 8; ++i) x.x[i] = x.x[x.n - 1];
  }

  // What the groups lost, zero where a value is kept as an outlier and where it is broken.
  struct Residual {
    PageShape s;
    const float* rows;
    const std::byte* page;
    NIBBLE_HD void Row(int token, float* out) const {
      for (int d = 0; d < s.head_dim; d += 8) Quantized::Decode8(s, page, token, d, out + d);
      for (int d = 0; d < s.head_dim; ++d) {
        const float e = rows[token * s.head_dim + d] - out[d];
        out[d] = e >= -kHalfMax && e <= kHalfMax ? e : 0.0f;
      }
      for (int i = 0; i < Outliers(s); ++i) {
        if (Axis::kByChannel) {
          for (int d = 0; d < s.head_dim; ++d)
            if (Place(s, page, d, i) == token) out[d] = 0;
        } else {
          out[Place(s, page, token, i)] = 0;
        }
      }
    }
  };

  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    memset(page, 0, size_t(PageBytes(s)));
    Line line;
    for (int i = 0; i < Axis::Lines(s); ++i) {
      ReadLine<Axis>(s, rows, i, line);
      if constexpr (kSparse) TakeOutliers(s, line, i, page);
      Quantized::EncodeLine(s, line, i, page);
    }
    LowRank<kRank> factors;
    for (int i = 0; i < kRank * s.head_dim; ++i) factors.p[i] = Start(i);
    factors.Fit(s, Residual{s, rows, page});
    for (int i = 0; i < kRank * s.tokens; ++i)
      StoreU16(page + QOffset(s) + 2 * i, FloatToHalf(factors.q[i] * kBalance));
    for (int i = 0; i < kRank * s.head_dim; ++i)
      StoreU16(page + POffset(s) + 2 * i, FloatToHalf(factors.p[i] / kBalance));
  }

  // Where the power iteration starts: a fixed hash, evenly spread over -1 .. 1.
  NIBBLE_HD static float Start(int i) {
    uint32_t h = (uint32_t(i) + 1) * 0x9e3779b1u;
    h = (h ^ h >> 15) * 0x85ebca6bu;
    return float(int32_t(h)) * 0x1p-31f;
  }

  // Products of two f16 are exact in f32, so fused or not is the same.
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    Quantized::Decode8(s, page, token, channel, out8);
    for (int i = 0; i < 8; ++i)
      for (int r = 0; r < kRank; ++r) out8[i] += Q(s, page, r, token) * P(s, page, r, channel + i);
    for (int i = 0; i < Outliers(s); ++i)
      for (int d = channel; d < channel + 8; ++d) {
        const int line = Axis::kByChannel ? d : token;
        if (Place(s, page, line, i) == (Axis::kByChannel ? token : d))
          out8[d - channel] = Value(s, page, line, i);
      }
  }
};

template <bool kSparse>
using Gear4K = Gear<4, AlongTokens<kWholeLine>, kSparse>;
template <bool kSparse>
using Gear4V = Gear<4, AlongChannels<kWholeLine>, kSparse>;
template <bool kSparse>
using Gear2K = Gear<2, AlongTokens<64>, kSparse>;
template <bool kSparse>
using Gear2V = Gear<2, AlongChannels<64>, kSparse>;

struct Gear4Channel : Gear4K<true> {
  static constexpr CodecId kId = CodecId::kGear4Channel;
  static constexpr const char* kName = "gear4-channel";
};
struct Gear4Group : Gear4V<true> {
  static constexpr CodecId kId = CodecId::kGear4Group;
  static constexpr const char* kName = "gear4-group";
};
struct GearL4Channel : Gear4K<false> {
  static constexpr CodecId kId = CodecId::kGearL4Channel;
  static constexpr const char* kName = "gear-l4-channel";
};
struct GearL4Group : Gear4V<false> {
  static constexpr CodecId kId = CodecId::kGearL4Group;
  static constexpr const char* kName = "gear-l4-group";
};
struct Gear2Channel : Gear2K<true> {
  static constexpr CodecId kId = CodecId::kGear2Channel;
  static constexpr const char* kName = "gear2-channel";
};
struct Gear2Group : Gear2V<true> {
  static constexpr CodecId kId = CodecId::kGear2Group;
  static constexpr const char* kName = "gear2-group";
};
struct GearL2Channel : Gear2K<false> {
  static constexpr CodecId kId = CodecId::kGearL2Channel;
  static constexpr const char* kName = "gear-l2-channel";
};
struct GearL2Group : Gear2V<false> {
  static constexpr CodecId kId = CodecId::kGearL2Group;
  static constexpr const char* kName = "gear-l2-group";
};

}  // namespace nibble::kv
