// SPDX-License-Identifier: Apache-2.0
// Floor 4. y[m, n] = sum_k x[m, k] w[n, k] over float weights. One lane is one output, and each output is one
// chain of multiply-adds with k ascending: whatever the blocking by rows, panels and stretches of k, the bits
// of a row are the same. Measured with 256 rows, k 1024, n 4096, bf16 weights, one thread:
// docs/decisions/0011-one-order-of-sums.md.

struct DenseF32 {
  static constexpr int kBytes = 4;
  static NIBBLE_HD Vec16 Load(const std::byte* p) { return Vec16::Load(p); }
};
struct DenseF16 {
  static constexpr int kBytes = 2;
  static NIBBLE_HD Vec16 Load(const std::byte* p) { return Vec16::LoadF16(p); }
};
struct DenseBf16 {
  static constexpr int kBytes = 2;
  static NIBBLE_HD Vec16 Load(const std::byte* p) { return Vec16::LoadBf16(p); }
};

static constexpr int kDenseMaxRows = kAccumulators >= 24 ? 12 : kAccumulators >= 6 ? 6 : 4;
static constexpr int kDenseGroup = 16;  // panels that share one copy of a block of x
static constexpr int kDenseXFloats =
    3072;  // that copy: 12 KiB, a quarter of the smallest first-level cache in use
static constexpr int kDenseMaxPanels =
    8;  // streams of weights at once; enough chains to hide the latency at 1 row

// What one block of rows works on.
struct DenseBlock {
  alignas(64) float x[kDenseXFloats];  // [rows, k_count], rounded to bf16 if asked
  alignas(64) float sum[kDenseMaxRows * kDenseGroup * weight::kPanel];  // [rows, kDenseGroup, 16]
};

// Inputs of R rows that fit into the copy of x; also its row stride, which is a constant so that one pointer
// and displacements reach all rows.
template <int R>
static constexpr int kDenseStretch = kDenseXFloats / R / weight::kPanel* weight::kPanel;

