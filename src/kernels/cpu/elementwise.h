// SPDX-License-Identifier: Apache-2.0
// Floor 4. RMSNorm, RoPE and gated activations. Rows are independent; the last vector of a row is partial.

static NIBBLE_HD int PartOf16(int left) { return left < 16 ? left : 16; }

// y = x / sqrt(mean(x^2) + eps) * weight, the normalised x rounded before it meets the weight, as
// transformers does.
static void RmsNorm(const NormArgs& a) {
  for (int row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.x_stride;
    float* y = a.y + row * a.y_stride;
    Vec16 squares = Vec16::Zero();
    for (int i = 0; i < a.k; i += 16) {
      const Vec16 v = Vec16::LoadPart(x + i, PartOf16(a.k - i));
      squares = Vec16::Fma(v, v, squares);
    }
    const float mean = squares.Sum() / float(a.k);
    const Vec16 scale = Vec16::Set1(1.0f / __builtin_sqrtf(mean + a.eps));
    for (int i = 0; i < a.k; i += 16) {
      const int n = PartOf16(a.k - i);
      const Vec16 v = Vec16::Mul(Vec16::LoadPart(x + i, n), scale);
      Vec16::Mul(v, Vec16::LoadPart(a.weight + i, n)).StorePart(y + i, n);
    }
  }
}

static void RopeTable(const RopeTableArgs& a) {
  const int half = a.head_dim / 2;
  for (int row = 0; row < a.rows; ++row) {
    for (int i = 0; i < half; ++i) {
      const float angle = float(a.positions[row]) * a.inv_freq[i];
      a.cos[int64_t{row} * half + i] = __builtin_cosf(angle);
      a.sin[int64_t{row} * half + i] = __builtin_sinf(angle);
    }
  }
}

// (x1, x2) <- (x1 cos - x2 sin, x2 cos + x1 sin), every product rounded: the same bits on all ISAs.
static void Rope(const RopeArgs& a) {
  const int half = a.head_dim / 2;
  for (int row = 0; row < a.rows; ++row) {
    for (int head = 0; head < a.heads; ++head) {
      float* x1 = a.x + row * a.x_stride + int64_t{head} * a.head_dim;
      float* x2 = x1 + half;
      for (int i = 0; i < half; i += 16) {
        const int n = PartOf16(half - i);
        const Vec16 c = Vec16::LoadPart(a.cos + int64_t{row} * half + i, n);
        const Vec16 s = Vec16::LoadPart(a.sin + int64_t{row} * half + i, n);
        const Vec16 u = Vec16::LoadPart(x1 + i, n), v = Vec16::LoadPart(x2 + i, n);
        Vec16::Sub(Vec16::Mul(u, c), Vec16::Mul(v, s)).StorePart(x1 + i, n);
        Vec16::Add(Vec16::Mul(v, c), Vec16::Mul(u, s)).StorePart(x2 + i, n);
      }
    }
  }
}

struct Silu {
  static NIBBLE_HD Vec16 Of(Vec16 x) { return TimesSigmoid(x, x); }
};
struct Gelu {
  static NIBBLE_HD Vec16 Of(Vec16 x) { return Vec16::Mul(x, NormalCdf(x)); }
};
struct GeluTanh {  // x / 2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  static NIBBLE_HD Vec16 Of(Vec16 x) {
    const Vec16 cubic = Vec16::Fma(Vec16::Mul(x, x), Vec16::Set1(0.044715f), Vec16::Set1(1));
    return TimesSigmoid(x, Vec16::Mul(Vec16::Mul(x, cubic), Vec16::Set1(1.5957691216f)));
  }
};

template <class A>
static void GluRows(const GluArgs& a) {
  for (int row = 0; row < a.rows; ++row) {
    const float* gate = a.gate + row * a.gate_stride;
    const float* up = a.up + row * a.up_stride;
    float* y = a.y + row * a.y_stride;
    for (int i = 0; i < a.k; i += 16) {
      const int n = PartOf16(a.k - i);
      Vec16::Mul(A::Of(Vec16::LoadPart(gate + i, n)), Vec16::LoadPart(up + i, n)).StorePart(y + i, n);
    }
  }
}

static void Glu(const GluArgs& a) {
  switch (a.activation) {
    case Activation::kSilu:
      return GluRows<Silu>(a);
    case Activation::kGelu:
      return GluRows<Gelu>(a);
    case Activation::kGeluTanh:
      return GluRows<GeluTanh>(a);
  }
}
