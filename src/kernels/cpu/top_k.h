// SPDX-License-Identifier: Apache-2.0
// Floor 4. The k greatest of n values: exact, of equal ones the lower index, whatever the ISA. Values become
// 32-bit keys of the same order; the k-th greatest key is found digit by digit.

// A key above 0 that grows with x. NaNs lie at the ends.
static NIBBLE_HD uint32_t OrderKey(float x) {
  const uint32_t u = FloatToBits(x + 0.0f);  // -0 becomes +0: they are equal
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
static constexpr uint32_t kNeverKey = 0, kForcedKey = 0xffffffffu;

struct KeyThreshold {
  uint32_t key;  // the k-th greatest
  int equal;     // how many keys equal to it are among the k greatest
};

// REQUIRES 1 <= k <= n.
static KeyThreshold KthGreatest(const uint32_t* keys, int n, int k) {
  constexpr int kShift[] = {21, 10, 0}, kBits[] = {11, 11, 10};
  uint32_t known = 0, mask = 0;
  for (int digit = 0; digit < 3; ++digit) {
    const uint32_t low = (1u << kBits[digit]) - 1;
    int32_t count[2048];
    for (uint32_t i = 0; i <= low; ++i) count[i] = 0;
    for (int i = 0; i < n; ++i)
      if ((keys[i] & mask) == known) ++count[keys[i] >> kShift[digit] & low];
    uint32_t value = low;
    while (count[value] < k) k -= count[value--];
    known |= value << kShift[digit];
    mask |= low << kShift[digit];
  }
  return {known, k};
}

// Writes the indices of the k greatest keys, plus `add`, in ascending order. The k-th greatest of the maxima
// of blocks is not above the k-th greatest key, since k blocks hold a key as great: only blocks that reach it
// are looked into. `indices` has room for n, `work` for 2n.
static void TopK(const uint32_t* keys, int n, int k, int32_t add, int32_t* indices, uint32_t* work) {
  constexpr int kBlock = 16;
  const int blocks = n / kBlock;
  uint32_t *maxima = work, *candidates = work + n;
  for (int b = 0; b < blocks; ++b) {
    uint32_t most = 0;
    for (int i = 0; i < kBlock; ++i) most = keys[b * kBlock + i] > most ? keys[b * kBlock + i] : most;
    maxima[b] = most;
  }
  const uint32_t least = blocks > k ? KthGreatest(maxima, blocks, k).key : 0;
  int found = 0;
  const auto look = [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      indices[found] = i + add;
      candidates[found] = keys[i];
      found += keys[i] >= least;
    }
  };
  for (int b = 0; b < blocks; ++b)
    if (maxima[b] >= least) look(b * kBlock, (b + 1) * kBlock);
  look(blocks * kBlock, n);
  KeyThreshold t = KthGreatest(candidates, found, k);
  int taken = 0;
  for (int i = 0; i < found; ++i) {
    if (candidates[i] < t.key || (candidates[i] == t.key && t.equal-- <= 0)) continue;
    indices[taken++] = indices[i];
  }
}

// Ascending, in place. n is small and this runs only where a selection asks for an order.
static void HeapSort(uint64_t* x, int n) {
  const auto sift = [x](int root, int end) {
    while (2 * root + 1 < end) {
      int child = 2 * root + 1;
      if (child + 1 < end && x[child] < x[child + 1]) ++child;
      if (x[root] >= x[child]) return;
      const uint64_t t = x[root];
      x[root] = x[child];
      x[child] = t;
      root = child;
    }
  };
  for (int i = n / 2 - 1; i >= 0; --i) sift(i, n);
  for (int end = n - 1; end > 0; --end) {
    const uint64_t t = x[0];
    x[0] = x[end];
    x[end] = t;
    sift(0, end);
  }
}
