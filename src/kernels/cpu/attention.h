// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention tile by tile with an online softmax (Milakov and Gimelshein, arXiv 1805.02867). A tile
// is one page: K and V of `tokens` positions as f32 [tokens, head_dim], decoded once for all queries of the
// call. An entry is one query head at one position. Per entry the order of every sum is fixed: scores over
// lanes of head_dim and then Vec16::Sum, weights over lanes of tokens, outputs over tokens ascending, tiles
// in list order. Blocks of entries only share loads. What a recipe's arithmetic does to sealed pages is in
// attention_sealed.h, SAS in sas.h.

struct TokenRange {  // tokens of a tile that an entry sees
  int begin, end;
};

struct AttentionWork {
  const AttentionArgs& a;
  float* scores;  // [entries, tokens]
  float* acc;     // [entries, head_dim]
  float* max;     // [entries] running maximum of the scores
  float* sum;     // [entries] running sum of the weights
  float* fix;     // [entries] factor that brings acc to the current maximum
  int entries;
  float* more;  // [kMoreStates, entries], of sas.h and attention_sealed.h

  static constexpr int kMoreStates = 29;
  NIBBLE_HD float* More(int state) const { return more + int64_t{state} * entries; }

  NIBBLE_HD const float* Query(int e) const {
    return a.q + e / a.group * a.q_stride + int64_t{e % a.group} * a.page.head_dim;
  }
  NIBBLE_HD TokenRange Range(int e, int64_t start) const {
    const int64_t p = a.position + e / a.group - start;  // relative to the tile
    const int64_t begin = a.window > 0 && p - a.window + 1 > 0 ? p - a.window + 1 : 0;
    const int64_t end = p + 1 < a.page.tokens ? p + 1 : a.page.tokens;
    return {int(begin < end ? begin : end), int(end)};
  }
};

// scores[e .. e+E) of the 16 tokens from t: lane-wise products summed by Vec16::SumEach.
template <int E>
static void Score16(const AttentionWork& w, const float* k_tile, int e, int t) {
  constexpr int kT = Pow2AtMost(kAccumulators / E < 16 ? kAccumulators / E : 16);
  const int head_dim = w.a.page.head_dim, whole = head_dim / 16 * 16;
  const float* q[E];
  for (int i = 0; i < E; ++i) q[i] = w.Query(e + i);
  Vec16 part[E][16];
  for (int j0 = 0; j0 < 16; j0 += kT) {
    const float* k = k_tile + (t + j0) * head_dim;
    Vec16 s[E][kT];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < kT; ++j) s[i][j] = Vec16::Zero();
    for (int d = 0; d < whole; d += 16) {
      Vec16 qd[E];
      for (int i = 0; i < E; ++i) qd[i] = Vec16::Load(q[i] + d);
      for (int j = 0; j < kT; ++j) {
        const Vec16 kd = Vec16::Load(k + j * head_dim + d);
        for (int i = 0; i < E; ++i) s[i][j] = Vec16::Fma(qd[i], kd, s[i][j]);
      }
    }
    if (whole < head_dim) {
      for (int i = 0; i < E; ++i) {
        const Vec16 qd = Vec16::LoadPart(q[i] + whole, 8);
        for (int j = 0; j < kT; ++j)
          s[i][j] = Vec16::Fma(qd, Vec16::LoadPart(k + j * head_dim + whole, 8), s[i][j]);
      }
    }
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < kT; ++j) part[i][j0 + j] = s[i][j];
  }
  const Vec16 scale = Vec16::Set1(w.a.scale);
  for (int i = 0; i < E; ++i)
    Vec16::Mul(Vec16::SumEach(part[i]), scale).Store(w.scores + (e + i) * w.a.page.tokens + t);
}

