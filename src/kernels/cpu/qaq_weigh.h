// SPDX-License-Identifier: Apache-2.0
// Floor 4. QAQ: how much attention the tokens of each V page got from some queries. Two passes over the
// scores, in the order of attention.h: the first finds maximum and sum of every entry, the second weighs.

static void QaqWeighPage(const AttentionWork& w, const PageRows& k, std::byte* page, int64_t start) {
  Scores(w, k, start);
  kv::QaqHeader h = kv::LoadQaqHeader(page);
  const int tokens = w.a.page.tokens;
  for (int e = 0; e < w.entries; ++e) {
    const TokenRange range = w.Range(e, start);
    const Vec16 max = Vec16::Set1(w.max[e]), sum = Vec16::Set1(w.sum[e]);
    float* s = w.scores + e * tokens;
    for (int t = range.begin / 16 * 16; t < range.end; t += 16)
      Vec16::Div(Exp(Vec16::Sub(Vec16::Load(s + t), max)), sum).Store(s + t);
    for (int t = range.begin; t < range.end; ++t) {
      const float weighed = s[t] * HalfToFloat(kv::LoadQaqRange(w.a.page, page, t).half);
      h.fresh = weighed > h.fresh ? weighed : h.fresh;
    }
  }
  kv::StoreQaqHeader(page, h);
}

// Raises QaqHeader::fresh of the sealed V pages to the greatest weight * half range that a row and query head
// of the call gives one of their tokens. `a` as for Attention; its v_pages are records of QAQ and are
// written, its out and v_raw are not read. REQUIRES what Attention does.
static void QaqWeigh(const AttentionArgs& a, std::byte* const* v_pages) {
  const int tokens = a.page.tokens;
  const AttentionMemory m = MakeAttentionWork(a);
  const AttentionWork& w = m.w;
  float* rows = m.rows;
  const auto add = [&](const PageRows& k, int64_t start) {
    Scores(w, k, start);
    for (int e = 0; e < w.entries; ++e) {
      const TokenRange range = w.Range(e, start);
      if (range.begin < range.end) SoftmaxStep(w, e, range);
    }
  };
  const auto seen = [&](int page) {
    return a.window <= 0 || int64_t{page + 1} * tokens > a.position - a.window + 1;
  };
  const auto keys = [&](int page) { return SealedRows(a.k_codec, a.page, a.k_pages[page], rows); };
  for (int p = 0; p < a.pages; ++p)
    if (seen(p)) add(keys(p), int64_t{p} * tokens);
  const int64_t own = a.position - a.position % tokens;
  const int n = int(a.position - own) + a.rows;
  add(OpenPageRows(a.tail, RawTypeOf(a.k_codec), a.page, a.k_raw, n, rows), own);
  for (int p = 0; p < a.pages; ++p)
    if (seen(p)) QaqWeighPage(w, keys(p), v_pages[p], int64_t{p} * tokens);
}
