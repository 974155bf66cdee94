// SPDX-License-Identifier: Apache-2.0
// Floor 4. Decoders of whole pages, one overload a family of codecs: DecodeTile(codec, shape, page, tile)
// with tile f32 [tokens, head_dim]. A codec that derives from a family (quant/kv/*.h) finds the family's by
// itself. Every value is Decode8's to the bit on every ISA: products that are summed are exact, so fused or
// not is the same. The last eight channels of a head that is no multiple of 16 go through Decode8.

template <class C>
static void DecodeTailChannels(kv::PageShape s, const std::byte* page, float* tile) {
  const int d = s.head_dim / 16 * 16;
  if (d == s.head_dim) return;
  for (int t = 0; t < s.tokens; ++t) C::Decode8(s, page, t, d, tile + t * s.head_dim + d);
}

static NIBBLE_HD float LoadHalf(const std::byte* p) { return HalfToFloat(kv::LoadU16(p)); }

// int8-token, int4-token: one scale and minimum a token (quant/kv/token_affine.h).
template <class C>
static void DecodeTokenAffine(kv::PageShape s, const std::byte* page, float* tile) {
  constexpr bool kNibbles = C::kLevels == 15;
  for (int t = 0; t < s.tokens; ++t) {
    const Vec16 scale = Vec16::Set1(LoadHalf(page + C::ScaleOffset(s) + 2 * t));
    const Vec16 min = Vec16::Set1(LoadHalf(page + C::MinOffset(s) + 2 * t));
    const std::byte* codes = page + (kNibbles ? t * s.head_dim / 2 : t * s.head_dim);
    float* row = tile + t * s.head_dim;
    for (int d = 0; d + 16 <= s.head_dim; d += 16) {
      const Vec16 code = kNibbles ? Vec16::LoadU4(codes + d / 2) : Vec16::LoadU8(codes + d);
      Vec16::Fma(code, scale, min).Store(row + d);
    }
  }
  DecodeTailChannels<C>(s, page, tile);
}
static void DecodeTile(const kv::Int8Token*, kv::PageShape s, const std::byte* page, float* tile) {
  DecodeTokenAffine<kv::Int8Token>(s, page, tile);
}
static void DecodeTile(const kv::Int4Token*, kv::PageShape s, const std::byte* page, float* tile) {
  DecodeTokenAffine<kv::Int4Token>(s, page, tile);
}

// FlashQ: the integer in front of the scale is exact in f32, whatever the form of the channel.
template <class Fit, bool kOutlier>
static void DecodeTile(const kv::FlashQPage<Fit, kOutlier>*, kv::PageShape s, const std::byte* page,
                       float* tile) {
  using C = kv::FlashQPage<Fit, kOutlier>;
  using Channel = typename C::Channel;
  float scale;
  __builtin_memcpy(&scale, page + C::ScaleOffset(s), 4);
  const Vec16 factor = Vec16::Set1(scale);
  for (int d = 0; d + 16 <= s.head_dim; d += 16) {
    const Vec16 step = Vec16::LoadU8(page + C::StepOffset(s) + d),
                u = Vec16::LoadU8(page + C::BaseOffset(s) + d);
    const Vec16 base = Vec16::IfLess(u, Vec16::Set1(128), u, Vec16::Sub(u, Vec16::Set1(256)));
    for (int t = 0; t < s.tokens; ++t) {
      const int at = t * s.head_dim + d;
      const Vec16 code = Vec16::LoadCodes<C::kBits>(page + kv::CodeBytes<C::kBits>(at));
      Vec16 q = Channel::kGrid ? Vec16::Mul(Vec16::Add(code, base), step) : Vec16::Fma(code, step, base);
      if constexpr (Channel::kLeavesInt8) q = Vec16::Max(Vec16::Min(q, Vec16::Set1(127)), Vec16::Set1(-127));
      Vec16::Mul(q, factor).Store(tile + at);
    }
  }
  if constexpr (kOutlier) {
    const std::byte* outliers = page + C::OutlierOffset(s);
    for (int d = 0; d < s.head_dim; ++d)
      tile[int(outliers[d]) * s.head_dim + d] = float(int8_t(outliers[s.head_dim + d])) * scale;
  }
  DecodeTailChannels<C>(s, page, tile);
}

