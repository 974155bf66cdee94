// SPDX-License-Identifier: Apache-2.0
// Floor 4. H2O (arXiv 2306.14048): tokens that have received little weight are dropped for good. A token's
// weight is the sum over the rows so far of the mean over the group, prefill included.

static constexpr float kEvicted = -1;

// Marks all but the newest `local` and the heaviest others of the list, k in all. Returns how many stay.
static int EvictLightest(const H2oArgs& a, const SelectWork& w, int n, int k, int local) {
  const int tokens = a.row.page.tokens;
  const auto score = [&](int32_t t) -> float& { return a.scores[t / tokens][t % tokens]; };
  for (int i = 0; i < n; ++i)
    w.keys[i] = w.tokens[i] > a.row.position - local ? kForcedKey : OrderKey(score(w.tokens[i]));
  KeyThreshold least = KthGreatest(w.keys, n, k);
  int kept = 0;
  for (int i = 0; i < n; ++i) {
    const bool stays = w.keys[i] > least.key || (w.keys[i] == least.key && least.equal-- > 0);
    if (stays) w.tokens[kept++] = w.tokens[i];
    if (!stays) score(w.tokens[i]) = kEvicted;
  }
  return kept;
}

static void H2o(const H2oArgs& a) {
  const SelectRow& r = a.row;
  const SelectWork w = MakeSelectWork(r);
  const int tokens = r.page.tokens, position = int(r.position);
  a.scores[position / tokens][position % tokens] = 0;
  int n = 0;
  for (int t = int(r.first); t <= position;
       ++t)  // what a sliding window has left behind is never listed again
    if (!(a.scores[t / tokens][t % tokens] < 0)) w.tokens[n++] = t;
  // The current token always stays.
  const int wanted = a.h2o.local < 0 ? a.h2o.k / 4 : a.h2o.local, local = wanted < 1 ? 1 : wanted;
  if (!a.prefill && n > a.h2o.k) n = EvictLightest(a, w, n, a.h2o.k, local);
  GatherScores(r, w, n, w.weights);
  for (int g = 0; g < r.group; ++g) SoftmaxInPlace(w.weights + int64_t{g} * w.capacity, n);
  for (int i = 0; i < n; ++i) {
    float sum = 0;
    for (int g = 0; g < r.group; ++g) sum += w.weights[int64_t{g} * w.capacity + i];
    a.scores[w.tokens[i] / tokens][w.tokens[i] % tokens] += sum / float(r.group);
  }
  if (a.prefill) return;
  GatherValues(r, w, n);
  CopyAccToOut(r, w);
  ++r.counters->rows;
  CountList(r, w, n);
  const int64_t seen = position - r.first + 1;  // weights: read to list what lives, and written
  r.counters->scalars_read += 2 * seen;
  r.counters->bytes_read += (seen + n) * int64_t{sizeof(float)};
}
