// SPDX-License-Identifier: Apache-2.0
// Floor 4. Tiles of unsigned codes of 8, 4 or 2 bits. Codes meet queries and weights that are rounded to 16
// bits, so every sum over channels or tokens is an integer: exact, in any order, the same on every ISA
// (docs/decisions/0017-codes-meet-integers.md). What makes codes values is applied to the sums:
//   token:   q . k = scale[t] * (q . (code - c)) + (min[t] + c scale[t]) * sum(q)
//            sum p v = (p scale) . code + p . min
//   channel: q . k = page_scale * ((q * step) . (code - c) + q . (base + c step))
//            sum p v = page_scale * (step[d] * (p . code) + base[d] * sum(p))
// No sum leaves int32: 255 * 32767 * 256 channels < 2^31. The middle code c is taken off after summing, which
// is exact, too: what the rounding of a query costs grows with the codes it meets.

static constexpr float kQueryLevels = 32767;

template <Elements kX>
static constexpr int kMiddleCode = 1 << (kElementBits<kX> - 1);

// Codes number i and i + kPairs of a word of 32 bits are a pair of s16 that one multiply-add takes; so are
// code i of two words of 16 bits beside each other.
template <Elements kX>
static constexpr int kPairs = 16 / kElementBits<kX>;
template <Elements kX, int kIndex>
static NIBBLE_HD I32x16 PairsOf(const I32x16& words) {
  return words.CodePairs<kElementBits<kX>, kIndex>();
}

// ---- scores: lanes are tokens, a column holds 32 bits of codes of every token ----

struct CodeKeys {
  const std::byte* columns;  // [head_dim / codes of a word, tokens] words
  int16_t* queries;          // [entries, head_dim] in the order of the pairs
  float scale[kv::kPageTokens],
      offset[kv::kPageTokens];  // score = sum * scale * kKeyScale + kKeyOffset * offset
};

template <Elements kX>
static void MakeCodeColumns(const AttentionWork& w, const PageRows& k, std::byte* to) {
  const kv::PageShape s = w.a.page;
  const int row_bytes = s.head_dim * kElementBits<kX> / 8, column_bytes = s.tokens * 4;
  LinesAhead ahead = w.Ahead(w.k_ahead);
  for (int t = 0; t < s.tokens; t += 16)
    for (int i = 0; i < row_bytes; i += 16) {
      Vec16::template Transpose<uint32_t>(k.rows + t * row_bytes + i, row_bytes,
                                          to + i / 4 * column_bytes + t * 4, column_bytes);
      ahead.Ask<2>();
    }
  AttentionWork::Keep(w.k_ahead, ahead);
}

// Codes of one query row whose products with the channels' steps are `x`; their scale goes to kKeyScale,
// their sum times the middle code to kKeyCentre, as an integer.
template <Elements kX>
static void QuantizeQuery(const AttentionWork& w, int e, const float* x, int16_t* codes) {
  const int head_dim = w.a.page.head_dim;
  const CodeScale c = ScaleOf(AbsMaxBits(x, head_dim), kQueryLevels);
  w.More(kKeyScale)[e] = c.scale;
  int32_t sum = 0;
  for (int d = 0; d < head_dim; d += 16) {
    Vec16::Mul(Vec16::Load(x + d), Vec16::Set1(c.inverse)).template StoreS16<kElementBits<kX>>(codes + d);
    for (int i = 0; i < 16; ++i) sum += codes[d + i];
  }
  sum *= kMiddleCode<kX>;
  __builtin_memcpy(w.More(kKeyCentre) + e, &sum, 4);
}