// sum[r][p] += x[r][:] w[p][:] for R rows and P panels. Not inlined: among other code the compiler runs out
// of registers and keeps a weight in memory.
template <class W, int R, int P>
static __attribute__((noinline)) void DenseMicro(const float* x, const std::byte* w, int64_t panel_bytes,
                                                 int k_count, float* sum) {
  Vec16 s[R][P];  // every loop over R or P must be unrolled for this to stay in registers
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) s[r][p] = Vec16::Load(sum + (r * kDenseGroup + p) * weight::kPanel);
  for (int k = 0; k < k_count; ++k) {
    Vec16 wk[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
      wk[p] = W::Load(w + p * panel_bytes + int64_t{k} * weight::kPanel * W::kBytes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec16 xk = Vec16::Set1(x[r * kDenseStretch<R> + k]);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) s[r][p] = Vec16::Fma(xk, wk[p], s[r][p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) s[r][p].Store(sum + (r * kDenseGroup + p) * weight::kPanel);
}

// All panels of a group, P at a time, then P / 2, ...
template <class W, int R, int P>
static NIBBLE_HD void DensePanels(DenseBlock& b, const std::byte* w, int64_t panel_bytes, int k_count, int p,
                                  int panels) {
  for (; p + P <= panels; p += P)
    DenseMicro<W, R, P>(b.x, w + p * panel_bytes, panel_bytes, k_count, b.sum + p * weight::kPanel);
  if constexpr (P > 1) DensePanels<W, R, P / 2>(b, w, panel_bytes, k_count, p, panels);
}

template <int R>
static void DenseCopyX(const LinearArgs& a, int row, int k_begin, int k_count, float* x) {
  for (int r = 0; r < R; ++r) {
    const float* from = a.x + (row + r) * a.x_stride + k_begin;
    for (int k = 0; k < k_count; k += weight::kPanel) {
      const int n = k_count - k < weight::kPanel ? k_count - k : weight::kPanel;
      Vec16 v = Vec16::LoadPart(from + k, n);
      if (a.arith == MatmulArith::kBF16) v = v.RoundToBf16();
      v.StorePart(x + r * kDenseStretch<R> + k, n);
    }
  }
}

static void DenseStore(const LinearArgs& a, const DenseBlock& b, int row, int rows, int panel, int panels) {
  for (int r = 0; r < rows; ++r) {
    for (int p = 0; p < panels; ++p) {
      const int n0 = (panel + p) * weight::kPanel,
                n = a.w.n - n0 < weight::kPanel ? a.w.n - n0 : weight::kPanel;
      float* y = a.y + (row + r) * a.y_stride + n0;
      Vec16 v = Vec16::Load(b.sum + (r * kDenseGroup + p) * weight::kPanel);
      if (a.bias != nullptr) v = Vec16::Add(v, Vec16::LoadPart(a.bias + n0, n));
      if (a.accumulate) v = Vec16::Add(Vec16::LoadPart(y, n), v);
      v.StorePart(y, n);
    }
  }
}

template <class W, int R>
static void DenseRows(const LinearArgs& a, DenseBlock& b, int row, int panel, int panels) {
  constexpr int kP = Pow2AtMost(kAccumulators / R < kDenseMaxPanels ? kAccumulators / R : kDenseMaxPanels);
  const int64_t panel_bytes = int64_t{a.w.k} * weight::kPanel * W::kBytes;
  for (int i = 0; i < R * kDenseGroup * weight::kPanel; ++i) b.sum[i] = 0;
  for (int k = 0; k < a.w.k; k += kDenseStretch<R>) {
    const int count = a.w.k - k < kDenseStretch<R> ? a.w.k - k : kDenseStretch<R>;
    DenseCopyX<R>(a, row, k, count, b.x);
    const std::byte* w = a.w.codes + panel * panel_bytes + int64_t{k} * weight::kPanel * W::kBytes;
    DensePanels<W, R, kP>(b, w, panel_bytes, count, 0, panels);
  }
  DenseStore(a, b, row, R, panel, panels);
}

// Rows in blocks of R, then of the smaller sizes.
template <class W, int R>
static NIBBLE_HD void DenseRowBlocks(const LinearArgs& a, DenseBlock& b, int row, int panel, int panels) {
  for (; row + R <= a.rows; row += R) DenseRows<W, R>(a, b, row, panel, panels);
  constexpr int kNext = R > 6 ? 6 : R > 4 ? 4 : R / 2;
  if constexpr (kNext > 0) DenseRowBlocks<W, kNext>(a, b, row, panel, panels);
}

template <class W>
static void DenseMatmul(const LinearArgs& a) {
  DenseBlock b;
  for (int panel = a.panel_begin; panel < a.panel_end; panel += kDenseGroup) {
    const int panels = a.panel_end - panel < kDenseGroup ? a.panel_end - panel : kDenseGroup;
    DenseRowBlocks<W, kDenseMaxRows>(a, b, 0, panel, panels);
  }
}

static void LinearDense(const LinearArgs& a) {
  switch (a.w.layout) {
    case weight::Layout::kF32:
      return DenseMatmul<DenseF32>(a);
    case weight::Layout::kF16:
      return DenseMatmul<DenseF16>(a);
    case weight::Layout::kBF16:
      return DenseMatmul<DenseBf16>(a);
    default:
      __builtin_trap();  // all.inl sends the integer layouts elsewhere
  }
}

static const char* LinearDenseName(weight::Layout layout, MatmulArith arith) {
  const bool round = arith == MatmulArith::kBF16;
  switch (layout) {
    case weight::Layout::kF32:
      return round ? "dense-f32/bf16-fma" : "dense-f32/fma";
    case weight::Layout::kF16:
      return round ? "dense-f16/bf16-fma" : "dense-f16/fma";
    default:
      return round ? "dense-bf16/bf16-fma" : "dense-bf16/fma";
  }
}
