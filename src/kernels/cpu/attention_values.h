// SPDX-License-Identifier: Apache-2.0
// Floor 4. Outputs of a tile of floats: lanes are channels, and a channel is a sum of chains of multiply-adds
// over 16 of the tokens that an entry sees.

// The 16 channels at p; lanes < 16 only for the last half vector of f32.
template <Elements kX>
static NIBBLE_HD Vec16 LoadChannels16(const std::byte* p, int lanes) {
  if constexpr (kX == Elements::kF16) return Vec16::LoadF16(p);
  if constexpr (kX == Elements::kBF16) return Vec16::LoadBf16(p);
  return Vec16::LoadPart(p, lanes);
}

// part[E][..] of D vectors from number `block` on over the tokens of the range. Chains end at multiples of
// kChainTokens.
template <Elements kX, int E, int D>
static NIBBLE_HD void WeighBlocks(const AttentionWork& w, const PageRows& v, int e, TokenRange range,
                                  int block, int lanes) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  constexpr int kBytes = 16 * kElementBytes<kX>;
  Vec16 total[E][D];
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < D; ++j) total[i][j] = Vec16::Zero();
  const int row_bytes = head_dim * kElementBits<kX> / 8;
  const float* p = w.scores + e * tokens;
  LinesAhead ahead = w.Ahead(w.v_ahead);
  for (int begin = range.begin; begin < range.end;) {
    const int next = (begin / kChainTokens + 1) * kChainTokens, end = next < range.end ? next : range.end;
    Vec16 s[E][D];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) s[i][j] = Vec16::Zero();
    for (int t = begin; t < end; ++t) {
      const std::byte* row = v.rows + t * row_bytes + block * kBytes;
      Vec16 x[D];
      for (int j = 0; j < D; ++j) x[j] = LoadChannels16<kX>(row + j * kBytes, lanes);
      for (int i = 0; i < E; ++i) {
        const Vec16 weight = Vec16::Set1(p[i * tokens + t]);
        for (int j = 0; j < D; ++j) s[i][j] = Vec16::Fma(weight, x[j], s[i][j]);
      }
      ahead.Ask<kElementBytes<kX>, false>();
    }
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) total[i][j] = Vec16::Add(total[i][j], s[i][j]);
    begin = end;
  }
  AttentionWork::Keep(w.v_ahead, ahead);
  float* at = w.part + block * 16;
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < D; ++j) total[i][j].StorePart(at + i * head_dim + j * 16, lanes);
}

// All channels of E entries that see the same tokens.
template <Elements kX, int E, int D>
static NIBBLE_HD void WeighRange(const AttentionWork& w, const PageRows& v, int e, TokenRange range,
                                 int block) {
  const int head_dim = w.a.page.head_dim, blocks = head_dim / 16;
  for (; block + D <= blocks; block += D) WeighBlocks<kX, E, D>(w, v, e, range, block, 16);
  if constexpr (D > 1) {
    WeighRange<kX, E, D / 2>(w, v, e, range, block);
  } else if constexpr (kX == Elements::kF32) {
    if (head_dim % 16 != 0) WeighBlocks<kX, E, 1>(w, v, e, range, block, head_dim % 16);
  }
}

// acc = acc * fix + the sums of an entry's tile.
static NIBBLE_HD void FinishValues(const AttentionWork& w, int e, const float* part) {
  const int head_dim = w.a.page.head_dim;
  float* acc = w.acc + int64_t{e} * head_dim;
  const Vec16 fix = Vec16::Set1(w.fix[e]);
  for (int d = 0; d < head_dim; d += 16) {
    const int n = PartOf16(head_dim - d);
    Vec16::Fma(Vec16::LoadPart(acc + d, n), fix, Vec16::LoadPart(part + d, n)).StorePart(acc + d, n);
  }
}

template <Elements kX, int E>
static NIBBLE_HD void ValueEntries(const AttentionWork& w, const PageRows& v, int64_t start, int e) {
  constexpr int kAlone = kAttentionVectors < 4 ? kAttentionVectors : 4;
  constexpr int kD = kAttentionVectors / E < kAlone ? kAttentionVectors / E : kAlone;
  for (; e + E <= w.entries; e += E) {
    const TokenRange first = w.Range(e, start), last = w.Range(e + E - 1, start);
    const bool same = first.begin == last.begin && first.end == last.end;
    if (same && first.begin < first.end) WeighRange<kX, E, kD>(w, v, e, first, 0);
    for (int i = 0; i < E; ++i) {
      const TokenRange range = w.Range(e + i, start);
      if (range.begin >= range.end) continue;
      if (!same) WeighRange<kX, 1, kAlone>(w, v, e + i, range, 0);
      FinishValues(w, e + i, w.part + (same ? i * w.a.page.head_dim : 0));
    }
  }
  if constexpr (E > 1) ValueEntries<kX, E / 2>(w, v, start, e);
}

// Adds the tile that starts at position `start` to the outputs of all entries that see some of it.
static void Values(const AttentionWork& w, const PageRows& v, int64_t start) {
  VisitElements(v.elements, [&]<Elements kX>() {
    if constexpr (kIsCodes<kX>) {
      if (v.affine == Affine::kToken) {
        CodeValues<kX, Affine::kToken>(w, v, start);
      } else {
        CodeValues<kX, Affine::kChannel>(w, v, start);
      }
    } else {
      ValueEntries<kX, kAttentionEntries>(w, v, start, 0);
    }
  });
}
