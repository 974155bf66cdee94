// SPDX-License-Identifier: Apache-2.0
// Floor 4. Q K^T of a sealed page in INT8 or INT4 (SageAttention, arXiv 2411.10958, section 3). With c =
// k_mean and m = q_mean, all exact but the first product:
//   q . k = (q - m) . (k - c) + m . (k - c) + q . c
// q - m is quantized per row, k - c per page or in four groups of its tokens. A page of INT8 codes (FlashQ)
// from which nothing is taken off gives the codes themselves. Sums of the codes are integers: what they give
// is the same on every ISA.

// What a sealed page becomes, inside AttentionArgs::scratch.
struct SealedTile {
  int8_t* q;          // [entries, head_dim]
  uint8_t* k;         // [tokens / 16, head_dim / 4, 16, 4] of StoreWeights4
  float* k_scale;     // [tokens]
  float* mean_score;  // [group, tokens] scale * m . (k - c), 0 without m
  float* row;         // [head_dim] one row at work
  uint8_t* v;         // [ceil(head_dim / 16), tokens / 4, 16, 4] of StoreWeights4
  int8_t* p;          // [entries, tokens]
  float* v_scale;     // [head_dim]
};

static NIBBLE_HD SealedTile SealedTileOf(const AttentionWork& w) {
  const int tokens = w.a.page.tokens, head_dim = w.a.page.head_dim, padded = (head_dim + 15) / 16 * 16;
  float* p = w.more + int64_t{AttentionWork::kMoreStates} * w.entries;
  const auto take = [&p](int64_t floats) { return TakeAligned(p, floats); };
  SealedTile s;
  s.q = reinterpret_cast<int8_t*>(take(int64_t{w.entries} * head_dim / 4));
  s.p = reinterpret_cast<int8_t*>(take(int64_t{w.entries} * tokens / 4));
  s.k = reinterpret_cast<uint8_t*>(take(int64_t{tokens} * head_dim / 4));
  s.v = reinterpret_cast<uint8_t*>(take(int64_t{tokens} * padded / 4));
  s.k_scale = take(tokens);
  s.mean_score = take(int64_t{w.a.group} * tokens);
  s.row = take(head_dim);
  s.v_scale = take(padded);
  return s;
}

// Codes of one row, and their sum.
static NIBBLE_HD int32_t RowCodes(const float* x, int8_t* q, int count, float inverse) {
  if (inverse > 0) return QuantizeGroup(x, q, count, inverse);
  __builtin_memset(q, 0, size_t(count));
  return 0;
}

static NIBBLE_HD void Subtract(const float* x, const float* mean, float* y, int count) {
  for (int i = 0; i < count; ++i) y[i] = x[i] - mean[i];
}

static float Dot(const float* x, const float* y, int count) {
  Vec16 sum = Vec16::Zero();
  for (int i = 0; i < count; i += 16) {
    const int n = PartOf16(count - i);
    sum = Vec16::Fma(Vec16::LoadPart(x + i, n), Vec16::LoadPart(y + i, n), sum);
  }
  return sum.Sum();
}

static NIBBLE_HD float LevelsOf(QkArith qk) { return qk == QkArith::kInt4Thread ? 7.0f : 127.0f; }

static void QuantizeQueries(const AttentionWork& w, const SealedTile& s) {
  const int head_dim = w.a.page.head_dim;
  for (int e = 0; e < w.entries; ++e) {
    const float* q = w.Query(e);
    w.More(kQueryBias)[e] = w.a.k_mean != nullptr ? w.a.scale * Dot(q, w.a.k_mean, head_dim) : 0;
    if (w.a.q_mean != nullptr) {
      Subtract(q, w.a.q_mean + e % w.a.group * head_dim, s.row, head_dim);
      q = s.row;
    }
    const CodeScale c = ScaleOf(AbsMaxBits(q, head_dim), LevelsOf(w.a.arithmetic.qk));
    const int32_t sum = RowCodes(q, s.q + int64_t{e} * head_dim, head_dim, c.inverse);
    w.More(kQueryScale)[e] = c.scale * w.a.scale;
    w.More(kQueryOffset)[e] = float(kS8Offset * sum);  // exact: |sum| <= 256 * 127
  }
}

// The scale of a page whose INT8 codes are taken as they are.
static bool PageCodeScale(kv::CodecId codec, kv::PageShape shape, const std::byte* page, CodeScale* c) {
  bool has = false;
  Visit(kv::Codecs{}, codec, [&]<class C>() {
    if constexpr (kv::HasInt8Codes<C>) {
      const float scale = kv::Int8Scale<C>(shape, page);
      *c = {scale, scale > 1.2e-38f ? 1.0f / scale : 0.0f};
      has = true;
    }
  });
  return has;
}

static NIBBLE_HD int KeyGroup(QkArith qk, int t) { return qk == QkArith::kInt8Block ? 0 : t % 8 / 2; }

// Scales of the four groups of tokens of a page; per page, group 0 holds all.
static void KeyScales(QkArith qk, kv::PageShape page, const float* k, CodeScale (&scales)[4]) {
  int32_t amax[4] = {};
  for (int t = 0; t < page.tokens; ++t) {
    const int32_t bits = AbsMaxBits(k + t * page.head_dim, page.head_dim);
    int32_t& group = amax[KeyGroup(qk, t)];
    group = bits > group ? bits : group;
  }
  for (int g = 0; g < 4; ++g) scales[g] = ScaleOf(amax[g], LevelsOf(qk));
}