// Queries as codes, and by entry the sum that meets the offsets of tokens or channels.
template <Elements kX>
static void PrepareCodeQueries(const AttentionWork& w, const PageRows& k, int16_t* codes) {
  const int head_dim = w.a.page.head_dim;
  for (int e = 0; e < w.entries; ++e) {
    const float* q = w.Query(e);
    float x[kv::kMaxHeadDim];
    Vec16 sum = Vec16::Zero();
    for (int d = 0; d < head_dim; d += 16) {
      const Vec16 v = Vec16::Load(q + d);
      if (k.affine == Affine::kToken) {
        sum = Vec16::Add(sum, v);
        v.Store(x + d);
      } else {
        const Channels16 c = LoadChannels(k, d);
        sum = Vec16::Fma(v, Vec16::Fma(c.step, Vec16::Set1(kMiddleCode<kX>), c.base), sum);
        Vec16::Mul(v, c.step).Store(x + d);
      }
    }
    w.More(kKeyOffset)[e] = sum.Sum();
    QuantizeQuery<kX>(w, e, x, codes + int64_t{e} * head_dim);
  }
}

// `prepared`: w.queries are those of the page before, whose parameters by token do not concern them.
template <Elements kX>
static CodeKeys MakeCodeKeys(const AttentionWork& w, const PageRows& k, bool prepared) {
  CodeKeys keys;
  std::byte* columns = reinterpret_cast<std::byte*>(w.columns);
  MakeCodeColumns<kX>(w, k, columns);
  keys.columns = columns;
  keys.queries = reinterpret_cast<int16_t*>(w.queries);
  if (!prepared || k.affine == Affine::kChannel) PrepareCodeQueries<kX>(w, k, keys.queries);
  for (int t = 0; t < w.a.page.tokens; t += 16) {
    Vec16 scale = Vec16::Set1(w.a.scale), offset = scale;
    if (k.affine == Affine::kToken) {
      const Vec16 step = Vec16::LoadF16(k.scale + 2 * t), min = Vec16::LoadF16(k.offset + 2 * t);
      offset = Vec16::Mul(Vec16::Fma(step, Vec16::Set1(kMiddleCode<kX>), min), scale);
      scale = Vec16::Mul(step, scale);
    } else {
      offset = scale = Vec16::Set1(w.a.scale * k.page_scale);
    }
    scale.Store(keys.scale + t);
    offset.Store(keys.offset + t);
  }
  return keys;
}

// Adds the products of one column's pairs from number kIndex on; `q` is at the column's first.
template <Elements kX, int kIndex, int E, int T>
static NIBBLE_HD void AddPairs(const int16_t* q, int head_dim, const I32x16 (&words)[T],
                               I32x16 (&sum)[E][T]) {
  I32x16 k[T];
#pragma GCC unroll 4
  for (int j = 0; j < T; ++j) k[j] = PairsOf<kX, kIndex>(words[j]);
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    int32_t pair;
    __builtin_memcpy(&pair, q + i * head_dim + 2 * kIndex, 4);
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) sum[i][j].AddDotPairs(k[j], pair);
  }
  if constexpr (kIndex + 1 < kPairs<kX>) AddPairs<kX, kIndex + 1>(q, head_dim, words, sum);
}

// scores[e .. e+E) of the 16 T tokens from t.
template <Elements kX, int E, int T>
static void CodeScores16(const AttentionWork& w, const CodeKeys& k, int e, int t) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens, words = head_dim / (2 * kPairs<kX>);
  I32x16 sum[E][T];
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) sum[i][j] = I32x16::Zero();
  const int16_t* q = k.queries + int64_t{e} * head_dim;
  const std::byte* column = k.columns + t * 4;
  LinesAhead ahead = w.Ahead(w.k_ahead);
  for (int word = 0; word < words; ++word, column += tokens * 4, q += 2 * kPairs<kX>) {
    I32x16 x[T];
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) x[j] = I32x16::Load(reinterpret_cast<const int32_t*>(column + 64 * j));
    AddPairs<kX, 0>(q, head_dim, x, sum);
    ahead.Ask<T == 4 ? 3 : 1>();
  }
  AttentionWork::Keep(w.k_ahead, ahead);
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    const Vec16 factor = Vec16::Set1(w.More(kKeyScale)[e + i]), rest = Vec16::Set1(w.More(kKeyOffset)[e + i]);
    int32_t centre;
    __builtin_memcpy(&centre, w.More(kKeyCentre) + e + i, 4);
