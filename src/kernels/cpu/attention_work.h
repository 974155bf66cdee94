// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention tile by tile with an online softmax (Milakov and Gimelshein, arXiv 1805.02867): the
// state of a call, and the softmax. A tile is one page. An entry is one query head at one position. Per entry
// the order of every sum is fixed: a score over channels ascending, weights over lanes of tokens, the output
// of a tile over tokens ascending, tiles in list order. Blocks of entries only share loads.

struct TokenRange {  // tokens of a tile that an entry sees
  int begin, end;
};

// The lines of a page that will be read next. Pages lie apart, and a processor that follows streams starts
// anew at each, so decode steps ask for them, a few lines in every part of the work on the page before: a
// core has one or two dozen lines under way, and when it asks for more than arrive it waits.
struct LinesAhead {
  const std::byte *next, *last;
  template <int kLines, bool kNear = true>  // kNear: into the first-level cache
  NIBBLE_HD void Ask() {
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) {
      __builtin_prefetch(next, 0, kNear ? 3 : 2);
      next = next + 64 < last ? next + 64 : last;
    }
  }
};

// The next `floats` of work memory at p, from a multiple of 64 bytes on.
static NIBBLE_HD float* TakeAligned(float*& p, int64_t floats) {
  float* const at = p;
  p += (floats + 15) / 16 * 16;
  return at;
}

struct AttentionWork {
  const AttentionArgs& a;
  float* scores;  // [entries, tokens]
  float* acc;     // [entries, head_dim]
  float* max;     // [entries] running maximum of the scores
  float* sum;     // [entries] running sum of the weights
  float* fix;     // [entries] factor that brings acc to the current maximum
  int entries;
  float* columns;  // [tokens, head_dim] of attention_keys.h
  float* queries;  // [entries, head_dim] of attention_keys.h
  float* part;     // [6, head_dim] of attention_values.h and attention_codes.h
  float* more;     // [kMoreStates, entries], of sas.h and others
  LinesAhead *k_ahead = nullptr, *v_ahead = nullptr;  // of the page after the one at work, or null

  NIBBLE_HD LinesAhead Ahead(const LinesAhead* lines) const {  // without, it asks for what is at hand
    const std::byte* here = reinterpret_cast<const std::byte*>(scores);
    return lines != nullptr ? *lines : LinesAhead{here, here};
  }
  static NIBBLE_HD void Keep(LinesAhead* lines, const LinesAhead& ahead) {
    if (lines != nullptr) *lines = ahead;
  }

