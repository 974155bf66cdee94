// SPDX-License-Identifier: Apache-2.0
// Floor 4. SparQ, steps 1 and 2 (arXiv 2312.04985, section 3): the channels in which the queries are largest
// rank all tokens. Tokens are indexed from `base`, the first token of the first page that the row sees.

struct SparqWork {
  const SparqArgs& a;
  SelectWork w;
  int base;    // position of index 0
  int count;   // indices up to the row's own token; those before `first` are not seen
  int hidden;  // first - base
};

static NIBBLE_HD float Magnitude(float x) { return x < 0 ? -x : x; }

// Writes the channels by falling sum over heads of |q|, of equal ones the lower first.
static void OrderChannels(const SelectRow& r, const SelectWork& w) {
  const int dim = r.page.head_dim;
  for (int d = 0; d < dim; ++d) w.magnitude[d] = 0;
  for (int g = 0; g < r.group; ++g)
    for (int d = 0; d < dim; ++d) w.magnitude[d] += Magnitude(r.q[int64_t{g} * dim + d]);
  for (int d = 0; d < dim; ++d) w.channel_keys[d] = OrderKey(w.magnitude[d]);
  for (int d = 0; d < dim; ++d) {  // a channel's place is the number of those before it
    const uint32_t key = w.channel_keys[d];
    int place = 0;
    for (int i = 0; i < d; ++i) place += w.channel_keys[i] >= key;
    for (int i = d + 1; i < dim; ++i) place += w.channel_keys[i] > key;
    w.channels[place] = d;
  }
}

// F-S1: the least multiple of 8, at most r, whose channels hold the share rho of the magnitude.
static int AdaptiveR(const SparqWork& s) {
  const int dim = s.a.row.page.head_dim;
  const SparqParams& p = s.a.sparq;
  if (p.rho <= 0) return p.r;
  float total = 0, held = 0;
  for (int d = 0; d < dim; ++d) total += s.w.magnitude[d];
  for (int i = 0; i < p.r; ++i) {
    if (i > 0 && i % 8 == 0 && held >= p.rho * total) return i;
    held += s.w.magnitude[s.w.channels[i]];
  }
  return p.r;
}

// The queries in the first r channels, over the temperature of each head.
static void ChooseQueries(const SparqWork& s, int r) {
  const int dim = s.a.row.page.head_dim;
  for (int g = 0; g < s.a.row.group; ++g) {
    const float* q = s.a.row.q + int64_t{g} * dim;
    float total = 0, held = 0;
    for (int d = 0; d < dim; ++d) total += Magnitude(q[d]);
    for (int i = 0; i < r; ++i) held += Magnitude(q[s.w.channels[i]]);
    const float tau = __builtin_sqrtf(held > 0 ? float(dim) * held / total : float(dim));
    for (int i = 0; i < r; ++i) s.w.query[g * dim + i] = q[s.w.channels[i]] / tau;
  }
}

// Approximate logits of T * 16 tokens of a sealed page for E heads: r rows of the copy are streamed, channels
// in the order of w.channels.
template <KeyCopy F, int E, int T>
static NIBBLE_HD void RankTokens(const SparqWork& s, const std::byte* copy, int r, int g, int t, int index) {
  const int dim = s.a.row.page.head_dim;
  Vec16 sum[E][T];
  for (int e = 0; e < E; ++e)
    for (int j = 0; j < T; ++j) sum[e][j] = Vec16::Zero();
  for (int i = 0; i < r; ++i) {
    Vec16 k[T];
    for (int j = 0; j < T; ++j) k[j] = LoadKeys<F>(copy, s.a.row.page, s.w.channels[i], t + 16 * j);
    for (int e = 0; e < E; ++e) {
      const Vec16 q = Vec16::Set1(s.w.query[(g + e) * dim + i]);
      for (int j = 0; j < T; ++j) sum[e][j] = Vec16::Fma(q, k[j], sum[e][j]);
    }
  }
  for (int e = 0; e < E; ++e)
    for (int j = 0; j < T; ++j)
      sum[e][j].Store(s.w.approx + int64_t{g + e} * s.w.capacity + index + t + 16 * j);
}