#pragma GCC unroll 4
    for (int j = 0; j < T; ++j) {
      const Vec16 scale = Vec16::Mul(Vec16::Load(k.scale + t + 16 * j), factor);
      const Vec16 offset = Vec16::Mul(Vec16::Load(k.offset + t + 16 * j), rest);
      Vec16::Fma(ToFloat(I32x16::Sub(sum[i][j], I32x16::Set1(centre))), scale, offset)
          .Store(w.scores + (e + i) * tokens + t + 16 * j);
    }
  }
}

template <Elements kX>
static void CodeScores(const AttentionWork& w, const PageRows& k, int64_t start, bool prepared) {
  const CodeKeys keys = MakeCodeKeys<kX>(w, k, prepared);
  ForScoreTiles<kAttentionEntries>(
      w, start, 0, [&]<int E, int T>(int e, int t) { CodeScores16<kX, E, T>(w, keys, e, t); });
}

// ---- values: lanes are words of 16 bits of a row, pairs are tokens t and t + 1 ----

// What a page's values need by token.
struct TokenParams {
  float scale[kv::kPageTokens], min[kv::kPageTokens];
};
static NIBBLE_HD TokenParams LoadTokenParams(const PageRows& v) {
  TokenParams p;
  for (int t = 0; t < kv::kPageTokens; t += 16) {
    Vec16::LoadF16(v.scale + 2 * t).Store(p.scale + t);
    Vec16::LoadF16(v.offset + 2 * t).Store(p.min + t);
  }
  return p;
}

// The weights of E entries, times the tokens' scales where there are some, become codes in the place of their
// scores; a token that is not seen gets 0. Their factor is a power of two: what one token alone gives stays
// exact. What the weights meet beside the codes goes to kValueOffset: with scales by token the minima,
// else 1. kWhole: all tokens are seen.
template <Affine kAffine, int E, bool kWhole>
static NIBBLE_HD void QuantizeTileWeights(const AttentionWork& w, const TokenParams& v, int e,
                                          TokenRange range) {
  constexpr int kVectors = kv::kPageTokens / 16;
  float* p = w.scores + e * kv::kPageTokens;
  const Vec16 begin = Vec16::Set1(float(range.begin)), end = Vec16::Set1(float(range.end)),
              zero = Vec16::Zero();
  const auto seen = [&](int t, Vec16 x) {  // what is not seen may be NaN
    if constexpr (kWhole) return x;
    const Vec16 token = Vec16::Add(Vec16::Lanes(), Vec16::Set1(float(t)));
    return Vec16::IfLess(token, begin, zero, Vec16::IfLess(token, end, x, zero));
  };
  Vec16 x[E][kVectors], sum[E], greatest[E];
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    sum[i] = greatest[i] = zero;
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const int t = 16 * j;
      x[i][j] = seen(t, Vec16::Load(p + kv::kPageTokens * i + t));
      if constexpr (kAffine == Affine::kToken) {
        sum[i] = Vec16::Fma(x[i][j], seen(t, Vec16::Load(v.min + t)), sum[i]);
        x[i][j] = Vec16::Mul(x[i][j], seen(t, Vec16::Load(v.scale + t)));
      } else {
        sum[i] = Vec16::Add(sum[i], x[i][j]);
      }
      greatest[i] = Vec16::MaxAbsBits(greatest[i], x[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    const CodeScale c = Pow2ScaleOf(greatest[i].MaxLaneBits());
    int16_t* codes = reinterpret_cast<int16_t*>(p + kv::kPageTokens * i);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      Vec16::Mul(x[i][j], Vec16::Set1(c.inverse)).template StoreS16<16>(codes + 16 * j);
    w.More(kValueOffset)[e + i] = sum[i].Sum();
    w.More(kValueScale)[e + i] = c.scale;
  }
}

template <Affine kAffine>
static void QuantizeAllTileWeights(const AttentionWork& w, const TokenParams& v, int64_t start) {
  constexpr int kE = kAttentionVectors >= 16 ? kAttentionEntries : 1;  // whose vectors stay in registers
  for (int e = 0; e < w.entries;) {
    const TokenRange range = w.Range(e, start);
    if (e + kE <= w.entries && SeeWholeTile(w, e, kE, start)) {
      QuantizeTileWeights<kAffine, kE, true>(w, v, e, range);
      e += kE;
      continue;
    }
    if (range.begin < range.end) QuantizeTileWeights<kAffine, 1, false>(w, v, e, range);
    ++e;
  }
}

// The channels of a page, in w.part.
static NIBBLE_HD void PrepareChannels(const AttentionWork& w, const PageRows& v) {
  const int head_dim = w.a.page.head_dim;
  for (int d = 0; d < head_dim; d += 16) {
    const Channels16 c = LoadChannels(v, d);
    c.step.Store(w.part + d);
    c.base.Store(w.part + head_dim + d);
  }
}

// sum[E][I] += weights of the tokens t and t + 1, times codes number kIndex .. kIndex + I of their words.
template <Elements kX, int kIndex, int I, int N, int E>
static NIBBLE_HD void WeighPairs(const int32_t (&pair)[E], const I32x16& words, I32x16 (&sum)[E][N]) {
  const I32x16 v = PairsOf<kX, kIndex + I>(words);
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) sum[i][I].AddDotPairs(v, pair[i]);
  if constexpr (I + 1 < N) WeighPairs<kX, kIndex, I + 1>(pair, words, sum);
}