// Scale and minimum of a group of tokens or of channels (quant/kv/kivi.h).
template <int kBits, int kSize>
static void DecodeTile(const kv::GroupedPage<kBits, kv::AlongTokens<kSize>>*, kv::PageShape s,
                       const std::byte* page, float* tile) {
  using C = kv::GroupedPage<kBits, kv::AlongTokens<kSize>>;
  const int length = C::Axis::GroupLength(s);
  for (int begin = 0; begin < s.tokens; begin += length) {
    const int end = begin + length < s.tokens ? begin + length : s.tokens;
    for (int d = 0; d + 16 <= s.head_dim; d += 16) {
      const int group = C::Axis::GroupOf(s, begin, d);
      const Vec16 scale = Vec16::LoadF16(page + C::ScaleOffset(s) + 2 * group);
      const Vec16 min = Vec16::LoadF16(page + C::MinOffset(s) + 2 * group);
      for (int t = begin; t < end; ++t) {
        const int at = t * s.head_dim + d;
        Vec16::Fma(Vec16::LoadCodes<kBits>(page + kv::CodeBytes<kBits>(at)), scale, min).Store(tile + at);
      }
    }
  }
  DecodeTailChannels<C>(s, page, tile);
}
template <int kBits, int kSize>
static void DecodeTile(const kv::GroupedPage<kBits, kv::AlongChannels<kSize>>*, kv::PageShape s,
                       const std::byte* page, float* tile) {
  using C = kv::GroupedPage<kBits, kv::AlongChannels<kSize>>;
  static_assert(kSize % 16 == 0, "16 channels lie in one group");
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d + 16 <= s.head_dim; d += 16) {
      const int at = t * s.head_dim + d, group = C::Axis::GroupOf(s, t, d);
      const Vec16 scale = Vec16::Set1(LoadHalf(page + C::ScaleOffset(s) + 2 * group));
      const Vec16 min = Vec16::Set1(LoadHalf(page + C::MinOffset(s) + 2 * group));
      Vec16::Fma(Vec16::LoadCodes<kBits>(page + kv::CodeBytes<kBits>(at)), scale, min).Store(tile + at);
    }
  DecodeTailChannels<C>(s, page, tile);
}

// GEAR: the groups, then the low-rank part, then the outliers over both.
template <int kBits, class Axis, bool kSparse>
static void DecodeTile(const kv::Gear<kBits, Axis, kSparse>*, kv::PageShape s, const std::byte* page,
                       float* tile) {
  using C = kv::Gear<kBits, Axis, kSparse>;
  DecodeTile(static_cast<const typename C::Quantized*>(nullptr), s, page, tile);
  for (int d = 0; d + 16 <= s.head_dim; d += 16) {
    Vec16 p[C::kRank];
    for (int r = 0; r < C::kRank; ++r) p[r] = Vec16::LoadF16(page + C::POffset(s) + 2 * (r * s.head_dim + d));
    for (int t = 0; t < s.tokens; ++t) {
      Vec16 x = Vec16::Load(tile + t * s.head_dim + d);
      for (int r = 0; r < C::kRank; ++r) x = Vec16::Fma(Vec16::Set1(C::Q(s, page, r, t)), p[r], x);
      x.Store(tile + t * s.head_dim + d);
    }
  }
  const int count = C::Outliers(s);
  for (int line = 0; line < (kSparse ? Axis::Lines(s) : 0); ++line)
    for (int i = 0; i < count; ++i) {
      const int place = C::Place(s, page, line, i);
      tile[Axis::Token(line, place) * s.head_dim + Axis::Channel(line, place)] = C::Value(s, page, line, i);
    }
  DecodeTailChannels<C>(s, page, tile);
}

