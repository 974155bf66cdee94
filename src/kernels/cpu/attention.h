// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention of one call: the pages of the list, then the open page. What a recipe's arithmetic does
// to sealed pages is in attention_sealed.h, SAS in sas.h.

// Sealed pages are summed in blocks of kAttentionBlockPages, by absolute position and each from nothing, and
// the blocks are merged in order, the open page last: so several threads can share a long context, and
// whether they do changes no bit.

// The state of a block or of all so far: [entries, head_dim] sums, then [entries] maxima and [entries] sums
// of weights.
static NIBBLE_HD void UseState(AttentionWork& w, float* state) {
  w.acc = state;
  w.max = state + int64_t{w.entries} * w.a.page.head_dim;
  w.sum = w.max + w.entries;
}
static NIBBLE_HD void ClearState(const AttentionWork& w) {
  for (int64_t i = 0; i < int64_t{w.entries} * w.a.page.head_dim; ++i) w.acc[i] = 0;
  for (int e = 0; e < w.entries; ++e) {
    w.max[e] = -__builtin_inff();
    w.sum[e] = 0;
  }
}

// Work memory of a call, inside AttentionArgs::scratch; `rows` [tokens, head_dim] for what is decoded. The
// states of a block and of all are cleared, and that of the block is in use.
struct AttentionMemory {
  AttentionWork w;
  float *rows, *block, *total;
};
static AttentionMemory MakeAttentionWork(const AttentionArgs& a) {
  const int64_t tile = int64_t{a.page.tokens} * a.page.head_dim, entries = int64_t{a.rows} * a.group;
  float* p = a.scratch;
  const auto take = [&p](int64_t floats) { return TakeAligned(p, floats); };
  AttentionMemory m{.w = {.a = a, .entries = int(entries)}};
  m.w.columns = take(tile);
  m.rows = take(tile);
  m.w.scores = take(entries * a.page.tokens);
  m.w.queries = take(entries * a.page.head_dim);
  m.w.part = take(int64_t{6} * a.page.head_dim);
  m.w.fix = take(entries);
  m.total = take(AttentionStateFloats(a.rows, a.group, a.page));
  m.block = take(AttentionStateFloats(a.rows, a.group, a.page));
  m.w.more = p;
  UseState(m.w, m.total);
  ClearState(m.w);
  UseState(m.w, m.block);
  ClearState(m.w);
  return m;
}

// Adds the state of a block to the whole.
static void MergeState(const AttentionMemory& m, float* state) {
  const int head_dim = m.w.a.page.head_dim;
  AttentionWork w = m.w, block = m.w;
  UseState(w, m.total);
  UseState(block, state);
  for (int e = 0; e < w.entries; ++e) {
    if (block.sum[e] == 0 && !(block.max[e] > -__builtin_inff())) continue;  // the entry saw none of it
    const float max = block.max[e] > w.max[e] ? block.max[e] : w.max[e];
    const Vec16 old = Exp(Vec16::Set1(w.max[e] - max)), more = Exp(Vec16::Set1(block.max[e] - max));
    float *to = w.acc + int64_t{e} * head_dim, *from = block.acc + int64_t{e} * head_dim;
    for (int d = 0; d < head_dim; d += 16) {
      const int n = PartOf16(head_dim - d);
      const Vec16 x = Vec16::Mul(Vec16::LoadPart(from + d, n), more);
      Vec16::Fma(Vec16::LoadPart(to + d, n), old, x).StorePart(to + d, n);
    }
    const Vec16 sum = Vec16::Mul(Vec16::Set1(block.sum[e]), more);
    Vec16::Fma(Vec16::Set1(w.sum[e]), old, sum).StorePart(w.sum + e, 1);
    w.max[e] = max;
  }
}