// Scores of all entries against the tile that starts at position `start`. Ranges grow with the entry, so a
// block needs the tokens from its first entry's begin to its last entry's end.
template <int E>
static NIBBLE_HD void Scores(const AttentionWork& w, const float* k_tile, int64_t start, int e) {
  for (; e + E <= w.entries; e += E) {
    const int begin = w.Range(e, start).begin, end = w.Range(e + E - 1, start).end;
    for (int t = begin / 16 * 16; t < end; t += 16) Score16<E>(w, k_tile, e, t);
  }
  if constexpr (E > 1) Scores<E / 2>(w, k_tile, start, e);
}

// Sets the scores of one entry that lie outside its range to -infinity, as far as blocks of 16 reach, and
// returns the greatest of all that it has seen.
static NIBBLE_HD float MaskScores(const AttentionWork& w, int e, TokenRange range) {
  constexpr float kNone = -__builtin_inff();
  float* s = w.scores + e * w.a.page.tokens;
  Vec16 top = Vec16::Set1(kNone);
  const int first = range.begin / 16 * 16;
  for (int t = first; t < range.end; t += 16) {  // what lies outside the range may be anything, even NaN
    const Vec16 token = Vec16::Add(Vec16::Lanes(), Vec16::Set1(float(t)));
    Vec16 v = Vec16::Load(s + t);
    v = Vec16::IfLess(token, Vec16::Set1(float(range.end)), v, Vec16::Set1(kNone));
    v = Vec16::IfLess(token, Vec16::Set1(float(range.begin)), Vec16::Set1(kNone), v);
    v.Store(s + t);
    top = Vec16::Max(v, top);
  }
  const float tile_max = top.MaxLane();
  return tile_max > w.max[e] ? tile_max : w.max[e];
}

// Turns the scores of one entry into weights relative to the running maximum, which it moves.
static void SoftmaxStep(const AttentionWork& w, int e, TokenRange range) {
  float* s = w.scores + e * w.a.page.tokens;
  const float max = MaskScores(w, e, range);
  Vec16 total = Vec16::Zero();
  for (int t = range.begin / 16 * 16; t < range.end; t += 16) {
    const Vec16 p = Exp(Vec16::Sub(Vec16::Load(s + t), Vec16::Set1(max)));
    p.Store(s + t);
    total = Vec16::Add(total, p);
  }
  Exp(Vec16::Set1(w.max[e] - max)).StorePart(w.fix + e, 1);
  w.sum[e] = w.sum[e] * w.fix[e] + total.Sum();
  w.max[e] = max;
}

struct F32Sum {};  // how WeighValues sums over the tokens of a tile; attention_pv.h has others

// acc[e .. e+E)[d .. d+16D) = acc * fix + weights V over the tokens of the range. `lanes` < 16 only with D
// == 1.
template <int E, int D>
static void WeighValues(F32Sum, const AttentionWork& w, const float* v_tile, int e, TokenRange range, int d,
                        int lanes) {
  const int head_dim = w.a.page.head_dim;
  const bool part = D == 1 && lanes < 16;
  Vec16 s[E][D];
  for (int i = 0; i < E; ++i) {
    const float* acc = w.acc + (e + i) * head_dim + d;
    const Vec16 fix = Vec16::Set1(w.fix[e + i]);
    for (int j = 0; j < D; ++j)
      s[i][j] = Vec16::Mul(part ? Vec16::LoadPart(acc, lanes) : Vec16::Load(acc + 16 * j), fix);
  }
  const float* p = w.scores + e * w.a.page.tokens;
  for (int t = range.begin; t < range.end; ++t) {
    const float* v = v_tile + t * head_dim + d;
    Vec16 vd[D];
    for (int j = 0; j < D; ++j) vd[j] = part ? Vec16::LoadPart(v, lanes) : Vec16::Load(v + 16 * j);
    for (int i = 0; i < E; ++i) {
      const Vec16 weight = Vec16::Set1(p[i * w.a.page.tokens + t]);
      for (int j = 0; j < D; ++j) s[i][j] = Vec16::Fma(weight, vd[j], s[i][j]);
    }
  }
  for (int i = 0; i < E; ++i) {
    float* acc = w.acc + (e + i) * head_dim + d;
    for (int j = 0; j < D; ++j) part ? s[i][j].StorePart(acc, lanes) : s[i][j].Store(acc + 16 * j);
  }
}

