// SPDX-License-Identifier: Apache-2.0
// Floor 4. Scores of a tile of floats: lanes are tokens, and a score is a sum of chains of multiply-adds over
// 32 channels. For that the page is turned into columns: a column holds one channel of every token.

template <Elements kX>
static constexpr int kElementBytes = kElementBits<kX> / 8;

static constexpr int kChainChannels = 32, kChainTokens = 16;

template <Elements kX>
static void MakeColumns(const AttentionWork& w, const PageRows& k, std::byte* to) {
  const kv::PageShape s = w.a.page;
  constexpr int kChannels = 16 / kElementBytes<kX>;  // in the 16 bytes of a step
  const int row_bytes = s.head_dim / kChannels * 16, column_bytes = s.tokens * kElementBytes<kX>;
  LinesAhead ahead = w.Ahead(w.k_ahead);
  for (int t = 0; t < s.tokens; t += 16)
    for (int i = 0; i < row_bytes; i += 16) {
      const std::byte* from = k.rows + t * row_bytes + i;
      std::byte* at = to + i / kElementBytes<kX> * column_bytes + t * kElementBytes<kX>;
      if constexpr (kElementBytes<kX> == 2) {
        Vec16::template Transpose<uint16_t>(from, row_bytes, at, column_bytes);
      } else {
        Vec16::template Transpose<uint32_t>(from, row_bytes, at, column_bytes);
      }
      ahead.Ask<2, false>();
    }
  AttentionWork::Keep(w.k_ahead, ahead);
}

// Adds the products of one channel; `q` is at it.
template <Elements kX, int E, int T>
static NIBBLE_HD void AddColumn(const float* const (&q)[E], int d, const std::byte* column,
                                Vec16 (&sum)[E][T]) {
  Vec16 k[T];
  for (int j = 0; j < T; ++j) {
    const std::byte* p = column + 16 * j * kElementBytes<kX>;
    if constexpr (kX == Elements::kF32) k[j] = Vec16::Load(p);
    if constexpr (kX == Elements::kF16) k[j] = Vec16::LoadF16(p);
    if constexpr (kX == Elements::kBF16) k[j] = Vec16::LoadBf16(p);
  }
  for (int i = 0; i < E; ++i) {
    const Vec16 x = Vec16::Set1(q[i][d]);
    for (int j = 0; j < T; ++j) sum[i][j] = Vec16::Fma(x, k[j], sum[i][j]);
  }
}

// scores[e .. e+E) of the 16 T tokens from t.
template <Elements kX, int E, int T>
static void ScoreTokens(const AttentionWork& w, const std::byte* columns, int e, int t) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  const float* q[E];
  for (int i = 0; i < E; ++i) q[i] = w.Query(e + i);
  Vec16 total[E][T];
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < T; ++j) total[i][j] = Vec16::Zero();
  const std::byte* column = columns + t * kElementBytes<kX>;
  LinesAhead ahead = w.Ahead(w.k_ahead);
  for (int begin = 0; begin < head_dim; begin += kChainChannels) {
    const int end = begin + kChainChannels < head_dim ? begin + kChainChannels : head_dim;
    Vec16 sum[E][T];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < T; ++j) sum[i][j] = Vec16::Zero();
    for (int d = begin; d < end; ++d, column += tokens * kElementBytes<kX>) {
      AddColumn<kX>(q, d, column, sum);
      ahead.Ask<kElementBytes<kX> / 2, false>();
    }
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < T; ++j) total[i][j] = Vec16::Add(total[i][j], sum[i][j]);
  }
  AttentionWork::Keep(w.k_ahead, ahead);
  const Vec16 scale = Vec16::Set1(w.a.scale);
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < T; ++j)
      Vec16::Mul(total[i][j], scale).Store(w.scores + (e + i) * tokens + t + 16 * j);
}

// Scores of all entries against the tile that starts at position `start`. `prepared`: queries of the page
// before serve this one where their form does not depend on the page.
static void Scores(const AttentionWork& w, const PageRows& k, int64_t start, bool prepared = false) {
  VisitElements(k.elements, [&]<Elements kX>() {
    if constexpr (kIsCodes<kX>) {
      CodeScores<kX>(w, k, start, prepared);
    } else {
      std::byte* columns = reinterpret_cast<std::byte*>(w.columns);
      MakeColumns<kX>(w, k, columns);
      ForScoreTiles<kAttentionEntries>(
          w, start, 0, [&]<int E, int T>(int e, int t) { ScoreTokens<kX, E, T>(w, columns, e, t); });
    }
  });
}