static constexpr int kRankVectors = kAccumulators >= 16 ? 4 : 2;
static constexpr int kRankHeads =
    Pow2AtMost(kAccumulators / kRankVectors < 4 ? kAccumulators / kRankVectors : 4);

template <KeyCopy F, int E>
static NIBBLE_HD void RankHeads(const SparqWork& s, const std::byte* copy, int r, int g, int index) {
  for (; g + E <= s.a.row.group; g += E)
    for (int t = 0; t < s.a.row.page.tokens; t += 16 * kRankVectors)
      RankTokens<F, E, kRankVectors>(s, copy, r, g, t, index);
  if constexpr (E > 1) RankHeads<F, E / 2>(s, copy, r, g, index);
}

// One page after the other, so that a page's logits are finished in registers.
template <KeyCopy F>
static void RankPages(const SparqWork& s, int r) {
  const int tokens = s.a.row.page.tokens, own = int(s.a.row.position) / tokens * tokens - s.base;
  for (int index = 0; index < own; index += tokens)
    RankHeads<F, kRankHeads>(s, s.a.row.records[(s.base + index) / tokens] + s.a.k_copy, r, 0, index);
}

// The open page on its raw rows.
static void RankRaw(const SparqWork& s, int r) {
  const SelectRow& row = s.a.row;
  const int dim = row.page.head_dim, own = int(row.position) / row.page.tokens * row.page.tokens;
  const int n = int(row.position) - own + 1;
  const float* k = OpenRows(row.tail, RawTypeOf(row.k_codec), row.page, row.k_raw, 0, n, s.w.tile);
  for (int g = 0; g < row.group; ++g)
    for (int t = 0; t < n; ++t) {
      float sum = 0;
      for (int i = 0; i < r; ++i) sum += s.w.query[g * dim + i] * k[t * dim + s.w.channels[i]];
      s.w.approx[int64_t{g} * s.w.capacity + (own - s.base) + t] = sum;
    }
}

// Approximate weights of all tokens in w.approx, and in w.keys the order in which tokens are taken.
static void RankAll(const SparqWork& s, int r) {
  const SparqParams& p = s.a.sparq;
  const SelectWork& w = s.w;
  ChooseQueries(s, r);
  if (p.copy == KeyCopy::kF16) RankPages<KeyCopy::kF16>(s, r);
  if (p.copy == KeyCopy::kInt8) RankPages<KeyCopy::kInt8>(s, r);
  if (p.copy == KeyCopy::kInt4) RankPages<KeyCopy::kInt4>(s, r);
  RankRaw(s, r);
  float* score = w.weights;  // not needed before the list is made
  for (int i = 0; i < s.count; ++i) score[i] = 0;
  for (int g = 0; g < s.a.row.group; ++g) {
    float* x = w.approx + int64_t{g} * w.capacity;
    for (int i = 0; i < s.hidden; ++i) x[i] = -__builtin_inff();
    if (p.rank_logits)
      for (int i = 0; i < s.count; ++i) score[i] += x[i];
    SoftmaxInPlace(x, s.count);
    if (!p.rank_logits)
      for (int i = 0; i < s.count; ++i) score[i] += x[i];
  }
  for (int i = 0; i < s.count; ++i) w.keys[i] = OrderKey(score[i]);
  const int local = p.local < 0 ? p.k / 4 : p.local;
  for (int i = s.count - local > 0 ? s.count - local : 0; i < s.count; ++i) w.keys[i] = kForcedKey;
  for (int i = 0; i + s.base < p.sinks && i < s.count; ++i) w.keys[i] = kForcedKey;
  for (int i = 0; i < s.hidden; ++i) w.keys[i] = kNeverKey;
}