// part[..][number of the code] of kWords words of every row: sums over the tokens [begin, end), pairs of
// them.
template <Elements kX, int kWords, int kIndex, int E>
static NIBBLE_HD void CodeSums(const AttentionWork& w, const std::byte* rows, int row_bytes, int e,
                               TokenRange range, float (&part)[E][kPairs<kX>][16]) {
  constexpr int kMost = kAttentionVectors / E > 0 ? kAttentionVectors / E : 1;
  constexpr int kAtOnce = kMost < kPairs<kX> ? kMost : kPairs<kX>;
  const int16_t* p = reinterpret_cast<const int16_t*>(w.scores + e * w.a.page.tokens);
  I32x16 sum[E][kAtOnce];
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kAtOnce; ++j) sum[i][j] = I32x16::Zero();
  LinesAhead ahead = w.Ahead(w.v_ahead);
  for (int t = range.begin / 2 * 2; t < range.end; t += 2) {
    const std::byte* row = rows + t * row_bytes;
    int32_t pair[E];
#pragma GCC unroll 4
    for (int i = 0; i < E; ++i) __builtin_memcpy(&pair[i], p + 2 * i * w.a.page.tokens + t, 4);
    WeighPairs<kX, kIndex, 0>(pair, I32x16::InterleaveWords<kWords>(row, row + row_bytes), sum);
    ahead.Ask<1>();
  }
  AttentionWork::Keep(w.v_ahead, ahead);
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kAtOnce; ++j)
      Vec16::Mul(ToFloat(sum[i][j]), Vec16::Set1(w.More(kValueScale)[e + i])).Store(part[i][kIndex + j]);
  if constexpr (kIndex + kAtOnce < kPairs<kX>)
    CodeSums<kX, kWords, kIndex + kAtOnce>(w, rows, row_bytes, e, range, part);
}

