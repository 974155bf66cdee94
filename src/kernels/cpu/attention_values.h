// SPDX-License-Identifier: Apache-2.0
// Floor 4. Outputs of a tile: lanes are channels, and a channel is a sum of chains of multiply-adds over 16
// of the tokens that an entry sees. Codes are summed as they are; what makes them values is applied to
// weights or sums:
//   token:   sum p v = (p scale) . code + p . min
//   channel: sum p v = page_scale * (step[d] * (p . code) + base[d] * sum(p))

template <Elements kX>
static constexpr int kBlockBytes =
    kIsCodes<kX> ? 16 : 2 * kElementBits<kX>;  // 16 floats, or 16 bytes of codes
template <Elements kX>
static constexpr int kBlockVectors = kIsCodes<kX> ? 8 / kElementBits<kX> : 1;

// Vector number kIndex of a block: floats in order, or of each byte of codes its code number kIndex.
template <Elements kX, int kIndex>
static NIBBLE_HD Vec16 LoadBlock(const std::byte* p, int lanes) {
  if constexpr (kX == Elements::kF32) return Vec16::LoadPart(p, lanes);
  if constexpr (kX == Elements::kF16) return Vec16::LoadF16(p);
  if constexpr (kX == Elements::kBF16) return Vec16::LoadBf16(p);
  if constexpr (kIsCodes<kX>) return Vec16::template LoadByteCodes<kElementBits<kX>, kIndex>(p);
}

// part[E][..] of D blocks from number `block` on, vector kIndex of each, over the tokens of the range. Chains
// end at multiples of kChainTokens. lanes < 16 only for the last half vector of f32.
template <Elements kX, int kIndex, int E, int D>
static NIBBLE_HD void WeighBlocks(const AttentionWork& w, const PageRows& v, int e, TokenRange range,
                                  int block, int lanes) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  constexpr int kStep = 16 * kBlockVectors<kX>;  // channels of a block
  Vec16 total[E][D];
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < D; ++j) total[i][j] = Vec16::Zero();
  const int row_bytes = head_dim * kElementBits<kX> / 8;
  const float* p = w.scores + e * tokens;
  for (int begin = range.begin; begin < range.end;) {
    const int next = (begin / kChainTokens + 1) * kChainTokens, end = next < range.end ? next : range.end;
    Vec16 s[E][D];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) s[i][j] = Vec16::Zero();
    for (int t = begin; t < end; ++t) {
      const std::byte* row = v.rows + t * row_bytes + block * kBlockBytes<kX>;
      Vec16 x[D];
      for (int j = 0; j < D; ++j) x[j] = LoadBlock<kX, kIndex>(row + j * kBlockBytes<kX>, lanes);
      for (int i = 0; i < E; ++i) {
        const Vec16 weight = Vec16::Set1(p[i * tokens + t]);
        for (int j = 0; j < D; ++j) s[i][j] = Vec16::Fma(weight, x[j], s[i][j]);
      }
    }
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) total[i][j] = Vec16::Add(total[i][j], s[i][j]);
    begin = end;
  }
  float* at = w.part + block * kStep + 16 * kIndex;
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < D; ++j) total[i][j].StorePart(at + i * head_dim + j * kStep, lanes);
  if constexpr (kIndex + 1 < kBlockVectors<kX>)
    WeighBlocks<kX, kIndex + 1, E, D>(w, v, e, range, block, lanes);
}

// All channels of E entries that see the same tokens.
template <Elements kX, int E, int D>
static NIBBLE_HD void WeighRange(const AttentionWork& w, const PageRows& v, int e, TokenRange range,
                                 int block) {
  const int head_dim = w.a.page.head_dim, blocks = head_dim / (16 * kBlockVectors<kX>);
  for (; block + D <= blocks; block += D) WeighBlocks<kX, 0, E, D>(w, v, e, range, block, 16);
  if constexpr (D > 1) {
    WeighRange<kX, E, D / 2>(w, v, e, range, block);
  } else if constexpr (kX == Elements::kF32) {
    if (head_dim % 16 != 0) WeighBlocks<kX, 0, E, 1>(w, v, e, range, block, head_dim % 16);
  }
}

// Brings a block's vectors into the order of channels.
template <int kVectors>
static NIBBLE_HD void OrderBlock(Vec16 (&x)[kVectors]) {
  if constexpr (kVectors == 2) Vec16::Interleave(x[0], x[1]);
  if constexpr (kVectors == 4) {
    Vec16::Interleave(x[0], x[2]);  // the even channels
    Vec16::Interleave(x[1], x[3]);  // the odd ones
    Vec16::Interleave(x[0], x[1]);
    Vec16::Interleave(x[2], x[3]);
  }
}