static void AttentionOutput(const AttentionMemory& m) {
  AttentionWork w = m.w;
  UseState(w, m.total);
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

static int PageBytes(kv::CodecId codec, kv::PageShape s) {
  int bytes = 0;
  Visit(kv::Codecs{}, codec, [&]<class C>() { bytes = C::PageBytes(s); });
  return bytes;
}

// Sealed page number `page`.
static void AttendPage(const AttentionMemory& m, int page, bool prepared) {
  const AttentionWork& w = m.w;
  const AttentionArgs& a = w.a;
  const int64_t start = int64_t{page} * a.page.tokens;
  if (IsInteger(a.arithmetic.qk) || !IsFloat(a.arithmetic.pv))
    return AttendSealed(w, a.k_pages[page], a.v_pages[page], start, prepared, m.rows);
  Scores(w, SealedRows(a.k_codec, a.page, a.k_pages[page], m.rows), start, prepared);
  SoftmaxTile(w, start);
  Values(w, SealedRows(a.v_codec, a.page, a.v_pages[page], m.rows), start);
}

// With more entries a page takes so long that there is nothing to wait for.
static constexpr int kAskingEntries = 16;

// The sealed pages [begin, end) that are listed and that some row sees.
static void AttendPages(const AttentionMemory& memory, int begin, int end) {
  const AttentionArgs& a = memory.w.a;
  const int listed = a.page_list != nullptr ? a.list_len : a.pages;
  const bool asks = memory.w.entries <= kAskingEntries;
  const int k_bytes = PageBytes(a.k_codec, a.page), v_bytes = PageBytes(a.v_codec, a.page);
  const std::byte* here = reinterpret_cast<const std::byte*>(memory.w.scores);
  LinesAhead k_ahead{here, here}, v_ahead{here, here};
  AttentionMemory m = memory;
  m.w.k_ahead = &k_ahead;
  m.w.v_ahead = &v_ahead;
  bool prepared = false;
  for (int i = a.page_list != nullptr ? 0 : begin; i < listed; ++i) {
    const int page = a.page_list != nullptr ? a.page_list[i] : i;
    if (page < begin) continue;
    if (page >= end) break;
    if (a.window > 0 && int64_t{page + 1} * a.page.tokens <= a.position - a.window + 1) continue;
    if (asks && i + 1 < listed) {
      const int next = a.page_list != nullptr ? a.page_list[i + 1] : i + 1;
      k_ahead = {a.k_pages[next], a.k_pages[next] + k_bytes - 1};
      v_ahead = {a.v_pages[next], a.v_pages[next] + v_bytes - 1};
    }
    AttendPage(m, page, prepared);
    prepared = true;
  }
}

// One block alone, into `state`. REQUIRES AttendsInBlocks(a.arithmetic).
static void AttentionBlock(const AttentionArgs& a, int block, float* state) {
  AttentionMemory m = MakeAttentionWork(a);
  UseState(m.w, state);
  ClearState(m.w);
  AttendPages(m, block * kAttentionBlockPages, (block + 1) * kAttentionBlockPages);
}

// REQUIRES page.tokens 64, page.head_dim a multiple of 8, and all rows inside one page.
static void Attention(const AttentionArgs& a) {
  AttentionMemory m = MakeAttentionWork(a);
  const AttentionWork& w = m.w;
  const bool in_blocks = AttendsInBlocks(a.arithmetic), is_sas = a.arithmetic.softmax != SoftmaxKind::kExact;
  if (is_sas) StartSas(w);
  if (!in_blocks) StartSealed(w);
  const int each = in_blocks ? kAttentionBlockPages : a.pages;
  for (int begin = 0, block = 0; begin < a.pages; begin += each, ++block) {
    if (a.states != nullptr) {
      MergeState(m, a.states + block * AttentionStateFloats(a.rows, a.group, a.page));
      continue;
    }
    AttendPages(m, begin, begin + each);
    if (!in_blocks) break;
    MergeState(m, m.block);
    ClearState(w);
  }
  const int tokens = a.page.tokens;
  const int64_t own = a.position - a.position % tokens;  // position of the raw page
  const int n = int(a.position - own) + a.rows;
  Scores(w, OpenPageRows(a.tail, RawTypeOf(a.k_codec), a.page, a.k_raw, n, m.rows), own);
  SoftmaxTile(w, own);
  Values(w, OpenPageRows(a.tail, RawTypeOf(a.v_codec), a.page, a.v_raw, n, m.rows), own);
  MergeState(m, m.block);
  AttentionOutput(m);
  if (is_sas && a.counters != nullptr) {
    a.counters->sas_rows += w.entries;
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
