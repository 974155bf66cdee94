// SPDX-License-Identifier: Apache-2.0
// Floor 2. KIVI (arXiv 2402.02750): keys by channel, values by token. int4-channel, int2-channel: scale and
// minimum for every 32 tokens of a channel. int4-group, int2-group: for every 32 channels of a token. x ~
// code * scale + min as in token_affine.h. Page: codes [token][head_dim * bits / 8], low bits first, then f16
// scales, then f16 minima, in the order [token / 32][head_dim] or [token][head_dim / 32].
// docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/token_affine.h"

namespace nibble::kv {

inline constexpr int kKiviGroup = 32;

NIBBLE_HD int KiviGroups(int n) { return (n + kKiviGroup - 1) / kKiviGroup; }
NIBBLE_HD int KiviEnd(int begin, int n) { return begin + kKiviGroup < n ? begin + kKiviGroup : n; }

// What both directions share. `Axis` says how many groups a page has and which one holds a value.
template <int kBits, class Axis>
struct KiviPage {
  static_assert(kBits == 4 || kBits == 2);
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kLevels = (1 << kBits) - 1;

  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim * kBits / 8; }
  NIBBLE_HD static int MinOffset(PageShape s) { return ScaleOffset(s) + 2 * Axis::Groups(s); }
  NIBBLE_HD static int PageBytes(PageShape s) { return (MinOffset(s) + 2 * Axis::Groups(s) + 3) / 4 * 4; }

  NIBBLE_HD static void StoreParams(PageShape s, std::byte* page, int group, const TokenParams& p) {
    StoreU16(page + ScaleOffset(s) + 2 * group, p.scale);
    StoreU16(page + MinOffset(s) + 2 * group, p.min);
  }
  NIBBLE_HD static void StoreCode(PageShape s, std::byte* page, int token, int channel, int code) {
    const int bit = (token * s.head_dim + channel) * kBits;
    page[bit / 8] |= std::byte(code << (bit % 8));
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    for (int i = 0; i < 8; ++i) {
      const int bit = (token * s.head_dim + channel + i) * kBits,
                group = Axis::GroupOf(s, token, channel + i);
      const float scale = HalfToFloat(LoadU16(page + ScaleOffset(s) + 2 * group));
      const float min = HalfToFloat(LoadU16(page + MinOffset(s) + 2 * group));
      out8[i] = float(int(page[bit / 8]) >> (bit % 8) & kLevels) * scale + min;
    }
  }
};

struct AlongTokens {
  NIBBLE_HD static int Groups(PageShape s) { return KiviGroups(s.tokens) * s.head_dim; }
  NIBBLE_HD static int GroupOf(PageShape s, int token, int channel) {
    return token / kKiviGroup * s.head_dim + channel;
  }
};
struct AlongChannels {
  NIBBLE_HD static int Groups(PageShape s) { return s.tokens * KiviGroups(s.head_dim); }
  NIBBLE_HD static int GroupOf(PageShape s, int token, int channel) {
    return token * KiviGroups(s.head_dim) + channel / kKiviGroup;
  }
};

template <int kBits>
struct KiviChannel : KiviPage<kBits, AlongTokens> {
  using Base = KiviPage<kBits, AlongTokens>;
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    memset(page, 0, size_t(Base::PageBytes(s)));
    for (int begin = 0; begin < s.tokens; begin += kKiviGroup) {
      const int end = KiviEnd(begin, s.tokens);
      for (int d = 0; d < s.head_dim; ++d) {
        float x[kKiviGroup];  // a short last group repeats its last value, which moves no bound
        for (int i = 0; i < kKiviGroup; ++i)
          x[i] = rows[(begin + i < end ? begin + i : end - 1) * s.head_dim + d];
        const TokenParams p = FitToken(x, kKiviGroup, Base::kLevels);
        for (int t = begin; t < end; ++t)
          Base::StoreCode(s, page, t, d, TokenCode(x[t - begin], p, Base::kLevels));
        Base::StoreParams(s, page, AlongTokens::GroupOf(s, begin, d), p);
      }
    }
  }
};

template <int kBits>
struct KiviToken : KiviPage<kBits, AlongChannels> {
  using Base = KiviPage<kBits, AlongChannels>;
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    memset(page, 0, size_t(Base::PageBytes(s)));
    for (int t = 0; t < s.tokens; ++t)
      for (int begin = 0; begin < s.head_dim; begin += kKiviGroup) {
        const float* x = rows + t * s.head_dim + begin;
        const int n = KiviEnd(begin, s.head_dim) - begin;  // a multiple of 8, as FitToken needs
        const TokenParams p = FitToken(x, n, Base::kLevels);
        for (int i = 0; i < n; ++i) Base::StoreCode(s, page, t, begin + i, TokenCode(x[i], p, Base::kLevels));
        Base::StoreParams(s, page, AlongChannels::GroupOf(s, t, begin), p);
      }
  }
};

struct Int4Channel : KiviChannel<4> {
  static constexpr CodecId kId = CodecId::kInt4Channel;
  static constexpr const char* kName = "int4-channel";
};
struct Int2Channel : KiviChannel<2> {
  static constexpr CodecId kId = CodecId::kInt2Channel;
  static constexpr const char* kName = "int2-channel";
};
struct Int4Group : KiviToken<4> {
  static constexpr CodecId kId = CodecId::kInt4Group;
  static constexpr const char* kName = "int4-group";
};
struct Int2Group : KiviToken<2> {
  static constexpr CodecId kId = CodecId::kInt2Group;
  static constexpr const char* kName = "int2-group";
};

}  // namespace nibble::kv