// acc = acc * fix + what the sums of an entry's tile are as values.
template <Elements kX>
static NIBBLE_HD void FinishValues(const AttentionWork& w, const PageRows& v, int e, const float* part) {
  constexpr int kVectors = kBlockVectors<kX>;
  const int head_dim = w.a.page.head_dim;
  float* acc = w.acc + int64_t{e} * head_dim;
  const float *step = w.part + 4 * head_dim, *base = step + head_dim;
  const Vec16 fix = Vec16::Set1(w.fix[e]);
  for (int d = 0; d < head_dim; d += 16 * kVectors) {
    Vec16 x[kVectors];
    for (int i = 0; i < kVectors; ++i) x[i] = Vec16::LoadPart(part + d + 16 * i, PartOf16(head_dim - d));
    OrderBlock(x);
    for (int i = 0; i < kVectors; ++i) {
      const int n = PartOf16(head_dim - d), at = d + 16 * i;
      if constexpr (kIsCodes<kX>) {
        const Vec16 offset = Vec16::Set1(w.More(kValueOffset)[e]);
        if (v.affine == Affine::kToken) {
          x[i] = Vec16::Add(x[i], offset);
        } else {  // the page's scale last: of one token alone the rest is an integer, and the value Decode8's
          const Vec16 sum =
              Vec16::Fma(x[i], Vec16::Load(step + at), Vec16::Mul(offset, Vec16::Load(base + at)));
          x[i] = Vec16::Mul(sum, Vec16::Set1(v.page_scale));
        }
      }
      Vec16::Fma(Vec16::LoadPart(acc + at, n), fix, x[i]).StorePart(acc + at, n);
    }
  }
}

// What the weights of an entry meet beside the codes: of tokens, the weights take their scales and meet their
// minima; of channels, the sum of the weights meets the bases.
static NIBBLE_HD void PrepareWeights(const AttentionWork& w, const PageRows& v, int e, TokenRange range) {
  float* p = w.scores + e * w.a.page.tokens;
  const Vec16 begin = Vec16::Set1(float(range.begin)), end = Vec16::Set1(float(range.end));
  Vec16 sum = Vec16::Zero();
  for (int t = range.begin / 16 * 16; t < range.end; t += 16) {
    const Vec16 x = Vec16::Load(p + t);
    if (v.affine == Affine::kChannel) {
      sum = Vec16::Add(sum, x);
      continue;
    }
    const Vec16 token = Vec16::Add(Vec16::Lanes(), Vec16::Set1(float(t))), zero = Vec16::Zero();
    const Vec16 min = Vec16::LoadF16(v.offset + 2 * t);  // of unseen tokens it may be NaN
    const Vec16 seen = Vec16::IfLess(token, begin, zero, Vec16::IfLess(token, end, min, zero));
    sum = Vec16::Fma(x, seen, sum);
    Vec16::Mul(x, Vec16::LoadF16(v.scale + 2 * t)).Store(p + t);
  }
  w.More(kValueOffset)[e] = sum.Sum();
}

// The channels of a page, in w.part behind the sums.
static NIBBLE_HD void PrepareChannels(const AttentionWork& w, const PageRows& v) {
  const int head_dim = w.a.page.head_dim;
  for (int d = 0; d < head_dim; d += 16) {
    const Channels16 c = LoadChannels(v, d);
    c.step.Store(w.part + 4 * head_dim + d);
    c.base.Store(w.part + 5 * head_dim + d);
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
      FinishValues<kX>(w, v, e + i, w.part + (same ? i * w.a.page.head_dim : 0));
    }
  }
  if constexpr (E > 1) ValueEntries<kX, E / 2>(w, v, start, e);
}

// Adds the tile that starts at position `start` to the outputs of all entries that see some of it.
static void Values(const AttentionWork& w, const PageRows& v, int64_t start) {
  if (v.affine == Affine::kChannel) PrepareChannels(w, v);
  if (v.affine != Affine::kNone)
    for (int e = 0; e < w.entries; ++e) {
      const TokenRange range = w.Range(e, start);
      if (range.begin < range.end) PrepareWeights(w, v, e, range);
    }
  VisitElements(v.elements, [&]<Elements kX>() { ValueEntries<kX, kAttentionEntries>(w, v, start, 0); });
}
