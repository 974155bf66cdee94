// SPDX-License-Identifier: Apache-2.0
// Floor 4. Scores of a tile: lanes are tokens, and a score is a sum of chains of multiply-adds over 32
// channels. For that the page is turned into columns: a column holds one word (an f32, a 16-bit float, or 32
// bits of codes) of every token. Codes are summed as they are; what makes them values is applied to the sums:
//   token:   q . k = scale[t] * (q . code) + min[t] * sum(q)
//   channel: q . k = page_scale * ((q * step) . code + q . base)

template <Elements kX>
static constexpr int kWordBytes = kElementBits<kX> == 16 ? 2 : 4;
template <Elements kX>
static constexpr int kWordChannels = kWordBytes<kX> * 8 / kElementBits<kX>;

// Codes are not negative, so what a chain of them holds is far more than the score: short chains lose less.
static constexpr int kChainChannels = 32, kChainTokens = 16;

struct KeyTile {
  const std::byte* columns;  // [head_dim / kWordChannels, tokens] words
  const float* queries;      // [entries, head_dim] as the elements take them, or null: the queries themselves
  Affine affine;
  float scale[kv::kPageTokens], offset[kv::kPageTokens];  // score = sum * scale + kKeyOffset * offset
};

template <Elements kX>
static NIBBLE_HD void MakeColumns(const PageRows& k, kv::PageShape s, std::byte* to) {
  constexpr int kChannels = 128 / kElementBits<kX>;  // in the 16 bytes of a step
  const int row_bytes = s.head_dim / kChannels * 16, column_bytes = s.tokens * kWordBytes<kX>;
  for (int t = 0; t < s.tokens; t += 16)
    for (int i = 0; i < row_bytes; i += 16) {
      const std::byte* from = k.rows + t * row_bytes + i;
      std::byte* at = to + i / kWordBytes<kX> * column_bytes + t * kWordBytes<kX>;
      if constexpr (kWordBytes<kX> == 2) {
        Vec16::template Transpose<uint16_t>(from, row_bytes, at, column_bytes);
      } else {
        Vec16::template Transpose<uint32_t>(from, row_bytes, at, column_bytes);
      }
    }
}

// LoadWordCodes leaves code number i of a word times 2^(bits i), but for the last: what takes that off again.
template <Elements kX>
static NIBBLE_HD Vec16 WordFactors() {
  float f[16];
  for (int i = 0; i < 16; ++i) {
    const int n = i % kWordChannels<kX>;
    f[i] = n + 1 == kWordChannels<kX> ? 1.0f : 1.0f / float(1u << n * kElementBits<kX>);
  }
  return Vec16::Load(f);
}

// w.queries, and by entry the sum that meets the offsets of tokens or channels.
template <Elements kX>
static void PrepareQueries(const AttentionWork& w, const PageRows& k) {
  if constexpr (kIsCodes<kX>) {
    const int head_dim = w.a.page.head_dim;
    const Vec16 factors = WordFactors<kX>();
    for (int e = 0; e < w.entries; ++e) {
      const float* q = w.Query(e);
      Vec16 sum = Vec16::Zero();
      for (int d = 0; d < head_dim; d += 16) {
        Vec16 x = Vec16::Load(q + d);
        if (k.affine == Affine::kToken) {
          sum = Vec16::Add(sum, x);
        } else {
          const Channels16 c = LoadChannels(k, d);
          sum = Vec16::Fma(x, c.base, sum);
          x = Vec16::Mul(x, c.step);
        }
        Vec16::Mul(x, factors).Store(w.queries + int64_t{e} * head_dim + d);
      }
      w.More(kKeyOffset)[e] = sum.Sum();
    }
  }
}

// `prepared`: w.queries are those of the page before, whose parameters by token do not concern them.
template <Elements kX>
static KeyTile MakeKeyTile(const AttentionWork& w, const PageRows& k, bool prepared) {
  std::byte* columns = reinterpret_cast<std::byte*>(w.columns);
  MakeColumns<kX>(k, w.a.page, columns);
  KeyTile tile;
  tile.columns = columns;
  tile.queries = kIsCodes<kX> ? w.queries : nullptr;
  tile.affine = k.affine;
  if (!prepared || k.affine == Affine::kChannel) PrepareQueries<kX>(w, k);
  for (int t = 0; t < w.a.page.tokens; t += 16) {
    Vec16 scale = Vec16::Set1(w.a.scale), offset = Vec16::Zero();
    if (k.affine == Affine::kToken) {
      offset = Vec16::Mul(Vec16::LoadF16(k.offset + 2 * t), scale);
      scale = Vec16::Mul(Vec16::LoadF16(k.scale + 2 * t), scale);
    } else if (k.affine == Affine::kChannel) {
      offset = scale = Vec16::Set1(w.a.scale * k.page_scale);
    }
    scale.Store(tile.scale + t);
    offset.Store(tile.offset + t);
  }
  return tile;
}

