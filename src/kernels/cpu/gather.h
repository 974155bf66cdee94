// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention over a list of tokens, for one query row and KV head: softmax in two passes, in f32. A
// token's row is decoded alone; the list is ascending, and every sum runs in its order.

struct SelectWork {        // inside SelectRow::scratch
  int capacity;            // tokens, a multiple of the page's
  float* approx;           // [group, capacity] approximate logits, then weights, of all tokens
  float* weights;          // [group, capacity] of the tokens of the list
  uint32_t* keys;          // [capacity]
  int32_t* tokens;         // [capacity] the list: positions
  uint64_t* order;         // [capacity]
  float* tile;             // [page_tokens, head_dim]
  float* acc;              // [group, head_dim]
  float* query;            // [group, head_dim] chosen channels
  float* sum;              // [head_dim] of rows of V
  float* mean;             // [head_dim]
  float* magnitude;        // [head_dim] of the queries, by channel
  int32_t* channels;       // [head_dim]
  uint32_t* channel_keys;  // [head_dim]
};

static SelectWork MakeSelectWork(const SelectRow& r) {
  const int tokens = r.page.tokens, dim = r.page.head_dim, group = r.group;
  SelectWork w;
  w.capacity = int((r.position - r.first / tokens * tokens) / tokens + 1) * tokens;
  float* p = r.scratch;
  w.approx = p, p += group * w.capacity;
  w.weights = p, p += group * w.capacity;
  w.order = reinterpret_cast<uint64_t*>(p), p += 2 * w.capacity;
  w.keys = reinterpret_cast<uint32_t*>(p), p += w.capacity;
  w.tokens = reinterpret_cast<int32_t*>(p), p += w.capacity;
  w.tile = p, p += tokens * dim;
  w.acc = p, p += group * dim;
  w.query = p, p += group * dim;
  w.sum = p, p += dim;
  w.mean = p, p += dim;
  w.magnitude = p, p += dim;
  w.channels = reinterpret_cast<int32_t*>(p), p += dim;
  w.channel_keys = reinterpret_cast<uint32_t*>(p);
  return w;
}

// One token of a page. Codecs that are not listed go through their own DecodeRow or Decode8.
template <class C>
static NIBBLE_HD const float* TokenRow(kv::PageShape s, const std::byte* page, int t, float* row) {
  if constexpr (C::kId == kv::CodecId::kF32 || C::kId == kv::CodecId::kF16 || C::kId == kv::CodecId::kBF16) {
    return RawTile(C::kRaw, page + int64_t{t} * s.head_dim * SizeOf(C::kRaw), 1, s.head_dim, row);
  } else if constexpr (C::kId == kv::CodecId::kInt8Token || C::kId == kv::CodecId::kInt4Token) {
    constexpr bool kNibbles = C::kLevels == 15;
    const Vec16 scale = Vec16::Set1(HalfToFloat(kv::LoadU16(page + C::ScaleOffset(s) + 2 * t)));
    const Vec16 min = Vec16::Set1(HalfToFloat(kv::LoadU16(page + C::MinOffset(s) + 2 * t)));
    const std::byte* codes = page + (kNibbles ? t * s.head_dim / 2 : t * s.head_dim);
    int d = 0;
    for (; d + 16 <= s.head_dim; d += 16)
      Vec16::Fma(kNibbles ? Vec16::LoadU4(codes + d / 2) : Vec16::LoadU8(codes + d), scale, min)
          .Store(row + d);
    if (d < s.head_dim) C::Decode8(s, page, t, d, row + d);
  } else {
    kv::DecodeRow<C>(s, page, t, row);
  }
  return row;
}

// The f32 rows of tokens[0 .. n), n <= 16, of K or V; the rest of `rows` repeats the first.
static void LoadRows(const SelectRow& r, bool is_v, const int32_t* tokens, int n, float* tile,
                     const float** rows) {
  const int dim = r.page.head_dim, page_tokens = r.page.tokens;
  const int own = int(r.position) / page_tokens;
  const kv::CodecId codec = is_v ? r.v_codec : r.k_codec;
  Visit(kv::Codecs{}, codec, [&]<class C>() {
    for (int i = 0; i < n; ++i) {
      const int page = tokens[i] / page_tokens, t = tokens[i] % page_tokens;
      float* row = tile + i * dim;
      rows[i] = page == own ? OpenRows(r.tail, C::kRaw, r.page, is_v ? r.v_raw : r.k_raw, t, 1, row)
                            : TokenRow<C>(r.page, (is_v ? r.v_pages : r.k_pages)[page], t, row);
    }
  });
  for (int i = n; i < 16; ++i) rows[i] = rows[0];
}

// scores[group, stride] of the list: lane-wise products over head_dim, then Vec16::SumEach.
static void GatherScores(const SelectRow& r, const SelectWork& w, int n, float* scores) {
  constexpr int kT = Pow2AtMost(kAccumulators < 16 ? kAccumulators : 16);
  const int dim = r.page.head_dim;
  for (int at = 0; at < n; at += 16) {
    const float* rows[16];
    LoadRows(r, false, w.tokens + at, PartOf16(n - at), w.tile, rows);
    for (int g = 0; g < r.group; ++g) {
      const float* q = r.q + int64_t{g} * dim;
      Vec16 part[16];
      for (int j0 = 0; j0 < 16; j0 += kT) {
        Vec16 s[kT];
        for (int j = 0; j < kT; ++j) s[j] = Vec16::Zero();
        for (int d = 0; d < dim; d += 16) {
          const int lanes = PartOf16(dim - d);
          const Vec16 qd = Vec16::LoadPart(q + d, lanes);
          for (int j = 0; j < kT; ++j) s[j] = Vec16::Fma(qd, Vec16::LoadPart(rows[j0 + j] + d, lanes), s[j]);
        }
        for (int j = 0; j < kT; ++j) part[j0 + j] = s[j];
      }
      Vec16::Mul(Vec16::SumEach(part), Vec16::Set1(r.scale)).Store(scores + int64_t{g} * w.capacity + at);
    }
  }
}

