// SPDX-License-Identifier: Apache-2.0
// Floor 4. The open page of a sequence: rows into INT8 codes (quant/kv/int8_tail.h), codes into a FlashQ
// page, and either kind of open page back into f32 rows.

static void TailAppend(const TailAppendArgs& a) {
  for (int row = 0; row < a.rows; ++row)
    a.counters->tail_clamped +=
        kv::Int8Tail::Append(a.shape, a.tail, a.first_token + row, a.x + row * a.x_stride, a.before);
  a.counters->tail_values += int64_t{a.rows} * a.shape.head_dim;
}

static void TailSeal(const TailSealArgs& a) {
  Visit(kv::Codecs{}, a.codec, [&]<class C>() {
    if constexpr (kv::HasInt8Codes<C>) kv::Int8Tail::Seal<C>(a.shape, a.tail, a.page);
  });
}

// Tokens [first, first + n) of an INT8 tail: kv::Int8Tail::Value to the bit, since the product is one.
static const float* Int8Rows(kv::PageShape s, const std::byte* tail, int first, int n, float* rows) {
  const Vec16 sign = Vec16::Set1(128), wrap = Vec16::Set1(256), nan = Vec16::Set1(__builtin_nanf(""));
  for (int i = 0; i < n; ++i) {
    const Vec16 step = Vec16::Set1(kv::Int8Tail::Step(s, tail, first + i));
    for (int d = 0; d < s.head_dim; d += 16) {  // the codes of the last token are not the last bytes
      const Vec16 u = Vec16::LoadU8(tail + (first + i) * s.head_dim + d);
      const Vec16 code = Vec16::IfLess(u, sign, u, Vec16::Sub(u, wrap));
      const Vec16 x = Vec16::Mul(code, step);
      Vec16::IfLess(code, Vec16::Set1(float(kv::Int8Tail::kBroken + 1)), nan, x)
          .StorePart(rows + i * s.head_dim + d, PartOf16(s.head_dim - d));
    }
  }
  return rows;
}

// Tokens [first, first + n) of an open page as f32 [n, head_dim]: in place where they are f32 already.
// REQUIRES n * head_dim a multiple of 8.
static const float* OpenRows(kv::Tail tail, DType type, kv::PageShape s, const std::byte* raw, int first,
                             int n, float* rows) {
  if (tail == kv::Tail::kInt8) return Int8Rows(s, raw, first, n, rows);
  return RawTile(type, raw + int64_t{first} * s.head_dim * SizeOf(type), n, s.head_dim, rows);
}