// What LoadS8 does to bytes, once for all entries.
static NIBBLE_HD void StoreS8(std::byte* bytes, int count) {
  if constexpr (kS8Offset == 0) return;  // it does nothing
  for (int i = 0; i < count; i += 64) StoreWeights4(LoadS8(bytes + i), reinterpret_cast<uint8_t*>(bytes + i));
}

static void PackKeys(const AttentionWork& w, const SealedTile& s, const float* k,
                     const CodeScale (&scales)[4]) {
  const int head_dim = w.a.page.head_dim, whole = head_dim / 16 * 16;
  int8_t* codes = reinterpret_cast<int8_t*>(s.v);  // [tokens, head_dim]; nothing of V is packed yet
  for (int t = 0; t < w.a.page.tokens; ++t) {
    const CodeScale& c = scales[KeyGroup(w.a.arithmetic.qk, t)];
    RowCodes(k + t * head_dim, codes + t * head_dim, head_dim, c.inverse);
    s.k_scale[t] = c.scale;
  }
  for (int t = 0; t < w.a.page.tokens; t += 16) {
    const int8_t* from = codes + t * head_dim;
    std::byte* to = reinterpret_cast<std::byte*>(s.k) + t * head_dim;
    for (int d = 0; d < whole; d += 16) Vec16::Transpose<uint32_t>(from + d, head_dim, to + 16 * d, 64);
    for (int d = whole; d < head_dim; d += 4)
      for (int i = 0; i < 16; ++i) __builtin_memcpy(to + 16 * d + 4 * i, from + i * head_dim + d, 4);
    StoreS8(to, 16 * head_dim);
  }
}

// Scores of the mean queries, in f32 as any query's.
static void ScoreMeans(const AttentionWork& w, const SealedTile& s, const float* k) {
  if (w.a.q_mean == nullptr) return;
  AttentionArgs a = w.a;
  a.q = w.a.q_mean;
  a.rows = 1;
  a.position = a.page.tokens;  // sees the whole tile at 0
  a.window = 0;
  const AttentionWork means{.a = a, .scores = s.mean_score, .entries = a.group, .columns = w.columns};
  Scores(means, FloatRows(k), 0);
}

// `tile` is k or a tile that may be written over.
static void QuantizeKeys(const AttentionWork& w, const SealedTile& s, const std::byte* page, const float* k,
                         float* tile) {
  const QkArith qk = w.a.arithmetic.qk;
  const int head_dim = w.a.page.head_dim;
  CodeScale scales[4];
  if (w.a.k_mean != nullptr) {
    for (int t = 0; t < w.a.page.tokens; ++t)
      Subtract(k + t * head_dim, w.a.k_mean, tile + t * head_dim, head_dim);
    k = tile;
  }
  if (w.a.k_mean == nullptr && qk != QkArith::kInt4Thread &&
      PageCodeScale(w.a.k_codec, w.a.page, page, &scales[0])) {
    scales[1] = scales[2] = scales[3] = scales[0];
  } else {
    KeyScales(qk, w.a.page, k, scales);
  }
  PackKeys(w, s, k, scales);
  ScoreMeans(w, s, k);
}

// scores[e .. e+E) of the 16P tokens from t. Not inlined: among other code the compiler keeps the sums in
// memory.
template <int E, int P>
static __attribute__((noinline)) void IntegerScores16(const AttentionWork& w, const SealedTile& s, int e,
                                                      int t) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  const uint8_t* k = s.k + t * head_dim;
  const int8_t* q = s.q + int64_t{e} * head_dim;
  DotS8 acc[P][E];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int i = 0; i < E; ++i) acc[p][i] = DotS8::Zero();
  for (int d = 0; d < head_dim; d += 4) {
    Weights4 kd[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) kd[p] = LoadStoredS8(k + p * 16 * head_dim + d * 16);
    Step(kd, q + d, head_dim, acc);
  }
  const float* means[E];  // of the query heads
  for (int i = 0, g = e % w.a.group; i < E; ++i, g = g + 1 < w.a.group ? g + 1 : 0)
    means[i] = s.mean_score + g * tokens + t;
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const Vec16 k_scale = Vec16::Load(s.k_scale + t + 16 * p);
#pragma GCC unroll 4
    for (int i = 0; i < E; ++i) {
      acc[p][i].Flush();
      const Vec16 sum = Vec16::Sub(ToFloat(acc[p][i].sum), Vec16::Set1(w.More(kQueryOffset)[e + i]));
      const Vec16 factor = Vec16::Mul(k_scale, Vec16::Set1(w.More(kQueryScale)[e + i]));
      const Vec16 mean = Vec16::Load(means[i] + 16 * p);
      const Vec16 rest = Vec16::Add(mean, Vec16::Set1(w.More(kQueryBias)[e + i]));
      Vec16::Fma(sum, factor, rest).Store(w.scores + (e + i) * tokens + t + 16 * p);
    }
  }
}

// Panels of sums that E entries have at once; a page has four.
template <int E>
static constexpr int kIntegerPanels = kAttentionVectors / E < 4 ? kAttentionVectors / E : 4;

template <int E>
static NIBBLE_HD void IntegerScores(const AttentionWork& w, const SealedTile& s, int64_t start, int e) {
  constexpr int kP = E == 1 ? kRowPanels : kIntegerPanels<E>;
  for (; e + E <= w.entries; e += E) {
    const int begin = w.Range(e, start).begin, end = w.Range(e + E - 1, start).end;
    for (int t = begin / (16 * kP) * (16 * kP); t < end; t += 16 * kP) IntegerScores16<E, kP>(w, s, e, t);
  }
  if constexpr (E > 1) IntegerScores<E / 2>(w, s, start, e);
}