static void DecodeTile(const kv::Fp8*, kv::PageShape s, const std::byte* page, float* tile) {
  float scale;
  __builtin_memcpy(&scale, page + kv::Fp8::ScaleOffset(s), 4);
  const Vec16 factor = Vec16::Set1(scale);
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d + 16 <= s.head_dim; d += 16) {
      const int at = t * s.head_dim + d;
      Vec16::Mul(Vec16::LoadE4m3(page + at), factor).Store(tile + at);
    }
  DecodeTailChannels<kv::Fp8>(s, page, tile);
}

// The butterflies of WalshHadamard, of strides 1 to 8 inside a vector.
static NIBBLE_HD void TransformInPlace(float* x, int n) {
  for (int i = 0; i < n; i += 16)
    Vec16::Load(x + i).Butterfly<1>().Butterfly<2>().Butterfly<4>().Butterfly<8>().Store(x + i);
  for (int stride = 16; stride < n; stride *= 2)
    for (int begin = 0; begin < n; begin += 2 * stride)
      for (int i = begin; i < begin + stride; i += 16) {
        const Vec16 a = Vec16::Load(x + i), b = Vec16::Load(x + i + stride);
        Vec16::Add(a, b).Store(x + i);
        Vec16::Sub(a, b).Store(x + i + stride);
      }
}

template <int kBits>
static void DecodeTile(const kv::TurboQuant<kBits>*, kv::PageShape s, const std::byte* page, float* tile) {
  using C = kv::TurboQuant<kBits>;
  if (s.head_dim % 16 != 0) {  // a block of eight channels
    for (int t = 0; t < s.tokens; ++t) C::DecodeRow(s, page, t, tile + t * s.head_dim);
    return;
  }
  float levels[16] = {}, signs[kv::kMaxHeadDim];
  for (int i = 0; i < 1 << kBits; ++i) levels[i] = C::Quantizer::Level(i);
  for (int d = 0; d < s.head_dim; ++d) signs[d] = kv::RotationSign(d);
  for (int begin = 0, n; begin < s.head_dim; begin += n) {
    n = kv::RotationBlock(s.head_dim, begin);
    for (int t = 0; t < s.tokens; ++t) {
      const int at = t * s.head_dim + begin;
      for (int i = 0; i < n; i += 16)
        Vec16::LookUpCodes<kBits>(levels, page + kv::CodeBytes<kBits>(at + i)).Store(tile + at + i);
      TransformInPlace(tile + at, n);
      const Vec16 factor = Vec16::Set1(C::BlockFactor(s, page, t, n));
      for (int i = 0; i < n; i += 16)
        Vec16::Mul(Vec16::Load(tile + at + i), Vec16::Mul(Vec16::Load(signs + begin + i), factor))
            .Store(tile + at + i);
    }
  }
}

// Codes that are indices of sixteen levels, times a scale of some channels of a token: mxfp4 and its kind.
template <class C>
requires requires(kv::PageShape s, const std::byte* page) {
  { C::Level(0) * C::Scale(s, page, 0, 0) } -> std::same_as<float>;
}
static void DecodeTile(const C*, kv::PageShape s, const std::byte* page, float* tile) {
  static_assert(C::kBlock % 16 == 0, "16 channels lie in one block");
  float levels[16];
  for (int i = 0; i < 16; ++i) levels[i] = C::Level(i);
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d + 16 <= s.head_dim; d += 16) {
      const int at = t * s.head_dim + d;
      const Vec16 scale = Vec16::Set1(C::Scale(s, page, t, d / C::kBlock));
      Vec16::Mul(Vec16::LookUpCodes<4>(levels, page + at / 2), scale).Store(tile + at);
    }
  DecodeTailChannels<C>(s, page, tile);
}

template <class C>
concept HasTileDecoder = requires(kv::PageShape s, const std::byte* page, float* tile) {
  DecodeTile(static_cast<const C*>(nullptr), s, page, tile);
};
