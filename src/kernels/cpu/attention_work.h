// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention tile by tile with an online softmax (Milakov and Gimelshein, arXiv 1805.02867): the
// state of a call, and the softmax. A tile is one page. An entry is one query head at one position. Per entry
// the order of every sum is fixed: a score over channels ascending, weights over lanes of tokens, the output
// of a tile over tokens ascending, tiles in list order. Blocks of entries only share loads.

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
  float* columns;  // [tokens, head_dim] of attention_keys.h
  float* queries;  // [entries, head_dim] of attention_keys.h
  float* part;     // [6, head_dim] of attention_values.h
  float* more;     // [kMoreStates, entries], of sas.h and others

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

// States of AttentionWork::more: sas.h, attention_qk.h and attention_pv.h, attention_keys.h and
// attention_values.h.
enum : int {
  kSasThreshold,
  kSasDroppedMass,
  kSasDroppedTokens,
  kQueryScale,
  kQueryOffset,
  kQueryBias,
  kWeightScale,
  kWeightOffset,
  kKeyOffset,
  kValueOffset
};

static constexpr int kAttentionEntries = kAccumulators >= 4 ? 4 : 2;  // that share the loads of a tile
// Vectors of sums in a block: what hides the latency of a multiply-add, and fits.
static constexpr int kAttentionVectors = kAccumulators >= 16 ? 16 : kAccumulators >= 4 ? 4 : 2;

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
