// SPDX-License-Identifier: Apache-2.0
// Floor 2. KIVI (arXiv 2402.02750): keys by channel, values by token. int4-channel, int2-channel: scale and
// minimum for every 32 tokens of a channel. int4-group, int2-group: for every 32 channels of a token. x ~
// code * scale + min as in token_affine.h. Page: codes [token][head_dim * bits / 8], low bits first, then f16
// scales, then f16 minima, in the order [token / 32][head_dim] or [token][head_dim / 32].
// docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/low_bits.h"
#include "quant/kv/token_affine.h"

namespace nibble::kv {

// The two directions. A line is all of a page along one of them, one channel or one token; a group is kSize
// values in a row of a line, the last of which may be shorter. kWholeLine: one group a line.
inline constexpr int kWholeLine = 0;

template <int kSize>
struct AlongTokens {
  static constexpr bool kByChannel = true;
  NIBBLE_HD static int Lines(PageShape s) { return s.head_dim; }
  NIBBLE_HD static int Length(PageShape s) { return s.tokens; }
  NIBBLE_HD static int GroupLength(PageShape s) { return kSize == kWholeLine ? s.tokens : kSize; }
  NIBBLE_HD static int Groups(PageShape s) {
    return (s.tokens + GroupLength(s) - 1) / GroupLength(s) * s.head_dim;
  }
  NIBBLE_HD static int GroupOf(PageShape s, int token, int channel) {
    return token / GroupLength(s) * s.head_dim + channel;
  }
  NIBBLE_HD static int Token(int /*line*/, int i) { return i; }
  NIBBLE_HD static int Channel(int line, int /*i*/) { return line; }
};

template <int kSize>
struct AlongChannels {
  static constexpr bool kByChannel = false;
  NIBBLE_HD static int Lines(PageShape s) { return s.tokens; }
  NIBBLE_HD static int Length(PageShape s) { return s.head_dim; }
  NIBBLE_HD static int GroupLength(PageShape s) { return kSize == kWholeLine ? s.head_dim : kSize; }
  NIBBLE_HD static int GroupsOfToken(PageShape s) {
    return (s.head_dim + GroupLength(s) - 1) / GroupLength(s);
  }
  NIBBLE_HD static int Groups(PageShape s) { return s.tokens * GroupsOfToken(s); }
  NIBBLE_HD static int GroupOf(PageShape s, int token, int channel) {
    return token * GroupsOfToken(s) + channel / GroupLength(s);
  }
  NIBBLE_HD static int Token(int line, int /*i*/) { return line; }
  NIBBLE_HD static int Channel(int /*line*/, int i) { return i; }
};

// One line as a buffer. What FitToken reads beyond the end repeats the last value, which moves no bound.
struct Line {
  float x[kMaxHeadDim + 8] = {};
  int n = 0;
};

template <class Axis>
NIBBLE_HD void ReadLine(PageShape s, const float* rows, int line, Line& to) {
  to.n = Axis::Length(s);
  for (int i = 0; i < to.n; ++i) to.x[i] = rows[Axis::Token(line, i) * s.head_dim + Axis::Channel(line, i)];
  for (int i = to.n; i < to.n + 8; ++i) to.x[i] = to.x[to.n - 1];
}

template <int kCodeBits, class GroupAxis>
struct GroupedPage {
  static_assert(kCodeBits == 4 || kCodeBits == 2);
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kBits = kCodeBits, kLevels = (1 << kBits) - 1;
  using Axis = GroupAxis;

  NIBBLE_HD static int ScaleOffset(PageShape s) { return CodeBytes<kBits>(s.tokens * s.head_dim); }
  NIBBLE_HD static int MinOffset(PageShape s) { return ScaleOffset(s) + 2 * Axis::Groups(s); }
  NIBBLE_HD static int EndOffset(PageShape s) { return MinOffset(s) + 2 * Axis::Groups(s); }
  NIBBLE_HD static int PageBytes(PageShape s) { return (EndOffset(s) + 3) / 4 * 4; }
  NIBBLE_HD static int SharedBytes(PageShape s) {
    return Axis::kByChannel ? PageBytes(s) - ScaleOffset(s) : 0;
  }

  // REQUIRES the page's codes zero. A group starts at a multiple of 8 in its line or is the whole line.
  NIBBLE_HD static void EncodeLine(PageShape s, const Line& from, int line, std::byte* page) {
    for (int begin = 0; begin < from.n; begin += Axis::GroupLength(s)) {
      const int end = begin + Axis::GroupLength(s) < from.n ? begin + Axis::GroupLength(s) : from.n;
      const TokenParams p = FitToken(from.x + begin, (end - begin + 7) / 8 * 8, kLevels);
      for (int i = begin; i < end; ++i)
        StoreCode<kBits>(page, Axis::Token(line, i) * s.head_dim + Axis::Channel(line, i),
                         TokenCode(from.x[i], p, kLevels));
      const int group = Axis::GroupOf(s, Axis::Token(line, begin), Axis::Channel(line, begin));
      StoreU16(page + ScaleOffset(s) + 2 * group, p.scale);
      StoreU16(page + MinOffset(s) + 2 * group, p.min);
    }
  }
  // A part is a token, or eight channels, whose codes share bytes.
  static constexpr int kPartLines = Axis::kByChannel ? 8 : 1;
  NIBBLE_HD static int Parts(PageShape s) { return Axis::Lines(s) / kPartLines; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int part, std::byte* page) {
    if (Axis::kByChannel) {
      for (int t = 0; t < s.tokens; ++t) memset(page + CodeBytes<kBits>(t * s.head_dim + 8 * part), 0, kBits);
    } else {
      memset(page + CodeBytes<kBits>(part * s.head_dim), 0, size_t(CodeBytes<kBits>(s.head_dim)));
    }
    if (part == 0) memset(page + EndOffset(s), 0, size_t(PageBytes(s) - EndOffset(s)));
    Line line;
    for (int i = part * kPartLines; i < (part + 1) * kPartLines; ++i) {
      ReadLine<Axis>(s, rows, i, line);
      EncodeLine(s, line, i, page);
    }
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<GroupedPage>(s, rows, page);
  }
  // code * scale is exact in f32 (4 + 11 bits), so a fused multiply-add gives the same value.
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    for (int i = 0; i < 8; ++i) {
      const int group = Axis::GroupOf(s, token, channel + i);
      const float scale = HalfToFloat(LoadU16(page + ScaleOffset(s) + 2 * group));
      const float min = HalfToFloat(LoadU16(page + MinOffset(s) + 2 * group));
      out8[i] = float(LoadCode<kBits>(page, token * s.head_dim + channel + i)) * scale + min;
    }
  }
};

inline constexpr int kKiviGroup = 32;

struct Int4Channel : GroupedPage<4, AlongTokens<kKiviGroup>> {
  static constexpr CodecId kId = CodecId::kInt4Channel;
  static constexpr const char* kName = "int4-channel";
};
struct Int2Channel : GroupedPage<2, AlongTokens<kKiviGroup>> {
  static constexpr CodecId kId = CodecId::kInt2Channel;
  static constexpr const char* kName = "int2-channel";
};
struct Int4Group : GroupedPage<4, AlongChannels<kKiviGroup>> {
  static constexpr CodecId kId = CodecId::kInt4Group;
  static constexpr const char* kName = "int4-group";
};
struct Int2Group : GroupedPage<2, AlongChannels<kKiviGroup>> {
  static constexpr CodecId kId = CodecId::kInt2Group;
  static constexpr const char* kName = "int2-group";
};

}  // namespace nibble::kv
