// SPDX-License-Identifier: Apache-2.0
// Floor 4. Rows of a packed weight as f32: the embedding, which may share its bytes with the output head. A
// row lies one element in 16, so this is a gather; it is a vanishing part of a step.

static void Embed(const EmbedArgs& a) {
  const int k = a.table.k;
  for (int row = 0; row < a.rows; ++row) {
    const int64_t panel = a.tokens[row] / weight::kPanel, lane = a.tokens[row] % weight::kPanel;
    const int64_t first = panel * k * weight::kPanel + lane;  // element of input 0
    float* y = a.y + int64_t{row} * k;
    const std::byte* codes = a.table.codes;
    switch (a.table.layout) {
      case weight::Layout::kF32:
        for (int i = 0; i < k; ++i)
          __builtin_memcpy(y + i, codes + 4 * (first + int64_t{i} * weight::kPanel), 4);
        break;
      case weight::Layout::kF16:
      case weight::Layout::kBF16: {
        const bool half = a.table.layout == weight::Layout::kF16;
        for (int i = 0; i < k; ++i) {
          uint16_t u;
          __builtin_memcpy(&u, codes + 2 * (first + int64_t{i} * weight::kPanel), 2);
          y[i] = half ? HalfToFloat(u) : Bf16ToFloat(u);
        }
        break;
      }
      case weight::Layout::kI8Channel: {
        const float scale = a.table.scale[a.tokens[row]];
        const std::byte* p = codes + panel * k * weight::kPanel + lane * 4;  // [k/4][16][4]
        for (int i = 0; i < k; ++i) y[i] = float(int8_t(p[i / 4 * (4 * weight::kPanel) + i % 4])) * scale;
        break;
      }
      default:
        __builtin_trap();  // no embedding is stored in 4 bits
    }
  }
}
