// SPDX-License-Identifier: Apache-2.0
// Floor 4. A page as rows of elements that attention can sum without decoding them: floats of 32 or 16 bits,
// or unsigned codes of 8, 4 or 2 bits whose scales and offsets leave the inner loops. What is neither is
// decoded into rows of f32 first.

enum class Elements : uint8_t { kF32, kF16, kBF16, kCodes8, kCodes4, kCodes2 };

template <Elements kX>
static constexpr int kElementBits = kX == Elements::kF32      ? 32
                                    : kX == Elements::kCodes8 ? 8
                                    : kX == Elements::kCodes4 ? 4
                                    : kX == Elements::kCodes2 ? 2
                                                              : 16;
template <Elements kX>
static constexpr bool kIsCodes = kX >= Elements::kCodes8;

// Calls f.operator()<kX>() for the elements x.
template <class F>
static NIBBLE_HD void VisitElements(Elements x, F&& f) {
  switch (x) {
    case Elements::kF32:
      return f.template operator()<Elements::kF32>();
    case Elements::kF16:
      return f.template operator()<Elements::kF16>();
    case Elements::kBF16:
      return f.template operator()<Elements::kBF16>();
    case Elements::kCodes8:
      return f.template operator()<Elements::kCodes8>();
    case Elements::kCodes4:
      return f.template operator()<Elements::kCodes4>();
    case Elements::kCodes2:
      return f.template operator()<Elements::kCodes2>();
  }
}

enum class Affine : uint8_t {
  kNone,     // the elements are the values
  kToken,    // code * scale[token] + min[token]
  kChannel,  // (code * step[channel] + base[channel]) * page_scale, the base in steps where `grid`
};

struct PageRows {
  const std::byte* rows;  // [tokens, head_dim] elements without gaps
  Elements elements = Elements::kF32;
  Affine affine = Affine::kNone;
  bool grid = false;
  float page_scale = 1;
  const std::byte* scale = nullptr;   // kToken: f16 [tokens]. kChannel: u8 steps [head_dim]
  const std::byte* offset = nullptr;  // kToken: f16 minima [tokens]. kChannel: s8 bases [head_dim]
};

static NIBBLE_HD PageRows FloatRows(const float* rows) {
  return {.rows = reinterpret_cast<const std::byte*>(rows)};
}

// The page itself where its codec allows that, else decoded into `tile`, f32 [tokens, head_dim].
template <class C>
static NIBBLE_HD PageRows RowsOf(kv::PageShape s, const std::byte* page, float* tile) {
  if constexpr (C::kId == kv::CodecId::kF16 || C::kId == kv::CodecId::kBF16) {
    if (kv::FitsColumns(16, s.head_dim))
      return {.rows = page, .elements = C::kRaw == DType::kF16 ? Elements::kF16 : Elements::kBF16};
  } else if constexpr (kv::kHasTokenCodes<C>) {
    if (const int bits = kv::CodeBits<C>(s); bits != 0)
      return {.rows = page,
              .elements = bits == 4 ? Elements::kCodes4 : Elements::kCodes8,
              .affine = Affine::kToken,
              .scale = page + C::ScaleOffset(s),
              .offset = page + C::MinOffset(s)};
  } else if constexpr (kv::HasChannelCodes<C>) {
    if (const int bits = kv::CodeBits<C>(s); bits != 0)
      return {.rows = page,
              .elements = bits == 4 ? Elements::kCodes4 : Elements::kCodes2,
              .affine = Affine::kChannel,
              .grid = C::Channel::kGrid,
              .page_scale = kv::Int8Scale<C>(s, page),
              .scale = page + C::StepOffset(s),
              .offset = page + C::BaseOffset(s)};
  }
  return FloatRows(PageTile<C>(s, page, tile));
}

static PageRows SealedRows(kv::CodecId codec, kv::PageShape s, const std::byte* page, float* tile) {
  PageRows rows{};
  Visit(kv::Codecs{}, codec, [&]<class C>() { rows = RowsOf<C>(s, page, tile); });
  return rows;
}

// The open page. All its rows may be read; only the first n hold tokens.
static PageRows OpenPageRows(kv::Tail tail, DType type, kv::PageShape s, const std::byte* raw, int n,
                             float* tile) {
  if (tail == kv::Tail::kFloat && type != DType::kF32 && kv::FitsColumns(16, s.head_dim))
    return {.rows = raw, .elements = type == DType::kF16 ? Elements::kF16 : Elements::kBF16};
  return FloatRows(OpenRows(tail, type, s, raw, 0, n, tile));
}

// Steps and bases of 16 channels from d on, as value = (code * step + base) * page_scale.
struct Channels16 {
  Vec16 step, base;
};
static NIBBLE_HD Channels16 LoadChannels(const PageRows& x, int d) {
  const Vec16 step = Vec16::LoadU8(x.scale + d), u = Vec16::LoadU8(x.offset + d);
  const Vec16 base = Vec16::IfLess(u, Vec16::Set1(128), u, Vec16::Sub(u, Vec16::Set1(256)));
  return {step, x.grid ? Vec16::Mul(base, step) : base};
}
