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

// A page of keys with the chosen channels and their scales, and what the codes lack of them.
template <KeyCopy F>
struct RankPage {
  const std::byte *copy, *next;  // `next`: the copy that comes after, which is asked for meanwhile
  float scale[2][kv::kMaxHeadDim], bias[2][kv::kMaxHeadDim];  // [tokens / 32, r]
};

template <KeyCopy F>
static NIBBLE_HD void LoadScales(const SparqWork& s, int r, RankPage<F>& page) {
  if constexpr (F == KeyCopy::kF16) return;
  const Vec16 per_code = Vec16::Set1(float(-KeyCopyBias(F)));
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < r; i += 16) {
      uint16_t stored[16] = {};
      const std::byte* from = page.copy + KeyCopyScaleOffset(F, s.a.row.page) + 2 * half;
      for (int j = 0; j < 16 && i + j < r; ++j) stored[j] = kv::LoadU16(from + 4 * s.w.channels[i + j]);
      __builtin_prefetch(page.next + (from - page.copy) + 4 * i);
      const Vec16 scale = Vec16::LoadF16(stored);
      scale.Store(page.scale[half] + i);
      Vec16::Mul(scale, per_code).Store(page.bias[half] + i);
    }
}

// Adds channel number i of vectors kVector .. kVector + T of a page.
template <KeyCopy F, int kVector, int kAt, int E, int T>
static NIBBLE_HD void AddChannel(const RankPage<F>& page, const std::byte* channel, int i,
                                 const Vec16 (&q)[E], Vec16 (&sum)[E][T]) {
  constexpr int kHalf = (kVector + kAt) / 2;
  Vec16 scale{}, bias{};
  if constexpr (F != KeyCopy::kF16) {
    scale = Vec16::Set1(page.scale[kHalf][i]);
    bias = Vec16::Set1(page.bias[kHalf][i]);
  }
  const Vec16 k = LoadKeys<F, kVector + kAt>(channel, scale, bias);
  for (int e = 0; e < E; ++e) sum[e][kAt] = Vec16::Fma(q[e], k, sum[e][kAt]);
  if constexpr (kAt + 1 < T) AddChannel<F, kVector, kAt + 1>(page, channel, i, q, sum);
}

// Approximate logits of T vectors of a sealed page for E heads: r rows of the copy are streamed, channels in
// the order of w.channels.
template <KeyCopy F, int kVector, int E, int T>
static void RankTokens(const SparqWork& s, const RankPage<F>& page, int r, int g, int index) {
  const kv::PageShape shape = s.a.row.page;
  const int bytes = shape.tokens * (F == KeyCopy::kF16 ? 4 : F == KeyCopy::kInt8 ? 2 : 1) / 2;
  Vec16 sum[E][T];
  for (int e = 0; e < E; ++e)
    for (int j = 0; j < T; ++j) sum[e][j] = Vec16::Zero();
  for (int i = 0; i < r; ++i) {
    Vec16 q[E];
    for (int e = 0; e < E; ++e) q[e] = Vec16::Set1(s.w.query[(g + e) * shape.head_dim + i]);
    if (g == 0 && kVector == 0)
      for (int line = 0; line < bytes; line += 64)
        __builtin_prefetch(page.next + s.w.channels[i] * bytes + line);
    AddChannel<F, kVector, 0>(page, page.copy + s.w.channels[i] * bytes, i, q, sum);
  }
  for (int e = 0; e < E; ++e) {
    if constexpr (F == KeyCopy::kInt4)
      for (int j = 0; j < T; j += 2) Vec16::Interleave(sum[e][j], sum[e][j + 1]);
    for (int j = 0; j < T; ++j)
      sum[e][j].Store(s.w.approx + int64_t{g + e} * s.w.capacity + index + 16 * (kVector + j));
  }
  if constexpr (kVector + T < 4) RankTokens<F, kVector + T, E, T>(s, page, r, g, index);
}

static constexpr int kRankVectors = kAccumulators >= 16 ? 4 : 2;
static constexpr int kRankHeads = kAccumulators >= 16 ? 4 : kAccumulators >= 4 ? 2 : 1;

template <KeyCopy F, int E>
static NIBBLE_HD void RankHeads(const SparqWork& s, const RankPage<F>& page, int r, int g, int index) {
  for (; g + E <= s.a.row.group; g += E) RankTokens<F, 0, E, kRankVectors>(s, page, r, g, index);
  if constexpr (E > 1) RankHeads<F, E / 2>(s, page, r, g, index);
}

// One page after the other, so that a page's logits are finished in registers.
template <KeyCopy F>
static void RankPages(const SparqWork& s, int r) {
  const int tokens = s.a.row.page.tokens, own = int(s.a.row.position) / tokens * tokens - s.base;
  RankPage<F> page;
  for (int index = 0; index < own; index += tokens) {
    const int at = (s.base + index) / tokens, next = index + tokens < own ? at + 1 : at;
    page.copy = s.a.row.records[at] + s.a.k_copy;
    page.next = s.a.row.records[next] + s.a.k_copy;
    LoadScales<F>(s, r, page);
    RankHeads<F, kRankHeads>(s, page, r, 0, index);
  }
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
