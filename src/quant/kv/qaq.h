// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec qaq: QAQ (arXiv 2403.04643) as bit planes. A token has a minimum and a range, its values the
// codes of the midpoint quantizer, a few outliers are stored exactly. The code of fewer bits is the high bits
// of the code of more, so a page narrows by dropping planes. It is the codec that requantizes: in the cache a
// page is a record (this header, ranges) whose planes and outliers lie in arenas; EncodePage lays them out
// behind the record. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

inline constexpr int kQaqPlanes = 8;
inline constexpr int kQaqCellBytes = 64, kQaqCellOutliers = 15;  // u32 each, then the next cell
inline constexpr int kQaqMaxOutliers = 26;                       // at each end: 2.5% of 1024 channels
inline constexpr double kQaqMaxOutlierShare = 0.05;

struct QaqHeader {
  int64_t planes_at, cells_at;  // from the page's first byte to cell 0 of the arenas
  float half_range;             // greatest of the tokens
  float fresh;                  // V: greatest weight * half range of a token, over the window's rows so far
  float importance;             // V: what decided last
  float need;                   // range over the standard deviation allowed, greatest of the tokens
  uint32_t plane[kQaqPlanes];   // most significant first; those below `resident` are stored
  uint32_t first_cell;          // of the outliers
  uint16_t outliers;
  uint8_t width, resident;  // planes that are read, planes that are stored
  uint8_t differed;         // updates in a row that wanted another width
  uint8_t unused[7];
};
static_assert(sizeof(QaqHeader) == 80);

NIBBLE_HD QaqHeader LoadQaqHeader(const std::byte* page) {
  QaqHeader h;
  memcpy(&h, page, sizeof h);
  return h;
}
NIBBLE_HD void StoreQaqHeader(std::byte* page, const QaqHeader& h) { memcpy(page, &h, sizeof h); }

NIBBLE_HD int QaqPlaneBytes(PageShape s) { return s.tokens * s.head_dim / 8; }
NIBBLE_HD int QaqMinOffset(int token) { return int(sizeof(QaqHeader)) + 2 * token; }
NIBBLE_HD int QaqHalfRangeOffset(PageShape s, int token) { return QaqMinOffset(s.tokens + token); }
NIBBLE_HD int QaqRecordBytes(PageShape s) {
  return (QaqMinOffset(2 * s.tokens) + 7) / 8 * 8;  // the header is read in place
}
NIBBLE_HD int QaqCells(int outliers) { return (outliers + kQaqCellOutliers - 1) / kQaqCellOutliers; }
NIBBLE_HD std::byte* QaqPlane(PageShape s, std::byte* page, const QaqHeader& h, int plane) {
  return page + h.planes_at + int64_t{h.plane[plane]} * QaqPlaneBytes(s);
}
NIBBLE_HD const std::byte* QaqPlane(PageShape s, const std::byte* page, const QaqHeader& h, int plane) {
  return page + h.planes_at + int64_t{h.plane[plane]} * QaqPlaneBytes(s);
}

// The indices of the `low` least and the `high` greatest values, outermost first; of equal values the lower
// index counts as less. REQUIRES low + high <= n, each at most kQaqMaxOutliers + 1.
struct QaqExtremes {
  int low[kQaqMaxOutliers + 1], high[kQaqMaxOutliers + 1];

  NIBBLE_HD QaqExtremes(const float* x, int n, int low_count, int high_count) {
    int lows = 0, highs = 0;
    for (int i = 0; i < n; ++i) {
      int at = lows;
      while (at > 0 && x[i] < x[low[at - 1]]) --at;
      if (at < low_count) {
        lows += lows < low_count;
        for (int j = lows - 1; j > at; --j) low[j] = low[j - 1];
        low[at] = i;
      }
      at = highs;
      while (at > 0 && x[i] >= x[high[at - 1]]) --at;
      if (at < high_count) {
        highs += highs < high_count;
        for (int j = highs - 1; j > at; --j) high[j] = high[j - 1];
        high[at] = i;
      }
    }
  }
};

struct QaqRange {                   // of a token
  uint16_t min = 0x7e00, half = 0;  // f16; half the range, which f16 holds where the range overflows
};

