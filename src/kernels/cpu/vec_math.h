// SPDX-License-Identifier: Apache-2.0
// Floor 4. Elementary functions over the vector policy.

// Largest power of two <= n, for register blocks.
static constexpr int Pow2AtMost(int n) {
  int p = 1;
  while (2 * p <= n) p *= 2;
  return p;
}

// e^x to 2e-7 relative. Below -86.5 it is 0 (the result would come near the subnormals), above 88.73
// infinity; NaN stays NaN. Cody-Waite reduction by ln 2 and the degree-6 polynomial of the Cephes library's
// expf. All vectors take a step before the next: one alone is a chain that a processor waits for.
template <int N>
static NIBBLE_HD void ExpEach(Vec16 (&x)[N]) {
  constexpr float kLowest = -86.5f, kHighest = 89.0f;
  constexpr float kCoefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                     5.0000001201e-1f};
  const auto each = [](auto&& f) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) f(i);
  };
  Vec16 n[N], r[N], p[N];
  each([&](int i) { r[i] = Vec16::Min(Vec16::Set1(kHighest), Vec16::Max(Vec16::Set1(kLowest), x[i])); });
  each([&](int i) { n[i] = Vec16::Mul(r[i], Vec16::Set1(1.44269504f)).Round(); });  // 1 / ln 2
  // ln 2 in two parts, the first exact in n * part
  each([&](int i) { r[i] = Vec16::Fma(n[i], Vec16::Set1(-0.693359375f), r[i]); });
  each([&](int i) { r[i] = Vec16::Fma(n[i], Vec16::Set1(2.12194440e-4f), r[i]); });
  each([&](int i) { p[i] = Vec16::Set1(1.9875691500e-4f); });
#pragma GCC unroll 8
  for (const float c : kCoefficients) each([&](int i) { p[i] = Vec16::Fma(p[i], r[i], Vec16::Set1(c)); });
  each([&](int i) { p[i] = Vec16::Fma(p[i], Vec16::Mul(r[i], r[i]), r[i]); });
  each([&](int i) { p[i] = Vec16::MulPow2(Vec16::Add(p[i], Vec16::Set1(1)), n[i]); });
  each([&](int i) { x[i] = Vec16::IfLess(x[i], Vec16::Set1(kLowest), Vec16::Zero(), p[i]); });
}

static NIBBLE_HD Vec16 Exp(Vec16 x) {
  Vec16 each[1] = {x};
  ExpEach(each);
  return each[0];
}

// x / (1 + e^-t): x times the logistic function of t.
static NIBBLE_HD Vec16 TimesSigmoid(Vec16 x, Vec16 t) {
  return Vec16::Div(x, Vec16::Add(Vec16::Set1(1), Exp(Vec16::Sub(Vec16::Zero(), t))));
}

// The normal distribution function, (1 + erf(x / sqrt 2)) / 2, to 2e-7 absolute: Abramowitz and
// Stegun 7.1.26.
static NIBBLE_HD Vec16 NormalCdf(Vec16 x) {
  const Vec16 zero = Vec16::Zero(), one = Vec16::Set1(1);
  const Vec16 z = Vec16::Mul(Vec16::Max(Vec16::Sub(zero, x), x), Vec16::Set1(0.70710678f));  // |x| / sqrt 2
  const Vec16 t = Vec16::Div(one, Vec16::Fma(z, Vec16::Set1(0.3275911f), one));
  Vec16 p = Vec16::Set1(1.061405429f);
  p = Vec16::Fma(p, t, Vec16::Set1(-1.453152027f));
  p = Vec16::Fma(p, t, Vec16::Set1(1.421413741f));
  p = Vec16::Fma(p, t, Vec16::Set1(-0.284496736f));
  p = Vec16::Fma(p, t, Vec16::Set1(0.254829592f));
  const Vec16 erfc = Vec16::Mul(Vec16::Mul(p, t), Exp(Vec16::Sub(zero, Vec16::Mul(z, z))));
  const Vec16 tail = Vec16::Mul(erfc, Vec16::Set1(0.5f));  // the mass beyond |x|
  return Vec16::IfLess(x, zero, tail, Vec16::Sub(one, tail));
}

// e^x to 1e-12 relative for x <= 700; below -700 it is e^-700. Taylor to degree 11 on |r| <= ln 2 / 2, where
// the next term is 6e-15.
static NIBBLE_HD Vec16d ExpDouble(Vec16d x) {
  const Vec16d magic = Vec16d::Set1(Vec16d::kPow2Magic);
  const Vec16d c = Vec16d::Max(Vec16d::Set1(-700), x);
  const Vec16d t = Vec16d::Add(Vec16d::Mul(c, Vec16d::Set1(1.4426950408889634)), magic);
  const Vec16d n = Vec16d::Sub(t, magic);
  Vec16d r = Vec16d::Fma(n, Vec16d::Set1(-0.693145751953125), c);  // ln 2 in two parts
  r = Vec16d::Fma(n, Vec16d::Set1(-1.4286068203094172e-6), r);
  Vec16d p = Vec16d::Set1(1.0 / 39916800);
  constexpr double kInverseFactorial[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                          1.0 / 720,     1.0 / 120,    1.0 / 24,    1.0 / 6,
                                          0.5,           1.0,          1.0};
  for (const double f : kInverseFactorial) p = Vec16d::Fma(p, r, Vec16d::Set1(f));
  return Vec16d::Mul(p, t.Pow2OfSum());
}
