// SPDX-License-Identifier: Apache-2.0
// Floor 4. log(sum(exp(x))) of rows of logits. The exponentials are taken and summed in double: perplexity
// and KL divergence are small differences of these. A row with NaN has a NaN result and argmax 0.

static NIBBLE_HD Vec16 LoadLogits(const float* x, int i, int k) {  // lanes past the end are -infinity
  if (k - i >= 16) return Vec16::Load(x + i);
  const Vec16 part = Vec16::LoadPart(x + i, k - i);
  return Vec16::IfLess(Vec16::Lanes(), Vec16::Set1(float(k - i)), part, Vec16::Set1(-__builtin_inff()));
}

static NIBBLE_HD int FirstEqual(const float* x, int k, float value) {
  for (int i = 0; i < k; i += 16) {
    const uint32_t mask = Vec16::EqualMask(LoadLogits(x, i, k), Vec16::Set1(value));
    if (mask != 0) return i + __builtin_ctz(mask);
  }
  return 0;
}

static void LogSumExp(const LogSumExpArgs& a) {
  for (int row = 0; row < a.rows; ++row) {
    const float* x = a.x + row * a.x_stride;
    Vec16 max = LoadLogits(x, 0, a.k);
    for (int i = 16; i < a.k; i += 16) max = Vec16::Max(LoadLogits(x, i, a.k), max);
    const float m = max.MaxLane();
    const Vec16d base = Vec16d::Set1(double(m));
    Vec16d sum = Vec16d::Set1(0);
    for (int i = 0; i < a.k; i += 16) {
      const Vec16d d = Vec16d::Sub(Vec16d::FromFloat(LoadLogits(x, i, a.k)), base);
      sum = Vec16d::Add(sum, ExpDouble(d));
    }
    a.max[row] = m;
    a.lse[row] = double(m) + __builtin_log(sum.Sum());
    a.argmax[row] = FirstEqual(x, a.k, m);
  }
}