// The code of all eight bits. An outlier's is that of the nearest end, and is never read.
NIBBLE_HD int QaqCode8(float x, float min, float half) {
  const float position = half > 0 ? (x - min) / (2 * half) * 256.0f : 0.0f;
  const float inside = position > 0 ? (position < 255 ? position : 255.0f) : 0.0f;  // NaN: 0
  return int(inside);
}
// Decoded at the middle of its segment. The product is exact in f32 (9 + 11 bits), so fused or not is the
// same.
NIBBLE_HD float QaqStep(float half, int bits) { return half * BitsToFloat(uint32_t(128 - bits) << 23); }
NIBBLE_HD float QaqDecode(int code, float min, float half, int bits) {
  return (float(code) + 0.5f) * QaqStep(half, bits) + min;
}

// Whether f16 holds every value of a row. One that it does not hold gets min NaN, and all its channels decode
// as NaN: a broken value stays visible.
NIBBLE_HD bool QaqFits(const float* x, int head_dim) {
  bool fits = true;
  for (int i = 0; i < head_dim; ++i) fits &= (x[i] >= -kHalfMax) & (x[i] <= kHalfMax);
  return fits;
}

// Range of the values that are left when the extremes are taken away.
NIBBLE_HD QaqRange QaqFit(const float* x, int head_dim, const QaqExtremes& e, int low, int high) {
  float lo = 0, hi = 0;
  bool first = true;
  for (int i = 0; i < head_dim; ++i) {
    bool outlier = false;
    for (int j = 0; j < low; ++j) outlier |= e.low[j] == i;
    for (int j = 0; j < high; ++j) outlier |= e.high[j] == i;
    if (outlier) continue;
    lo = first || x[i] < lo ? x[i] : lo;
    hi = first || x[i] > hi ? x[i] : hi;
    first = false;
  }
  QaqRange r;
  r.min = FloatToHalf(lo + 0.0f);  // -0 becomes +0: the order of equal zeros leaves no trace
  const float half = (hi - HalfToFloat(r.min)) / 2;
  r.half = FloatToHalf(half);
  if (HalfToFloat(r.half) < half) ++r.half;  // up, so that no value lies above the last segment
  return r;
}

NIBBLE_HD void StoreQaqRange(PageShape s, std::byte* page, int token, QaqRange r) {
  StoreU16(page + QaqMinOffset(token), r.min);
  StoreU16(page + QaqHalfRangeOffset(s, token), r.half);
}
NIBBLE_HD QaqRange LoadQaqRange(PageShape s, const std::byte* page, int token) {
  return {LoadU16(page + QaqMinOffset(token)), LoadU16(page + QaqHalfRangeOffset(s, token))};
}

// Planes [first, last) of one token's row.
NIBBLE_HD void QaqStoreCodes(PageShape s, std::byte* page, const QaqHeader& h, int token, const float* x,
                             int first, int last) {
  const QaqRange r = LoadQaqRange(s, page, token);
  const float min = HalfToFloat(r.min), half = HalfToFloat(r.half);
  for (int d = 0; d < s.head_dim; d += 8) {
    int code[8];
    for (int i = 0; i < 8; ++i) code[i] = QaqCode8(x[d + i], min, half);
    for (int b = first; b < last; ++b) {
      int bits = 0;
      for (int i = 0; i < 8; ++i) bits |= (code[i] >> (kQaqPlanes - 1 - b) & 1) << i;
      QaqPlane(s, page, h, b)[(token * s.head_dim + d) / 8] = std::byte(bits);
    }
  }
}

// Appends to a page's list of outliers; take() gives the index of a new cell.
struct QaqOutlierWriter {
  std::byte* page;
  QaqHeader* header;
  std::byte* cell = nullptr;

  template <class TakeCell>
  NIBBLE_HD void Add(int token, int channel, float x, TakeCell take) {
    const int at = header->outliers++ % kQaqCellOutliers;
    if (at == 0) {
      const uint32_t index = take();
      if (cell == nullptr) {
        header->first_cell = index;
      } else {
        memcpy(cell + kQaqCellBytes - 4, &index, 4);
      }
      cell = page + header->cells_at + int64_t{index} * kQaqCellBytes;
      memset(cell, 0, kQaqCellBytes);
    }
    StoreU16(cell + 4 * at, uint16_t(token << 10 | channel));
    StoreU16(cell + 4 * at + 2, FloatToHalf(x));
  }
};

