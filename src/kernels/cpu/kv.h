// SPDX-License-Identifier: Apache-2.0
// Floor 4. The KV cache's bytes: rows into raw pages, raw pages into codec pages, and both back into f32
// tiles.

static void KvWrite(const KvWriteArgs& a) {
  const int size = SizeOf(a.raw_type);
  for (int row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.x_stride;
    std::byte* to = a.raw + (int64_t{a.first_token} + row) * a.head_dim * size;
    for (int i = 0; i < a.head_dim; i += 16) {
      const int n = PartOf16(a.head_dim - i);
      const Vec16 v = Vec16::LoadPart(x + i, n);
      alignas(64) std::byte rounded[64];
      if (a.raw_type == DType::kF16) {
        v.StoreF16(rounded);
      } else if (a.raw_type == DType::kBF16) {
        v.StoreBf16(rounded);
      } else {
        v.Store(rounded);
      }
      __builtin_memcpy(to + int64_t{i} * size, rounded, size_t(n * size));
    }
  }
}

// The first `tokens` rows of a page of plain elements as f32 [tokens, head_dim]: the page itself where it is
// f32 already, else decoded into `tile`. REQUIRES tokens * head_dim a multiple of 8.
static const float* RawTile(DType type, const std::byte* raw, int tokens, int head_dim, float* tile) {
  if (type == DType::kF32) return reinterpret_cast<const float*>(raw);
  const int count = tokens * head_dim;
  const bool half = type == DType::kF16;
  int i = 0;
  for (; i + 16 <= count; i += 16)
    (half ? Vec16::LoadF16(raw + 2 * i) : Vec16::LoadBf16(raw + 2 * i)).Store(tile + i);
  for (; i < count; ++i) {
    uint16_t u;
    __builtin_memcpy(&u, raw + 2 * i, 2);
    tile[i] = half ? HalfToFloat(u) : Bf16ToFloat(u);
  }
  return tile;
}

// A page through its codec, as f32 [tokens, head_dim]: a decoder of whole tiles where the codec has one
// (kv_tiles.h), else Codec::DecodeRow.
template <class C>
static NIBBLE_HD const float* PageTile(kv::PageShape s, const std::byte* page, float* tile) {
  if constexpr (C::kId == kv::CodecId::kF32 || C::kId == kv::CodecId::kF16 || C::kId == kv::CodecId::kBF16) {
    return RawTile(C::kRaw, page, s.tokens, s.head_dim, tile);
  } else if constexpr (HasTileDecoder<C>) {
    DecodeTile(static_cast<const C*>(nullptr), s, page, tile);
  } else {
    for (int t = 0; t < s.tokens; ++t) kv::DecodeRow<C>(s, page, t, tile + t * s.head_dim);
  }
  return tile;
}

static const float* DecodePage(kv::CodecId codec, kv::PageShape s, const std::byte* page, float* tile) {
  const float* decoded = nullptr;
  Visit(kv::Codecs{}, codec, [&]<class C>() { decoded = PageTile<C>(s, page, tile); });
  return decoded;
}

static DType RawTypeOf(kv::CodecId codec) {
  DType type = DType::kF32;
  Visit(kv::Codecs{}, codec, [&]<class C>() { type = C::kRaw; });
  return type;
}

static void KvSeal(const KvSealArgs& a) {
  const float* rows = RawTile(RawTypeOf(a.codec), a.raw, a.shape.tokens, a.shape.head_dim, a.scratch);
  Visit(kv::Codecs{}, a.codec, [&]<class C>() { C::EncodePage(a.shape, rows, a.page); });
}