// Softmax of x[0 .. n) in place; up to the next multiple of 16 it becomes 0.
static void SoftmaxInPlace(float* x, int n) {
  constexpr float kNone = -__builtin_inff();
  for (int i = n; i % 16 != 0; ++i) x[i] = kNone;
  Vec16 top = Vec16::Set1(kNone);
  for (int i = 0; i < n; i += 16) top = Vec16::Max(Vec16::Load(x + i), top);
  const Vec16 max = Vec16::Set1(top.MaxLane());
  Vec16 total = Vec16::Zero();
  for (int i = 0; i < n; i += 16) {
    const Vec16 p = Exp(Vec16::Sub(Vec16::Load(x + i), max));
    p.Store(x + i);
    total = Vec16::Add(total, p);
  }
  const Vec16 inverse = Vec16::Set1(1.0f / total.Sum());
  for (int i = 0; i < n; i += 16) Vec16::Mul(Vec16::Load(x + i), inverse).Store(x + i);
}

// acc[group, head_dim] = weights V, and sum[head_dim] = the plain sum of V, over the list.
static void GatherValues(const SelectRow& r, const SelectWork& w, int n) {
  const int dim = r.page.head_dim;
  for (int i = 0; i < r.group * dim; ++i) w.acc[i] = 0;
  for (int i = 0; i < dim; ++i) w.sum[i] = 0;
  for (int at = 0; at < n; at += 16) {
    const float* rows[16];
    const int count = PartOf16(n - at);
    LoadRows(r, true, w.tokens + at, count, w.tile, rows);
    for (int d = 0; d < dim; d += 16) {
      const int lanes = PartOf16(dim - d);
      Vec16 sum = Vec16::LoadPart(w.sum + d, lanes);
      for (int j = 0; j < count; ++j) sum = Vec16::Add(sum, Vec16::LoadPart(rows[j] + d, lanes));
      sum.StorePart(w.sum + d, lanes);
      for (int g = 0; g < r.group; ++g) {
        const float* p = w.weights + int64_t{g} * w.capacity + at;
        Vec16 acc = Vec16::LoadPart(w.acc + g * dim + d, lanes);
        for (int j = 0; j < count; ++j)
          acc = Vec16::Fma(Vec16::Set1(p[j]), Vec16::LoadPart(rows[j] + d, lanes), acc);
        acc.StorePart(w.acc + g * dim + d, lanes);
      }
    }
  }
}

// Attention over the first n tokens of the list: w.weights, w.acc and w.sum.
static void Gather(const SelectRow& r, const SelectWork& w, int n) {
  GatherScores(r, w, n, w.weights);
  for (int g = 0; g < r.group; ++g) SoftmaxInPlace(w.weights + int64_t{g} * w.capacity, n);
  GatherValues(r, w, n);
}

static void CopyAccToOut(const SelectRow& r, const SelectWork& w) {
  for (int i = 0; i < r.group * r.page.head_dim; ++i) r.out[i] = w.acc[i];
}

// The list is all that the row sees. Returns its length.
static int ListAll(const SelectRow& r, const SelectWork& w) {
  const int n = int(r.position - r.first) + 1;
  for (int i = 0; i < n; ++i) w.tokens[i] = int32_t(r.first) + i;
  return n;
}

// Reading K and V of the list: tokens, the scalars of the transfer model (with the write of the row's own K
// and V) and bytes.
static void CountList(const SelectRow& r, const SelectWork& w, int n) {
  const int own = int(r.position) / r.page.tokens;
  int64_t sealed = 0, raw = 0, pages = 0;
  for (int i = 0, last = -1; i < n; ++i) {
    const int page = w.tokens[i] / r.page.tokens;
    if (page == own) {
      raw = n - i;
      break;
    }
    ++sealed;
    pages += page != last;
    last = page;
  }
  r.counters->tokens_read += n;
  r.counters->scalars_read += (2 * int64_t{n} + 2) * r.page.head_dim;
  r.counters->bytes_read += sealed * (r.k_bytes.token + r.v_bytes.token) +
                            pages * (r.k_bytes.shared + r.v_bytes.shared) +
                            raw * (r.k_bytes.raw + r.v_bytes.raw);
}

// StreamingLLM's window: the first positions (where the row still sees them) and the newest.
static void WindowRow(const WindowArgs& a) {
  const SelectRow& r = a.row;
  const SelectWork w = MakeSelectWork(r);
  int n = 0;
  if (r.position - r.first < a.window.k) {
    n = ListAll(r, w);
  } else {
    for (int64_t t = r.first; t < a.window.sinks; ++t) w.tokens[n++] = int32_t(t);
    for (int64_t t = r.position - (a.window.k - n) + 1; t <= r.position; ++t) w.tokens[n++] = int32_t(t);
  }
  Gather(r, w, n);
  CopyAccToOut(r, w);
  ++r.counters->rows;
  CountList(r, w, n);
}
