// SPDX-License-Identifier: Apache-2.0
// Whole-page decoders of the kernels against Decode8, to the bit, on every ISA: attention that looks at
// exactly one token returns that token's decoded row. A page with one bit changed must be seen.
#include "base/half.h"
#include "float_kernels.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kTokens = kv::kPageTokens;

std::vector<std::byte> MakePage(const kv::CodecInfo& codec, kv::PageShape s, uint32_t seed) {
  auto rows = test::Normal(size_t(s.tokens * s.head_dim), seed);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % 37 == 5) rows[i] *= 12;
    if (codec.raw == DType::kF16) rows[i] = HalfToFloat(FloatToHalf(rows[i]));
    if (codec.raw == DType::kBF16) rows[i] = Bf16ToFloat(FloatToBf16(rows[i]));
  }
  std::vector<std::byte> page(size_t(codec.page_bytes(s)));
  codec.encode_page(s, rows.data(), page.data());
  return page;
}

// V as the kernel decodes it, row by row: keys are f32 and only `token` points along the query, so far that
// all other weights are 0.
std::vector<float> DecodedByKernel(const cpu::CpuKernels& isa, const kv::CodecInfo& codec, kv::PageShape s,
                                   const std::vector<std::byte>& page) {
  const size_t count = size_t(s.tokens * s.head_dim);
  std::vector<float> keys(count, 0.0f), own_key(count, 0.0f), query(size_t(s.head_dim), 0.0f), decoded;
  std::vector<std::byte> own_value(count * 4);
  query[0] = 1;
  for (int t = 0; t < s.tokens; ++t) keys[size_t(t * s.head_dim)] = -1e6f;
  own_key[0] = -1e6f;
  test::Guarded<float> scratch(size_t(AttentionScratchFloats(1, 1, s))), out(size_t(s.head_dim));
  const auto* k_page = reinterpret_cast<const std::byte*>(keys.data());
  const std::byte* v_page = page.data();
  for (int t = 0; t < s.tokens; ++t) {
    keys[size_t(t * s.head_dim)] = 0;
    isa.attention({.q = query.data(),
                   .out = out.data(),
                   .k_pages = &k_page,
                   .v_pages = &v_page,
                   .page_list = nullptr,
                   .k_raw = reinterpret_cast<const std::byte*>(own_key.data()),
                   .v_raw = own_value.data(),
                   .scratch = scratch.data(),
                   .q_stride = s.head_dim,
                   .out_stride = s.head_dim,
                   .position = s.tokens,
                   .window = 0,
                   .rows = 1,
                   .group = 1,
                   .pages = 1,
                   .list_len = 1,
                   .page = s,
                   .k_codec = kv::CodecId::kF32,
                   .v_codec = codec.id,
                   .scale = 1});
    keys[size_t(t * s.head_dim)] = -1e6f;
    decoded.insert(decoded.end(), out.data(), out.data() + s.head_dim);
  }
  return decoded;
}

// -0 and +0 are one value here: the sum over tokens turns the first into the second.
int CountDifferent(const kv::CodecInfo& codec, kv::PageShape s, const std::vector<std::byte>& page,
                   const std::vector<float>& got) {
  int different = 0;
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d < s.head_dim; d += 8) {
      float want[8];
      codec.decode8(s, page.data(), t, d, want);
      for (int i = 0; i < 8; ++i) different += !(want[i] == got[size_t(t * s.head_dim + d + i)]);
    }
  return different;
}

TEST(KvTiles, AreDecode8ToTheBit) {
  for (const auto& codec : kv::kRegistry)
    for (const int head_dim : {8, 16, 24, 64, 72, 80, 96, 128, 256, 512}) {
      const kv::PageShape s{head_dim, kTokens};
      auto page = MakePage(codec, s, uint32_t(head_dim));
      const auto code = size_t(codec.requantizes ? codec.pool_bytes(s) : 3);  // its record holds addresses
      for (const auto* isa : test::Isas()) {
        const auto got = DecodedByKernel(*isa, codec, s, page);
        ASSERT_EQ(CountDifferent(codec, s, page, got), 0)
            << isa->isa << " " << codec.name << " head_dim " << head_dim;
        page[code] ^= std::byte{0x21};
        EXPECT_NE(CountDifferent(codec, s, page, got), 0) << codec.name << ": a changed byte was not noticed";
        page[code] ^= std::byte{0x21};
      }
    }
}

TEST(KvTiles, DecodeRowIsDecode8) {
  for (const auto& codec : kv::kRegistry)
    for (const int head_dim : {8, 80, 128, 1024}) {
      const kv::PageShape s{head_dim, kTokens};
      const auto page = MakePage(codec, s, 7);
      std::vector<float> rows(size_t(kTokens * head_dim));
      for (int t = 0; t < kTokens; ++t) codec.decode_row(s, page.data(), t, &rows[size_t(t * head_dim)]);
      EXPECT_EQ(CountDifferent(codec, s, page, rows), 0) << codec.name;
    }
}

// Codecs without a decoder of whole pages are marked; all of this build have one.
TEST(KvTiles, NoLabelSaysDecode8) {
  for (const auto* isa : test::Isas())
    for (const auto& k : kv::kRegistry)
      for (const auto& v : kv::kRegistry)
        EXPECT_EQ(std::string(isa->attention_name(k.id, v.id)).find("decode8"), std::string::npos) << k.name;
}

}  // namespace
}  // namespace nibble
