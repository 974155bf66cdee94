// SPDX-License-Identifier: Apache-2.0
// Floor 4. P V of a sealed page in FP8, F16 or INT8. Sums over tokens behave as a GPU's, so that quality here
// predicts quality there: the products of kStep tokens (one tensor core instruction) are summed in f32, what
// they are added to is rounded, and a page starts from zero (SageAttention 2, section 3.3: two levels).
//   fp8:         P * 448 and V to E4M3, V by channel to 448; sums truncated to FP22
//   fp8-f16acc:  the same with V to 2.25: 64 products of at most 448 * 2.25 stay inside f16; sums in f16
//   f16:         P and V in f16; sums in f16
//   int8:        P to +-119 by row, V by page to +-127 or as the codes of its page; sums are integers
// P is relative to the running maximum, so 1 is 448 exactly and a lone weight loses nothing.

static NIBBLE_HD Vec16 RoundToF16(Vec16 x) {
  uint16_t half[16];
  x.StoreF16(half);
  return Vec16::LoadF16(half);
}

static constexpr float kE4m3Max = 448;
struct Fp22Sum {
  static constexpr int kStep = 32;
  static constexpr float kValueMax = kE4m3Max;
  static NIBBLE_HD Vec16 Round(Vec16 x) { return x.TruncateToFp22(); }
  static NIBBLE_HD Vec16 RoundFactor(Vec16 x) { return x.RoundToE4m3(); }
};
struct Fp8F16Sum {
  static constexpr int kStep = 32;
  static constexpr float kValueMax = 2.25f;
  static NIBBLE_HD Vec16 Round(Vec16 x) { return RoundToF16(x); }
  static NIBBLE_HD Vec16 RoundFactor(Vec16 x) { return x.RoundToE4m3(); }
};
struct F16Sum {
  static constexpr int kStep = 16;
  static constexpr float kValueMax = 0;  // V is not scaled
  static NIBBLE_HD Vec16 Round(Vec16 x) { return RoundToF16(x); }
  static NIBBLE_HD Vec16 RoundFactor(Vec16 x) { return RoundToF16(x); }
};

// Rounds V into `tile` and says by what the sums must be multiplied: v_scale[channel].
template <class Sum>
static void RoundValues(const AttentionWork& w, const SealedTile& s, const float* v, float* tile) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  const Vec16 zero = Vec16::Zero(), one = Vec16::Set1(1), tiny = Vec16::Set1(1e-30f);
  for (int d = 0; d < head_dim; d += 16) {
    const int n = PartOf16(head_dim - d);
    Vec16 inverse = one, scale = one;
    if constexpr (Sum::kValueMax > 0) {
      Vec16 amax = zero;
      for (int t = 0; t < tokens; ++t) {
        const Vec16 x = Vec16::LoadPart(v + t * head_dim + d, n);
        amax = Vec16::Max(Vec16::Max(x, Vec16::Sub(zero, x)), amax);
      }
      const Vec16 greatest = Vec16::Set1(Sum::kValueMax);
      inverse = Vec16::IfLess(amax, tiny, zero, Vec16::Div(greatest, amax));
      scale = Vec16::Div(amax, Vec16::Set1(Sum::kValueMax * kE4m3Max));
    }
    for (int t = 0; t < tokens; ++t) {
      const Vec16 x = Vec16::Mul(Vec16::LoadPart(v + t * head_dim + d, n), inverse);
      Sum::RoundFactor(x).StorePart(tile + t * head_dim + d, n);
    }
    scale.StorePart(s.v_scale + d, n);
  }
}

template <class Sum>
static void RoundWeights(const AttentionWork& w, int64_t start) {
  const Vec16 factor = Vec16::Set1(Sum::kValueMax > 0 ? kE4m3Max : 1);
  for (int e = 0; e < w.entries; ++e) {
    const TokenRange range = w.Range(e, start);
    float* p = w.scores + e * w.a.page.tokens;
    for (int t = range.begin / 16 * 16; t < range.end; t += 16)
      Sum::RoundFactor(Vec16::Mul(Vec16::Load(p + t), factor)).Store(p + t);
  }
}

