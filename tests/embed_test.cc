// SPDX-License-Identifier: Apache-2.0
// Embedding lookup on every ISA and layout: exactly the packed elements.
#include "kernels/ref/embed.h"

#include "float_kernels.h"

namespace nibble {
namespace {

using weight::Layout;

// A packed table of random bytes (finite as f16 and bf16: the exponent's top bit is clear), so that every
// element differs from its neighbours.
struct Table {
  weight::PackedWeight w;
  std::vector<std::byte> bytes;
  std::vector<float> scale;
};
Table MakeTable(Layout layout, int vocab, int k) {
  Table t;
  const int size = layout == Layout::kF32         ? 4
                   : layout == Layout::kI8Channel ? 1
                                                  : 2,
            padded = (vocab + 15) / 16 * 16;
  t.bytes.resize(size_t(padded) * size_t(k) * size_t(size));
  std::mt19937 rng(12);
  for (size_t i = 0; i < t.bytes.size(); ++i)
    t.bytes[i] = std::byte(int(i) % size == size - 1 && size > 1 ? rng() & 0xbf : rng() & 0xff);
  t.scale = test::Normal(size_t(padded), 13);
  t.w.layout = layout;
  t.w.n = vocab;
  t.w.k = k;
  t.w.codes = t.bytes.data();
  t.w.scale = t.scale.data();
  return t;
}

TEST(Embed, GathersExactlyTheRows) {
  const int vocab = 50;
  const std::vector<int32_t> tokens = {0, 1, 15, 16, 17, 31, 49, 49, 3};
  const int rows = int(tokens.size());
  for (const Layout layout : {Layout::kF32, Layout::kF16, Layout::kBF16, Layout::kI8Channel}) {
    for (const int k : {4, 20, 64, 100}) {
      const Table t = MakeTable(layout, vocab, k);
      std::vector<double> want(size_t(rows * k));
      std::vector<float> rounded;
      for (const auto* isa : test::Isas()) {
        test::Guarded<float> y(want.size());
        EmbedArgs a{t.w, tokens.data(), y.data(), rows};
        ref::Embed(a, want.data());
        rounded.assign(want.begin(), want.end());
        isa->embed(a);
        EXPECT_TRUE(test::SameBits(y.data(), rounded.data(), y.size()))
            << isa->isa << " " << int(layout) << " " << k;
        EXPECT_TRUE(y.Intact());
        // A neighbour's row is noticed.
        auto wrong = tokens;
        wrong[4] ^= 1;
        a.tokens = wrong.data();
        isa->embed(a);
        EXPECT_FALSE(test::SameBits(y.data(), rounded.data(), y.size()));
      }
    }
  }
}

}  // namespace
}  // namespace nibble
