// SPDX-License-Identifier: Apache-2.0
// KvWrite and KvSeal on every ISA: the bytes of base/half.h and of Codec::EncodePage, exactly.
#include "base/half.h"
#include "float_kernels.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr DType kRawTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

void AppendRaw(DType type, float x, std::vector<std::byte>& bytes) {
  const uint16_t u = type == DType::kF16 ? FloatToHalf(x) : FloatToBf16(x);
  const std::byte* from =
      type == DType::kF32 ? reinterpret_cast<const std::byte*>(&x) : reinterpret_cast<const std::byte*>(&u);
  bytes.insert(bytes.end(), from, from + SizeOf(type));
}

TEST(KvWrite, RoundsAndPlacesRows) {
  for (const DType type : kRawTypes) {
    for (const int head_dim : {8, 24, 64, 80, 128}) {
      const int rows = 5, first = 17, size = SizeOf(type);
      const int64_t stride = head_dim + 11;
      const auto x = test::Normal(size_t(rows * stride), 1, 100);
      std::vector<std::byte> want;
      for (int r = 0; r < rows; ++r)
        for (int d = 0; d < head_dim; ++d) AppendRaw(type, x[size_t(r * stride + d)], want);
      for (const auto* isa : test::Isas()) {
        // The buffer is what the call may write; its sentinels are the tokens before and after.
        test::Guarded<std::byte> written(want.size());
        isa->kv_write(
            {x.data(), written.data() - first * head_dim * size, stride, rows, first, head_dim, type});
        EXPECT_EQ(std::memcmp(written.data(), want.data(), want.size()), 0) << isa->isa << " " << int(type);
        EXPECT_TRUE(written.Intact());
        isa->kv_write(
            {x.data() + 1, written.data() - first * head_dim * size, stride, rows, first, head_dim, type});
        EXPECT_NE(std::memcmp(written.data(), want.data(), want.size()), 0)
            << "one channel off was not noticed";
      }
    }
  }
}

// Random bit patterns (subnormals, infinities and NaN among them) and every tie between two neighbouring
// values.
TEST(KvWrite, RoundsEveryKindOfFloat) {
  std::vector<float> x;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    x.push_back(BitsToFloat(h << 16 | 0x8000));  // half way between two bf16
    const float f = HalfToFloat(uint16_t(h));
    if (std::isfinite(f)) x.push_back(BitsToFloat(FloatToBits(f) + 0x1000));  // half way between two f16
  }
  std::mt19937 rng(2);
  while (x.size() % 8 != 0 || x.size() < 400000) x.push_back(BitsToFloat(uint32_t(rng())));
  const int rows = int(x.size() / 8);
  for (const DType type : kRawTypes) {
    std::vector<std::byte> want;
    for (const float f : x) AppendRaw(type, f, want);
    for (const auto* isa : test::Isas()) {
      std::vector<std::byte> got(want.size());
      isa->kv_write({x.data(), got.data(), 8, rows, 0, 8, type});
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size()), 0) << isa->isa << " " << int(type);
    }
  }
}

TEST(KvSeal, GivesTheBytesOfEncodePage) {
  for (const auto& codec : kv::kRegistry) {
    for (const int head_dim : {8, 64, 72, 128}) {
      const kv::PageShape shape{head_dim, kv::kPageTokens};
      auto rows = test::Normal(size_t(shape.tokens * head_dim), 3);
      std::vector<std::byte> raw;
      for (float& f : rows) {
        if (codec.raw == DType::kF16) f = HalfToFloat(FloatToHalf(f));
        if (codec.raw == DType::kBF16) f = Bf16ToFloat(FloatToBf16(f));
        AppendRaw(codec.raw, f, raw);
      }
      const size_t bytes = size_t(codec.page_bytes(shape));
      std::vector<std::byte> want(bytes);
      codec.encode_page(shape, rows.data(), want.data());
      for (const auto* isa : test::Isas()) {
        test::Guarded<std::byte> page(bytes);
        test::Guarded<float> scratch(rows.size());
        isa->kv_seal({raw.data(), page.data(), scratch.data(), codec.id, shape});
        EXPECT_EQ(std::memcmp(page.data(), want.data(), bytes), 0) << isa->isa << " " << codec.name;
        EXPECT_TRUE(page.Intact() && scratch.Intact());
        raw[raw.size() / 2 + 1] ^= std::byte{0x40};
        isa->kv_seal({raw.data(), page.data(), scratch.data(), codec.id, shape});
        raw[raw.size() / 2 + 1] ^= std::byte{0x40};
        EXPECT_NE(std::memcmp(page.data(), want.data(), bytes), 0) << "a changed element was not noticed";
      }
    }
  }
}

}  // namespace
}  // namespace nibble