// acc[e .. e+E)[d .. d+16D) = acc * fix + the sum over the page, in Sum's steps. `lanes` < 16 only with D
// == 1.
template <int E, int D, class Sum>
static void WeighRounded(Sum, const AttentionWork& w, const float* v_tile, int e, TokenRange range, int d,
                         int lanes) {
  const int head_dim = w.a.page.head_dim;
  const bool part = D == 1 && lanes < 16;
  const float* p = w.scores + e * w.a.page.tokens;
  Vec16 page[E][D];
  for (int i = 0; i < E; ++i)
    for (int j = 0; j < D; ++j) page[i][j] = Vec16::Zero();
  for (int step = range.begin / Sum::kStep * Sum::kStep; step < range.end; step += Sum::kStep) {
    const int begin = step < range.begin ? range.begin : step;
    const int end = step + Sum::kStep < range.end ? step + Sum::kStep : range.end;
    Vec16 s[E][D];
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) s[i][j] = Vec16::Zero();
    for (int t = begin; t < end; ++t) {
      const float* v = v_tile + t * head_dim + d;
      Vec16 vd[D];
      for (int j = 0; j < D; ++j) vd[j] = part ? Vec16::LoadPart(v, lanes) : Vec16::Load(v + 16 * j);
      for (int i = 0; i < E; ++i) {
        const Vec16 weight = Vec16::Set1(p[i * w.a.page.tokens + t]);
        for (int j = 0; j < D; ++j) s[i][j] = Vec16::Fma(weight, vd[j], s[i][j]);
      }
    }
    for (int i = 0; i < E; ++i)
      for (int j = 0; j < D; ++j) page[i][j] = Sum::Round(Vec16::Add(page[i][j], s[i][j]));
  }
  const float* v_scale = SealedTileOf(w).v_scale + d;
  for (int i = 0; i < E; ++i) {
    float* acc = w.acc + (e + i) * head_dim + d;
    const Vec16 fix = Vec16::Set1(w.fix[e + i]);
    for (int j = 0; j < D; ++j) {
      const Vec16 old = part ? Vec16::LoadPart(acc, lanes) : Vec16::Load(acc + 16 * j);
      const Vec16 scale = part ? Vec16::LoadPart(v_scale, lanes) : Vec16::Load(v_scale + 16 * j);
      const Vec16 sum = Vec16::Fma(page[i][j], scale, Vec16::Mul(old, fix));
      part ? sum.StorePart(acc, lanes) : sum.Store(acc + 16 * j);
    }
  }
}

// All of head_dim for E entries that see the same tokens.
template <int E, int D, class Sum>
static NIBBLE_HD void RoundedFrom(Sum sum, const AttentionWork& w, const float* v_tile, int e,
                                  TokenRange range, int d) {
  const int head_dim = w.a.page.head_dim;
  for (; d + 16 * D <= head_dim; d += 16 * D) WeighRounded<E, D>(sum, w, v_tile, e, range, d, 16);
  if constexpr (D > 1) {
    RoundedFrom<E, D / 2>(sum, w, v_tile, e, range, d);
  } else if (d < head_dim) {
    WeighRounded<E, 1>(sum, w, v_tile, e, range, d, head_dim - d);
  }
}

template <int E, class Sum>
static NIBBLE_HD void RoundedEntries(Sum sum, const AttentionWork& w, const float* v_tile, int64_t start,
                                     int e) {
  constexpr int kD = Pow2AtMost(kAccumulators / E < 8 ? kAccumulators / E : 8);
  for (; e + E <= w.entries; e += E) {
    const TokenRange first = w.Range(e, start), last = w.Range(e + E - 1, start);
    if (first.begin == last.begin && first.end == last.end) {
      if (first.begin < first.end) RoundedFrom<E, kD>(sum, w, v_tile, e, first, 0);
      continue;
    }
    for (int i = e; i < e + E; ++i) {
      const TokenRange range = w.Range(i, start);
      if (range.begin < range.end)
        RoundedFrom<1, Pow2AtMost(kAccumulators < 8 ? kAccumulators : 8)>(sum, w, v_tile, i, range, 0);
    }
  }
  if constexpr (E > 1) RoundedEntries<E / 2>(sum, w, v_tile, start, e);
}

template <class Sum>
static void RoundedValues(const AttentionWork& w, const SealedTile& s, const float* v, float* tile,
                          int64_t start) {
  RoundValues<Sum>(w, s, v, tile);
  RoundWeights<Sum>(w, start);
  RoundedEntries<kAttentionEntries>(Sum{}, w, tile, start, 0);
}

// ---- INT8 ----

static constexpr float kWeightLevels = 119;  // TurboAttention, section 3.2

// to[16][4] = codes of four tokens [4][count]; 0 beyond. As StoreWeights4 leaves them.
static NIBBLE_HD void InterleaveCodes(const int8_t* codes, int stride, int count, std::byte* to) {
  const int8_t *a = codes, *b = a + stride, *c = b + stride, *d = c + stride;
  if (count < 16) __builtin_memset(to, 0, 64);
  for (int i = 0; i < count; ++i) {
    to[4 * i] = std::byte(a[i]);
    to[4 * i + 1] = std::byte(b[i]);
    to[4 * i + 2] = std::byte(c[i]);
    to[4 * i + 3] = std::byte(d[i]);
  }
  StoreS8(to, 64);
}

