// SPDX-License-Identifier: Apache-2.0
// Floor 4. SparQ, step 3 and the whole of a row (arXiv 2312.04985, section 3; features F-S1, F-S2, F-S6,
// F-S7).

struct TokenList {
  int n;
  bool covers;  // as much approximate weight as was asked for
};

// F-S2: shortens the list to its best tokens, as many as cover the share `wanted` in every head. Forced
// tokens stay. Uses s.w.acc for the sums.
static TokenList AdaptiveK(const SparqWork& s, int n, float wanted) {
  const SelectWork& w = s.w;
  const auto rank = [&](int32_t token) {  // greater is better; of equal keys the lower token
    return uint64_t{w.keys[token - s.base]} << 32 | (0xffffffffu - uint32_t(token));
  };
  for (int i = 0; i < n; ++i) w.order[i] = rank(w.tokens[i]);
  HeapSort(w.order, n);
  for (int g = 0; g < s.a.row.group; ++g) w.acc[g] = 0;
  bool covers = false;
  int i = n;
  while (i > 0 && (!covers || w.order[i - 1] >> 32 == kForcedKey)) {
    const int index = int(0xffffffffu - uint32_t(w.order[--i])) - s.base;
    covers = true;
    for (int g = 0; g < s.a.row.group; ++g) {
      w.acc[g] += w.approx[int64_t{g} * w.capacity + index];
      covers &= w.acc[g] >= wanted;
    }
  }
  int kept = 0;
  for (int j = 0; j < n; ++j)
    if (rank(w.tokens[j]) >= w.order[i]) w.tokens[kept++] = w.tokens[j];
  return {kept, covers};
}

// Ranks with r channels and lists the tokens to read.
static TokenList ListTokens(const SparqWork& s, int r) {
  const SelectRow& row = s.a.row;
  const int own = int(row.position) / row.page.tokens * row.page.tokens;
  const int sealed = s.base < own ? own - s.base : 0,
            raw = int(row.position) - (own > row.first ? own : int(row.first)) + 1;
  const int64_t copy_bits = s.a.sparq.copy == KeyCopy::kF16 ? 16 : s.a.sparq.copy == KeyCopy::kInt8 ? 8 : 4;
  const int64_t scales = s.a.sparq.copy == KeyCopy::kF16 ? 0 : sealed / 32 * 2;
  row.counters->scalars_read += int64_t{r} * (s.count - s.hidden);
  row.counters->bytes_read +=
      r * (sealed * copy_bits / 8 + scales + raw * row.k_bytes.raw / row.page.head_dim);
  RankAll(s, r);
  TopK(s.w.keys, s.count, s.a.sparq.k, s.base, s.w.tokens, reinterpret_cast<uint32_t*>(s.w.order));
  if (s.a.sparq.eps <= 0) return {s.a.sparq.k, true};
  return AdaptiveK(s, s.a.sparq.k, 1 - s.a.sparq.eps);
}

// to[head_dim] += sign * V of position t, which is sealed.
static void AddValueRow(const SelectRow& r, const SelectWork& w, int32_t t, float sign, float* to) {
  const float* rows[16];
  LoadRows(r, true, &t, 1, w.tile, rows);
  for (int d = 0; d < r.page.head_dim; ++d) to[d] += sign * rows[0][d];
}

// to[head_dim] = the sum of V over the positions from `begin` up to the end of page `page`, or up to the row
// itself in its own page: from the running sums, the rows before `begin` in its page taken off.
static void SumValues(const SparqWork& s, int begin, int page, float* to) {
  const SelectRow& r = s.a.row;
  const int tokens = r.page.tokens, dim = r.page.head_dim, own = int(r.position) / tokens;
  const auto running = [&](int p) { return reinterpret_cast<const float*>(r.records[p] + s.a.v_sum); };
  const int first_page = begin / tokens, last_sealed = page < own ? page : own - 1;
  for (int d = 0; d < dim; ++d) to[d] = 0;
  if (last_sealed >= first_page) {
    for (int d = 0; d < dim; ++d) to[d] = running(last_sealed)[d];
    if (first_page > 0)
      for (int d = 0; d < dim; ++d) to[d] -= running(first_page - 1)[d];
    for (int t = first_page * tokens; t < begin; ++t) AddValueRow(r, s.w, t, -1, to);
  }
  if (page < own) return;
  const int skip = begin > own * tokens ? begin - own * tokens : 0;
  const int n = int(r.position) - own * tokens + 1;
  const float* v = OpenRows(r.tail, RawTypeOf(r.v_codec), r.page, r.v_raw, 0, n, s.w.tile);
  for (int t = skip; t < n; ++t)
    for (int d = 0; d < dim; ++d) to[d] += v[t * dim + d];
}