  static constexpr int kMoreStates = 32;
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

// States of AttentionWork::more: sas.h, attention_qk.h and attention_pv.h, attention_codes.h.
enum : int {
  kSasThreshold,
  kSasDroppedMass,
  kSasDroppedTokens,
  kQueryScale,
  kQueryOffset,
  kQueryBias,
  kWeightScale,
  kWeightOffset,
  kKeyScale,
  kKeyCentre,
  kKeyOffset,
  kValueScale,
  kValueOffset
};

static constexpr int kAttentionEntries = kAccumulators >= 4 ? 4 : 2;  // that share the loads of a tile
// Vectors of sums in a block: what hides the latency of a multiply-add, and fits.
static constexpr int kAttentionVectors = kAccumulators >= 16 ? 16 : kAccumulators >= 4 ? 4 : 2;

// Calls score.operator()<E, T>(e, t) for blocks of E entries and 16 T tokens from t on that hold all that the
// entries see of the tile at `start`. Ranges grow with the entry: a block reaches from its first entry's
// begin to its last one's end.
template <int E, class F>
static NIBBLE_HD void ForScoreTiles(const AttentionWork& w, int64_t start, int e, F&& score) {
  constexpr int kWide = kAttentionVectors / E < 4 ? kAttentionVectors / E : 4;
  for (; e + E <= w.entries; e += E) {
    const int begin = w.Range(e, start).begin, end = w.Range(e + E - 1, start).end;
    for (int t = begin / (16 * kWide) * (16 * kWide); t < end; t += 16 * kWide)
      score.template operator()<E, kWide>(e, t);
  }
  if constexpr (E > 1) ForScoreTiles<E / 2>(w, start, e, score);
}

// Whether each of the entries [e, e + count) sees the whole tile.
static NIBBLE_HD bool SeeWholeTile(const AttentionWork& w, int e, int count, int64_t start) {
  return w.Range(e, start).end == kv::kPageTokens && w.Range(e + count - 1, start).begin == 0;
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

// What brings sums of weights to a maximum that has moved from `before` to `now`: 1 where it has not, as
// Exp(0) is.
static NIBBLE_HD float FixOf(float before, float now) {
  if (before == now && now > -__builtin_inff()) return 1;
  float fix[16];
  Exp(Vec16::Set1(before - now)).Store(fix);
  return fix[0];
}

// SoftmaxStep for E entries that see the whole tile, step by step: the greatest score, the exponentials and
// the sum of one entry hang on each other, those of several do not.
template <int E>
static void SoftmaxWhole(const AttentionWork& w, int e) {
  constexpr int kVectors = kv::kPageTokens / 16;
  float* s = w.scores + e * kv::kPageTokens;
  float max[E];
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    Vec16 top = Vec16::Set1(-__builtin_inff());
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) top = Vec16::Max(Vec16::Load(s + kv::kPageTokens * i + 16 * j), top);
    const float tile_max = top.MaxLane(), before = w.max[e + i];
    max[i] = tile_max > before ? tile_max : before;
  }
  Vec16 total[E];
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    Vec16 x[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      x[j] = Vec16::Sub(Vec16::Load(s + kv::kPageTokens * i + 16 * j), Vec16::Set1(max[i]));
    ExpEach(x);
    total[i] = Vec16::Zero();
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      x[j].Store(s + kv::kPageTokens * i + 16 * j);
      total[i] = Vec16::Add(total[i], x[j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < E; ++i) {
    const float fix = FixOf(w.max[e + i], max[i]);
    w.fix[e + i] = fix;
    w.sum[e + i] = w.sum[e + i] * fix + total[i].Sum();
    w.max[e + i] = max[i];
  }
}

// Turns the scores of one entry into weights relative to the running maximum, which it moves.
static void SoftmaxStep(const AttentionWork& w, int e, TokenRange range) {
  if (range.begin == 0 && range.end == kv::kPageTokens) return SoftmaxWhole<1>(w, e);
  float* s = w.scores + e * w.a.page.tokens;
  const float max = MaskScores(w, e, range);
  Vec16 total = Vec16::Zero();
  for (int t = range.begin / 16 * 16; t < range.end; t += 16) {
    const Vec16 p = Exp(Vec16::Sub(Vec16::Load(s + t), Vec16::Set1(max)));
    p.Store(s + t);
    total = Vec16::Add(total, p);
  }
  w.fix[e] = FixOf(w.max[e], max);
  w.sum[e] = w.sum[e] * w.fix[e] + total.Sum();
  w.max[e] = max;
}

static NIBBLE_HD Vec16 ToFloat(const I32x16& x) {
  int32_t i[16];
  x.Store(i);
  return Vec16::LoadI32(i);
}

// Scale and 1 / scale of codes to +-levels. All zero: scale 0. Not finite: scale NaN and codes 0.
struct CodeScale {
  float scale, inverse;
};
static NIBBLE_HD CodeScale ScaleOf(int32_t amax_bits, float levels) {
  if (amax_bits < kTinyBits) return {0, 0};
  if (amax_bits >= kInfinityBits) return {__builtin_nanf(""), 0};
  const float amax = BitsToFloat(uint32_t(amax_bits));
  return {amax / levels, levels / amax};
}

// The same for codes of 15 bits, the scale a power of two.
static NIBBLE_HD CodeScale Pow2ScaleOf(int32_t amax_bits) {
  const uint32_t exponent = uint32_t(amax_bits) >> 23;
  if (exponent < 15) return {0, 0};
  if (amax_bits >= kInfinityBits) return {__builtin_nanf(""), 0};
  return {BitsToFloat((exponent - 14) << 23), BitsToFloat((268 - exponent) << 23)};
}