// Vectors of every n-th channel, in the order of the channels.
template <int N>
static NIBBLE_HD void OrderVectors(Vec16* x) {
  if constexpr (N > 1) {
#pragma GCC unroll 4
    for (int i = 0; i < N / 2; ++i) Vec16::Interleave(x[i], x[i + N / 2]);
    OrderVectors<N / 2>(x);
    OrderVectors<N / 2>(x + N / 2);
  }
}

// acc = acc * fix + the sums of kWords words as values, of the channels from d on.
template <Elements kX, Affine kAffine, int kWords>
static NIBBLE_HD void FinishCodes(const AttentionWork& w, float page_scale, int e,
                                  const float (&part)[kPairs<kX>][16], int d) {
  constexpr int kVectors = kPairs<kX> * kWords / 16;
  const int head_dim = w.a.page.head_dim;
  Vec16 x[kPairs<kX>];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs<kX>; ++i) x[i] = Vec16::Load(part[i]);
  OrderVectors<kPairs<kX>>(x);
  const Vec16 offset = Vec16::Set1(w.More(kValueOffset)[e]), fix = Vec16::Set1(w.fix[e]);
  float* acc = w.acc + int64_t{e} * head_dim + d;
  const float *step = w.part + d, *base = step + head_dim;
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    if constexpr (kAffine == Affine::kToken) {
      x[i] = Vec16::Add(x[i], offset);
    } else {  // the page's scale last: of one token alone the rest is an integer, and the value Decode8's
      const Vec16 sum =
          Vec16::Fma(x[i], Vec16::Load(step + 16 * i), Vec16::Mul(offset, Vec16::Load(base + 16 * i)));
      x[i] = Vec16::Mul(sum, Vec16::Set1(page_scale));
    }
    Vec16::Fma(Vec16::Load(acc + 16 * i), fix, x[i]).Store(acc + 16 * i);
  }
}

template <Elements kX, Affine kAffine, int E, int kWords>
static void CodeValues16(const AttentionWork& w, const PageRows& v, int64_t start, int e, TokenRange range,
                         int word) {
  const int row_bytes = w.a.page.head_dim * kElementBits<kX> / 8;
  const float page_scale = v.page_scale;
  float part[E][kPairs<kX>][16];
  CodeSums<kX, kWords, 0>(w, v.rows + 2 * word, row_bytes, e, range, part);
  for (int i = 0; i < E; ++i) {
    const TokenRange own = w.Range(e + i, start);
    if (own.begin < own.end)
      FinishCodes<kX, kAffine, kWords>(w, page_scale, e + i, part[i], word * kPairs<kX>);
  }
}

// Blocks of entries see the tokens from their first entry's begin to their last one's end.
template <Elements kX, Affine kAffine, int E>
static NIBBLE_HD void CodeValueEntries(const AttentionWork& w, const PageRows& v, int64_t start, int e) {
  const int words = w.a.page.head_dim / kPairs<kX>;
  for (; e + E <= w.entries; e += E) {
    const TokenRange range{w.Range(e, start).begin, w.Range(e + E - 1, start).end};
    if (range.begin >= range.end) continue;
    int word = 0;
    for (; word + 16 <= words; word += 16) CodeValues16<kX, kAffine, E, 16>(w, v, start, e, range, word);
    if (word < words) CodeValues16<kX, kAffine, E, 8>(w, v, start, e, range, word);
  }
  if constexpr (E > 1) CodeValueEntries<kX, kAffine, E / 2>(w, v, start, e);
}

template <Elements kX, Affine kAffine>
static void CodeValues(const AttentionWork& w, const PageRows& v, int64_t start) {
  TokenParams tokens;
  if constexpr (kAffine == Affine::kToken) {
    tokens = LoadTokenParams(v);
  } else {
    PrepareChannels(w, v);
  }
  QuantizeAllTileWeights<kAffine>(w, tokens, start);
  CodeValueEntries<kX, kAffine, kAttentionEntries>(w, v, start, 0);
}