// F-S7: a block is a page; the weight of its tokens that were not read goes to the mean of the block.
static void AddBlockMeans(const SparqWork& s, int n) {
  const SelectRow& r = s.a.row;
  const int tokens = r.page.tokens, dim = r.page.head_dim;
  for (int g = 0; g < r.group; ++g)
    for (int i = 0; i < n; ++i) s.w.approx[int64_t{g} * s.w.capacity + s.w.tokens[i] - s.base] = 0;
  for (int index = 0; index < s.count; index += tokens) {
    const int begin = s.base + (index > s.hidden ? index : s.hidden);
    const int end = s.base + (index + tokens < s.count ? index + tokens : s.count);
    SumValues(s, begin, begin / tokens, s.w.mean);
    for (int g = 0; g < r.group; ++g) {
      float mass = 0;
      for (int i = index; i < end - s.base; ++i) mass += s.w.approx[int64_t{g} * s.w.capacity + i];
      const float share = mass / float(end - begin);
      for (int d = 0; d < dim; ++d) r.out[int64_t{g} * dim + d] += share * s.w.mean[d];
    }
  }
}

// out = alpha * y + what stands for the tokens that were not read.
static void Reallocate(const SparqWork& s, int n, Reallocation how) {
  const SelectRow& r = s.a.row;
  const int dim = r.page.head_dim, seen = s.count - s.hidden;
  int over = seen;  // tokens in the mean
  if (how != Reallocation::kBlocks) SumValues(s, int(r.first), int(r.position) / r.page.tokens, s.w.mean);
  if (how == Reallocation::kUnselected) {
    over -= n;
    for (int d = 0; d < dim; ++d) s.w.mean[d] -= s.w.sum[d];
  }
  for (int g = 0; g < r.group; ++g) {
    const float* p = s.w.approx + int64_t{g} * s.w.capacity;
    float alpha = 0;
    for (int i = 0; i < n; ++i) alpha += p[s.w.tokens[i] - s.base];
    const float rest = how == Reallocation::kBlocks ? 0 : (1 - alpha) / float(over);
    for (int d = 0; d < dim; ++d)
      r.out[int64_t{g} * dim + d] = alpha * s.w.acc[g * dim + d] + (rest == 0 ? 0 : rest * s.w.mean[d]);
  }
  if (how == Reallocation::kBlocks) AddBlockMeans(s, n);
}

// The mean is read and written (the transfer model), in bytes: the running sums at both ends of what is seen,
// or of every page, and the rows of the open page that the list left out.
static void CountMean(const SparqWork& s, int n, Reallocation how) {
  const SelectRow& r = s.a.row;
  const int tokens = r.page.tokens, own = int(r.position) / tokens, first_page = int(r.first) / tokens;
  int raw = int(r.position) - (own * tokens > r.first ? own * tokens : int(r.first)) + 1;
  for (int i = n - 1; i >= 0 && s.w.tokens[i] / tokens == own; --i) --raw;
  const int pages = own - first_page;
  const int sums =
      how == Reallocation::kBlocks ? pages + (first_page > 0) : (pages > 0) + (pages > 0 && first_page > 0);
  r.counters->scalars_read += (how == Reallocation::kBlocks ? 2 + pages : 2) * r.page.head_dim;
  const int partial = first_page < own ? s.hidden : 0;  // rows taken off a page that is seen in part
  r.counters->bytes_read +=
      int64_t{sums} * r.page.head_dim * 4 + raw * r.v_bytes.raw + partial * r.v_bytes.token;
}

// REQUIRES sparq.r <= head_dim, page.tokens 64, records of all sealed pages.
static void Sparq(const SparqArgs& a) {
  const SelectRow& r = a.row;
  const SparqParams& p = a.sparq;
  const int dim = r.page.head_dim, base = int(r.first) / r.page.tokens * r.page.tokens;
  const SparqWork s{a, MakeSelectWork(r), base, int(r.position) - base + 1, int(r.first) - base};
  ++r.counters->rows;
  bool all = s.count - s.hidden <= p.k;
  TokenList list{0, false};
  if (!all) {
    OrderChannels(r, s.w);
    const int least = AdaptiveR(s);
    list = ListTokens(s, least);
    if (!list.covers && 2 * least < dim) list = ListTokens(s, 2 * least);  // once, then without selection
    all = !list.covers;
    r.counters->dense_fallbacks += all;
  }
  const int n = all ? ListAll(r, s.w) : list.n;
  Gather(r, s.w, n);
  CountList(r, s.w, n);
  Reallocation how = p.mean;
  if (how == Reallocation::kAuto) how = r.group == 1 ? Reallocation::kMean : Reallocation::kOff;
  if (all || how == Reallocation::kOff) return CopyAccToOut(r, s.w);
  Reallocate(s, n, how);
  CountMean(s, n, how);
}