// All of head_dim for E entries that see the same tokens.
template <int E, int D, class Sum>
static NIBBLE_HD void ValuesFrom(Sum sum, const AttentionWork& w, const float* v_tile, int e,
                                 TokenRange range, int d) {
  const int head_dim = w.a.page.head_dim;
  for (; d + 16 * D <= head_dim; d += 16 * D) WeighValues<E, D>(sum, w, v_tile, e, range, d, 16);
  if constexpr (D > 1) {
    ValuesFrom<E, D / 2>(sum, w, v_tile, e, range, d);
  } else if (d < head_dim) {
    WeighValues<E, 1>(sum, w, v_tile, e, range, d, head_dim - d);
  }
}

template <int E, class Sum>
static NIBBLE_HD void Values(Sum sum, const AttentionWork& w, const float* v_tile, int64_t start, int e) {
  constexpr int kD = Pow2AtMost(kAccumulators / E < 8 ? kAccumulators / E : 8);
  for (; e + E <= w.entries; e += E) {
    const TokenRange first = w.Range(e, start), last = w.Range(e + E - 1, start);
    if (first.begin == last.begin && first.end == last.end) {
      if (first.begin < first.end) ValuesFrom<E, kD>(sum, w, v_tile, e, first, 0);
      continue;
    }
    for (int i = e; i < e + E; ++i) {
      const TokenRange range = w.Range(i, start);
      if (range.begin < range.end)
        ValuesFrom<1, Pow2AtMost(kAccumulators < 8 ? kAccumulators : 8)>(sum, w, v_tile, i, range, 0);
    }
  }
  if constexpr (E > 1) Values<E / 2>(sum, w, v_tile, start, e);
}

static constexpr int kAttentionEntries = kAccumulators >= 16 ? 4 : 2;  // that share the loads of a tile

static void SasTile(const AttentionWork& w, int64_t start);  // sas.h

static void SoftmaxTile(const AttentionWork& w, int64_t start) {
  if (w.a.arithmetic.softmax != SoftmaxKind::kExact) return SasTile(w, start);
  for (int e = 0; e < w.entries; ++e) {
    const TokenRange range = w.Range(e, start);
    if (range.begin < range.end) SoftmaxStep(w, e, range);
  }
}

static void AttendTile(const AttentionWork& w, const float* k_tile, const float* v_tile, int64_t start) {
  Scores<kAttentionEntries>(w, k_tile, start, 0);
  SoftmaxTile(w, start);
  Values<kAttentionEntries>(F32Sum{}, w, v_tile, start, 0);
}

static void AttentionOutput(const AttentionWork& w) {
  const int head_dim = w.a.page.head_dim;
  for (int e = 0; e < w.entries; ++e) {
    float* out = w.a.out + e / w.a.group * w.a.out_stride + int64_t{e % w.a.group} * head_dim;
    for (int d = 0; d < head_dim; d += 16) {
      const int n = PartOf16(head_dim - d);
      const Vec16 acc = Vec16::LoadPart(w.acc + e * head_dim + d, n);
      Vec16::Div(acc, Vec16::Set1(w.sum[e])).StorePart(out + d, n);
    }
  }
}

static void StartSas(const AttentionWork& w);  // sas.h
static void CountSas(const AttentionWork& w);
static void StartSealed(const AttentionWork& w);  // attention_sealed.h
static void AttendSealed(const AttentionWork& w, const std::byte* k_page, const std::byte* v_page,
                         int64_t start);