// f(token, channel, f16 bits) for each outlier, tokens ascending.
template <class F>
NIBBLE_HD void ForEachQaqOutlier(const std::byte* page, const QaqHeader& h, F f) {
  uint32_t index = h.first_cell;
  for (int i = 0; i < h.outliers; ++i) {
    const std::byte* cell = page + h.cells_at + int64_t{index} * kQaqCellBytes;
    const int at = i % kQaqCellOutliers;
    const int where = LoadU16(cell + 4 * at);
    f(where >> 10, where & 1023, LoadU16(cell + 4 * at + 2));
    if (at + 1 == kQaqCellOutliers) memcpy(&index, cell + kQaqCellBytes - 4, 4);
  }
}

struct Qaq {
  static constexpr CodecId kId = CodecId::kQaq;
  static constexpr const char* kName = "qaq";
  static constexpr DType kRaw = DType::kF16;
  static constexpr bool kRequantizes = true;  // pages are private to a sequence

  // The page that EncodePage lays out, as a recipe's defaults would: 1% outliers, all planes.
  NIBBLE_HD static int OutliersEach(PageShape s) { return (s.head_dim + 199) / 200; }
  NIBBLE_HD static int RecordBytes(PageShape s) { return QaqRecordBytes(s); }  // in the pool
  NIBBLE_HD static int PlanesOffset(PageShape s) { return RecordBytes(s); }
  NIBBLE_HD static int CellsOffset(PageShape s) { return PlanesOffset(s) + kQaqPlanes * QaqPlaneBytes(s); }
  NIBBLE_HD static int PageBytes(PageShape s) {
    return CellsOffset(s) + QaqCells(2 * OutliersEach(s) * s.tokens) * kQaqCellBytes;
  }

  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    memset(page, 0, size_t(PageBytes(s)));
    QaqHeader h = {};
    h.planes_at = PlanesOffset(s), h.cells_at = CellsOffset(s);
    h.width = h.resident = kQaqPlanes;
    for (int b = 0; b < kQaqPlanes; ++b) h.plane[b] = uint32_t(b);
    QaqOutlierWriter outliers{page, &h};
    const int each = OutliersEach(s);
    uint32_t cells = 0;
    for (int t = 0; t < s.tokens; ++t) {
      const float* x = rows + t * s.head_dim;
      QaqRange range;
      if (QaqFits(x, s.head_dim)) {
        const QaqExtremes e(x, s.head_dim, each, each);
        range = QaqFit(x, s.head_dim, e, each, each);
        for (int i = 0; i < each; ++i) outliers.Add(t, e.low[i], x[e.low[i]], [&] { return cells++; });
        for (int i = 0; i < each; ++i) outliers.Add(t, e.high[i], x[e.high[i]], [&] { return cells++; });
      }
      StoreQaqRange(s, page, t, range);
      const float half = HalfToFloat(range.half);
      h.half_range = half > h.half_range ? half : h.half_range;
      QaqStoreCodes(s, page, h, t, x, 0, kQaqPlanes);
    }
    StoreQaqHeader(page, h);
  }

  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    const QaqHeader h = LoadQaqHeader(page);
    const QaqRange r = LoadQaqRange(s, page, token);
    for (int i = 0; i < 8; ++i) {
      int code = 0;
      for (int b = 0; b < h.width; ++b)
        code = 2 * code + (int(QaqPlane(s, page, h, b)[(token * s.head_dim + channel) / 8]) >> i & 1);
      out8[i] = QaqDecode(code, HalfToFloat(r.min), HalfToFloat(r.half), h.width);
    }
    ForEachQaqOutlier(page, h, [&](int t, int d, uint16_t x) {
      if (t == token && d >= channel && d < channel + 8) out8[d - channel] = HalfToFloat(x);
    });
  }
};

}  // namespace nibble::kv
