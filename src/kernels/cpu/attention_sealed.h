// SPDX-License-Identifier: Apache-2.0
// Floor 4. A sealed page in the arithmetic of a recipe (recipe/arithmetic.h) where that is more than floats.

static void StartSealed(const AttentionWork& w) {
  if (!IsInteger(w.a.arithmetic.qk)) return;
  const SealedTile s = SealedTileOf(w);
  __builtin_memset(s.mean_score, 0, size_t(w.a.group) * size_t(w.a.page.tokens) * sizeof(float));
  QuantizeQueries(w, s);
}

static void AttendSealed(const AttentionWork& w, const std::byte* k_page, const std::byte* v_page,
                         int64_t start, bool prepared, float* rows) {
  const AttentionArgs& a = w.a;
  const SealedTile s = SealedTileOf(w);
  if (IsInteger(a.arithmetic.qk)) {
    QuantizeKeys(w, s, k_page, DecodePage(a.k_codec, a.page, k_page, rows), rows);
    IntegerScores<kAttentionEntries>(w, s, start, 0);
  } else {
    Scores(w, SealedRows(a.k_codec, a.page, k_page, rows), start, prepared);
  }
  SoftmaxTile(w, start);
  if (IsFloat(a.arithmetic.pv)) return Values(w, SealedRows(a.v_codec, a.page, v_page, rows), start);
  const float* v = DecodePage(a.v_codec, a.page, v_page, rows);
  switch (a.arithmetic.pv) {
    case PvArith::kF32:
    case PvArith::kBF16:
      return;
    case PvArith::kFp8:
      return RoundedValues<Fp22Sum>(w, s, v, rows, start);
    case PvArith::kFp8F16:
      return RoundedValues<Fp8F16Sum>(w, s, v, rows, start);
    case PvArith::kF16:
      return RoundedValues<F16Sum>(w, s, v, rows, start);
    case PvArith::kInt8:
      QuantizeWeights(w, s, start, PackValues(w, s, v_page, v));
      return IntegerValues<kAttentionEntries>(w, s, start, 0);
  }
}