// Codes of V, four tokens of a channel together; what pads the last 16 channels is 0.
static float PackValues(const AttentionWork& w, const SealedTile& s, const std::byte* page, const float* v) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens, padded = (head_dim + 15) / 16 * 16;
  CodeScale c;
  if (!PageCodeScale(w.a.v_codec, w.a.page, page, &c)) c = ScaleOf(AbsMaxBits(v, tokens * head_dim), 127);
  const int8_t* codes = reinterpret_cast<int8_t*>(s.row);  // [4, head_dim]
  for (int t = 0; t < tokens; t += 4) {
    for (int j = 0; j < 4; ++j)
      RowCodes(v + (t + j) * head_dim, reinterpret_cast<int8_t*>(s.row) + j * head_dim, head_dim, c.inverse);
    for (int d = 0; d < padded; d += 16)
      InterleaveCodes(codes + d, head_dim, PartOf16(head_dim - d),
                      reinterpret_cast<std::byte*>(s.v) + d * tokens + t * 16);
  }
  return c.scale;
}

static void QuantizeWeights(const AttentionWork& w, const SealedTile& s, int64_t start, float v_scale) {
  const int tokens = w.a.page.tokens;
  for (int e = 0; e < w.entries; ++e) {
    const TokenRange range = w.Range(e, start);
    if (range.begin >= range.end) continue;
    const int first = range.begin / 16 * 16, count = (range.end + 15) / 16 * 16 - first;
    const float* p = w.scores + e * tokens + first;
    int8_t* codes = s.p + int64_t{e} * tokens;
    Vec16 greatest = Vec16::Zero();
    for (int t = 0; t < count; t += 16) greatest = Vec16::MaxAbsBits(greatest, Vec16::Load(p + t));
    const CodeScale c = ScaleOf(greatest.MaxLaneBits(), kWeightLevels);
    int32_t sum;
    if (count == kv::kPageTokens) {  // a constant length becomes vector code
      sum = RowCodes(p, codes, kv::kPageTokens, c.inverse);
    } else {
      __builtin_memset(codes, 0, size_t(tokens));
      sum = RowCodes(p, codes + first, count, c.inverse);
    }
    w.More(kWeightScale)[e] = c.scale * v_scale;
    w.More(kWeightOffset)[e] = float(kS8Offset * sum);
  }
}

// acc[e .. e+E)[d .. d+16P) = acc * fix + the integer sum over the page. Not inlined, as above.
template <int E, int P>
static __attribute__((noinline)) void IntegerValues16(const AttentionWork& w, const SealedTile& s, int e,
                                                      int d) {
  const int head_dim = w.a.page.head_dim, tokens = w.a.page.tokens;
  DotS8 dot[P][E];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int i = 0; i < E; ++i) dot[p][i] = DotS8::Zero();
  for (int t = 0; t < tokens; t += 4) {
    Weights4 v[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) v[p] = LoadStoredS8(s.v + (d + 16 * p) * tokens + t * 16);
    Step(v, s.p + int64_t{e} * tokens + t, tokens, dot);
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int i = 0; i < E; ++i) {
      dot[p][i].Flush();
      const int n = PartOf16(head_dim - d - 16 * p);
      float* acc = w.acc + (e + i) * head_dim + d + 16 * p;
      const Vec16 sum = Vec16::Sub(ToFloat(dot[p][i].sum), Vec16::Set1(w.More(kWeightOffset)[e + i]));
      const Vec16 old = Vec16::Mul(Vec16::LoadPart(acc, n), Vec16::Set1(w.fix[e + i]));
      Vec16::Fma(sum, Vec16::Set1(w.More(kWeightScale)[e + i]), old).StorePart(acc, n);
    }
  }
}

template <int E, int P>
static NIBBLE_HD void IntegerValuesFrom(const AttentionWork& w, const SealedTile& s, int e, int d) {
  for (; d + 16 * (P - 1) < w.a.page.head_dim; d += 16 * P) IntegerValues16<E, P>(w, s, e, d);
  if constexpr (P > 1) IntegerValuesFrom<E, P / 2>(w, s, e, d);
}

template <int E>
static NIBBLE_HD void IntegerValues(const AttentionWork& w, const SealedTile& s, int64_t start, int e) {
  constexpr int kP = E == 1 ? kRowPanels : kIntegerPanels<E>;
  const auto sees = [&](int i) {
    const TokenRange range = w.Range(i, start);
    return range.begin < range.end;
  };
  for (; e + E <= w.entries; e += E) {
    if (sees(e) && sees(e + E - 1)) {
      IntegerValuesFrom<E, kP>(w, s, e, 0);
      continue;
    }
    for (int i = e; i < e + E; ++i)
      if (sees(i)) IntegerValuesFrom<1, kRowPanels>(w, s, i, 0);
  }
  if constexpr (E > 1) IntegerValues<E / 2>(w, s, start, e);
}