// REQUIRES page.tokens a multiple of 16, page.head_dim of 8, and all rows inside one page; page.tokens 64 for
// integer arithmetic.
static void Attention(const AttentionArgs& a) {
  const int tokens = a.page.tokens, head_dim = a.page.head_dim, entries = a.rows * a.group;
  float* k_scratch = a.scratch;
  float* v_scratch = k_scratch + tokens * head_dim;
  float* scores = v_scratch + tokens * head_dim;
  float* acc = scores + entries * tokens;
  float* state = acc + entries * head_dim;
  const AttentionWork w{
      a, scores, acc, state, state + entries, state + 2 * entries, entries, state + 3 * entries};
  for (int i = 0; i < entries * head_dim; ++i) acc[i] = 0;
  for (int e = 0; e < entries; ++e) {
    w.max[e] = -__builtin_inff();
    w.sum[e] = 0;
  }
  const bool is_sas = a.arithmetic.softmax != SoftmaxKind::kExact;
  const bool sealed_as_floats = !IsInteger(a.arithmetic.qk) && IsFloat(a.arithmetic.pv);
  if (is_sas) StartSas(w);
  if (!sealed_as_floats) StartSealed(w);
  const int64_t own = a.position - a.position % tokens;  // position of the raw page
  const int listed = a.page_list != nullptr ? a.list_len : a.pages;
  for (int i = 0; i < listed; ++i) {
    const int page = a.page_list != nullptr ? a.page_list[i] : i;
    const int64_t start = int64_t{page} * tokens;
    if (a.window > 0 && start + tokens <= a.position - a.window + 1) continue;  // out of every row's window
    if (!sealed_as_floats) {
      AttendSealed(w, a.k_pages[page], a.v_pages[page], start);
      continue;
    }
    const float* k = DecodePage(a.k_codec, a.page, a.k_pages[page], k_scratch);
    const float* v = DecodePage(a.v_codec, a.page, a.v_pages[page], v_scratch);
    AttendTile(w, k, v, start);
  }
  const int raw_tokens = int(a.position - own) + a.rows;
  const float* k = OpenRows(a.tail, RawTypeOf(a.k_codec), a.page, a.k_raw, 0, raw_tokens, k_scratch);
  const float* v = OpenRows(a.tail, RawTypeOf(a.v_codec), a.page, a.v_raw, 0, raw_tokens, v_scratch);
  AttendTile(w, k, v, own);
  AttentionOutput(w);
  if (is_sas && a.counters != nullptr) {
    a.counters->sas_rows += entries;
    CountSas(w);
  }
}

// "tiled-flash/int4-token" where K and V share a codec, else "tiled-flash/k=..,v=..". A codec without a
// decoder of its own in kv_tiles.h is marked "(decode8)".
struct AttentionLabel {
  char text[96] = {};
  constexpr void Append(const char* s) {
    int at = 0;
    while (text[at] != 0) ++at;
    while (*s != 0) text[at++] = *s++;
  }
};
template <class C>
static constexpr void AppendCodec(AttentionLabel& label) {
  label.Append(C::kName);
  if (C::kId > kv::CodecId::kBF16 && !HasTileDecoder<C>) label.Append("(decode8)");
}
template <class K, class V>
static constexpr AttentionLabel MakeAttentionLabel() {
  AttentionLabel label;
  label.Append("tiled-flash/");
  if (K::kId != V::kId) label.Append("k=");
  AppendCodec<K>(label);
  if (K::kId != V::kId) {
    label.Append(",v=");
    AppendCodec<V>(label);
  }
  return label;
}
template <class K, class V>
static constexpr AttentionLabel kAttentionLabel = MakeAttentionLabel<K, V>();

static const char* AttentionName(kv::CodecId k, kv::CodecId v) {
  const char* name = "";
  Visit(kv::Codecs{}, k,
        [&]<class K>() { Visit(kv::Codecs{}, v, [&]<class V>() { name = kAttentionLabel<K, V>.text; }); });
  return name;
}