// Adds the products of the channels of one column from number kIndex on; `q` is at the column's first.
template <Elements kX, int kIndex, int E, int T>
static NIBBLE_HD void AddColumn(const float* const (&q)[E], int d, const std::byte* column,
                                Vec16 (&sum)[E][T]) {
  Vec16 k[T];
  for (int j = 0; j < T; ++j) {
    const std::byte* p = column + 16 * j * kWordBytes<kX>;
    if constexpr (kX == Elements::kF32) k[j] = Vec16::Load(p);
    if constexpr (kX == Elements::kF16) k[j] = Vec16::LoadF16(p);
    if constexpr (kX == Elements::kBF16) k[j] = Vec16::LoadBf16(p);
    if constexpr (kIsCodes<kX>) k[j] = Vec16::template LoadWordCodes<kElementBits<kX>, kIndex>(p);
  }
  for (int i = 0; i < E; ++i) {
    const Vec16 x = Vec16::Set1(q[i][d + kIndex]);
    for (int j = 0; j < T; ++j) sum[i][j] = Vec16::Fma(x, k[j], sum[i][j]);
  }
  if constexpr (kIndex + 1 < kWordChannels<kX>) AddColumn<kX, kIndex + 1>(q, d, column, sum);
}

// scores[e .. e+E) of the 16 T tokens from t.
template <Elements kX, int E, int T>
static void ScoreTokens(const AttentionWork& w, const KeyTile& k, int e, int t) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  const float* q[E];
  for (int i = 0; i < E; ++i)
    q[i] = k.queries != nullptr ? k.queries + int64_t{e + i} * head_dim : w.Query(e + i);
  Vec16 total[E][T];
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < T; ++j) total[i][j] = Vec16::Zero();
  const std::byte* column = k.columns + t * kWordBytes<kX>;
  for (int begin = 0; begin < head_dim; begin += kChainChannels) {
    const int end = begin + kChainChannels < head_dim ? begin + kChainChannels : head_dim;
    Vec16 sum[E][T];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < T; ++j) sum[i][j] = Vec16::Zero();
    for (int d = begin; d < end; d += kWordChannels<kX>, column += tokens * kWordBytes<kX>)
      AddColumn<kX, 0>(q, d, column, sum);
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < T; ++j) total[i][j] = Vec16::Add(total[i][j], sum[i][j]);
  }
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < T; ++j) {
      const Vec16 scale = Vec16::Load(k.scale + t + 16 * j);
      Vec16 score = Vec16::Mul(total[i][j], scale);
      if (k.affine != Affine::kNone) {
        const Vec16 offset = Vec16::Load(k.offset + t + 16 * j);
        score = Vec16::Fma(Vec16::Set1(w.More(kKeyOffset)[e + i]), offset, score);
      }
      score.Store(w.scores + (e + i) * tokens + t + 16 * j);
    }
}

// Ranges grow with the entry, so a block needs the tokens from its first entry's begin to its last entry's
// end.
template <Elements kX, int E>
static NIBBLE_HD void ScoreEntries(const AttentionWork& w, const KeyTile& k, int64_t start, int e) {
  constexpr int kWide = kAttentionVectors / E < 4 ? kAttentionVectors / E : 4;
  for (; e + E <= w.entries; e += E) {
    const int begin = w.Range(e, start).begin, end = w.Range(e + E - 1, start).end;
    for (int t = begin / (16 * kWide) * (16 * kWide); t < end; t += 16 * kWide)
      ScoreTokens<kX, E, kWide>(w, k, e, t);
  }
  if constexpr (E > 1) ScoreEntries<kX, E / 2>(w, k, start, e);
}

// Scores of all entries against the tile that starts at position `start`.
static void Scores(const AttentionWork& w, const PageRows& k, int64_t start, bool prepared = false) {
  VisitElements(k.elements, [&]<Elements kX>() {
    ScoreEntries<kX, kAttentionEntries>(w, MakeKeyTile<kX>(w, k, prepared), start, 0);
  });
}
