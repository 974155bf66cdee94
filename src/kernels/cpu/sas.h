// SPDX-License-Identifier: Apache-2.0
// Floor 4. SAS, the softmax of TurboAttention (arXiv 2412.08585, section 3.3), and sas2: e^x for x <= 0 as a
// table of powers times a cubic of the fraction, 0 below a threshold. A row counts what the threshold takes:
// the same approximation without the threshold, down to e^-16, below which it is nothing.

// e^-n, n = 0 .. 15. At x = -16, the lowest threshold, the fraction is 1.
static constexpr float kSasPowers[16] = {1.0f,           3.67879441e-1f, 1.35335283e-1f, 4.97870684e-2f,
                                         1.83156389e-2f, 6.73794700e-3f, 2.47875218e-3f, 9.11881966e-4f,
                                         3.35462628e-4f, 1.23409804e-4f, 4.53999298e-5f, 1.67017008e-5f,
                                         6.14421235e-6f, 2.26032941e-6f, 8.31528719e-7f, 3.05902321e-7f};
static constexpr float kSasLowest = -16;

// SAS without a threshold for x <= 0: 0 below kSasLowest, NaN for NaN.
template <bool kBase2>
static NIBBLE_HD Vec16 SasExp(const SasPolynomial& c, Vec16 x) {
  const Vec16 zero = Vec16::Zero();
  Vec16 y = Vec16::Sub(zero, x);
  if (kBase2) y = Vec16::Mul(y, Vec16::Set1(1.44269504f));  // 1 / ln 2
  const float most = kBase2 ? 24 : 15;
  const Vec16 clamped = Vec16::Min(Vec16::Max(y, zero), Vec16::Set1(most));  // 0 for NaN
  const Vec16 near = clamped.Round();
  const Vec16 n = Vec16::IfLess(clamped, near, Vec16::Sub(near, Vec16::Set1(1)), near);
  const Vec16 t = Vec16::Sub(y, n);
  Vec16 p = Vec16::Fma(Vec16::Set1(c.c3), t, Vec16::Set1(c.c2));
  p = Vec16::Fma(p, t, Vec16::Set1(c.c1));
  p = Vec16::Fma(p, t, Vec16::Set1(c.c0));
  const Vec16 power = kBase2 ? Vec16::Sub(zero, n).Pow2() : Vec16::LookUp(kSasPowers, n);
  return Vec16::IfLess(x, Vec16::Set1(kSasLowest), zero, Vec16::Mul(p, power));
}

template <bool kBase2>
static void SasStep(const AttentionWork& w, const SasPolynomial& c, int e, TokenRange range) {
  float* s = w.scores + e * w.a.page.tokens;
  const float max = MaskScores(w, e, range);
  const Vec16 threshold = Vec16::Set1(w.More(kSasThreshold)[e]), zero = Vec16::Zero(), one = Vec16::Set1(1);
  Vec16 total = zero, all = zero, dropped = zero;
  const int first = range.begin / 16 * 16;
  int lanes = 0;
  for (int t = first; t < range.end; t += 16, lanes += 16) {
    const Vec16 x = Vec16::Sub(Vec16::Load(s + t), Vec16::Set1(max));
    const Vec16 weight = SasExp<kBase2>(c, x), kept = Vec16::IfLess(x, threshold, zero, weight);
    kept.Store(s + t);
    total = Vec16::Add(total, kept);
    all = Vec16::Add(all, Vec16::Sub(weight, kept));
    dropped = Vec16::Add(dropped, Vec16::IfLess(x, threshold, one, zero));
  }
  Exp(Vec16::Set1(w.max[e] - max)).StorePart(w.fix + e, 1);
  w.sum[e] = w.sum[e] * w.fix[e] + total.Sum();
  w.max[e] = max;
  float* mass = w.More(kSasDroppedMass) + e;
  *mass = *mass * w.fix[e] + all.Sum();
  const int outside = lanes - (range.end - range.begin);  // their score is -infinity
  w.More(kSasDroppedTokens)[e] += dropped.Sum() - float(outside);
}

static void SasTile(const AttentionWork& w, int64_t start) {
  const SasPolynomial c = PolynomialOf(w.a.arithmetic);
  for (int e = 0; e < w.entries; ++e) {
    const TokenRange range = w.Range(e, start);
    if (range.begin < range.end) c.base2 ? SasStep<true>(w, c, e, range) : SasStep<false>(w, c, e, range);
  }
}

static void SoftmaxTile(const AttentionWork& w, int64_t start) {
  if (w.a.arithmetic.softmax != SoftmaxKind::kExact) return SasTile(w, start);
  LinesAhead ahead = w.Ahead(w.v_ahead);
  constexpr int kE = kAttentionEntries;
  for (int e = 0; e < w.entries;) {
    const TokenRange range = w.Range(e, start);
    const bool together = e + kE <= w.entries && SeeWholeTile(w, e, kE, start);
    if (together) {
      SoftmaxWhole<kE>(w, e);
    } else if (range.begin < range.end) {
      SoftmaxStep(w, e, range);
    }
    ahead.Ask<4 * kE>();
    e += together ? kE : 1;
  }
  AttentionWork::Keep(w.v_ahead, ahead);
}

static void StartSas(const AttentionWork& w) {
  const Arithmetic& how = w.a.arithmetic;
  for (int e = 0; e < w.entries; ++e) {
    const int64_t p = w.a.position + e / w.a.group + 1;  // tokens that the row sees
    const int64_t length = w.a.window > 0 && w.a.window < p ? w.a.window : p;
    w.More(kSasThreshold)[e] =
        how.softmax == SoftmaxKind::kSas ? how.sas.threshold : Sas2Threshold(how.sas.eps, length);
    w.More(kSasDroppedMass)[e] = w.More(kSasDroppedTokens)[e] = 0;
  }
}

static void CountSas(const AttentionWork& w) {
  AttentionCounters& c = *w.a.counters;
  for (int e = 0; e < w.entries; ++e) {
    c.sas_dropped += int64_t(w.More(kSasDroppedTokens)[e]);
    const float mass = w.More(kSasDroppedMass)[e], share = mass / (w.sum[e] + mass);
    if (share > 0) c.sas_dropped_mass += int64_t(double(share) * 4294967296.0);  // false for NaN
  }
}
