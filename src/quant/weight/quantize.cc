// SPDX-License-Identifier: Apache-2.0
// Floor 2. The round-to-nearest quantizers, one row at a time. Loops run over fixed groups where they can, so
// that the compiler vectorizes them; every rounding is RoundToInt's nearest even.
#include "quant/weight/quantize.h"

#include <cmath>

#include "base/check.h"
#include "base/half.h"

namespace nibble::weight {
namespace {

constexpr int kU4Max = 15;

struct RowRange {
  float lo = 0, hi = 0;     // with 0 included
  int64_t not_finite = -1;  // first such column
};

RowRange FindRange(const float* w, int k) {
  RowRange r;
  bool finite = true;
  for (int i = 0; i < k; ++i) {
    r.lo = w[i] < r.lo ? w[i] : r.lo;
    r.hi = w[i] > r.hi ? w[i] : r.hi;
    finite &= (FloatToBits(w[i]) & 0x7f800000u) != 0x7f800000u;
  }
  if (finite) return r;
  r.not_finite = 0;
  while (std::isfinite(w[r.not_finite])) ++r.not_finite;
  return r;
}

// The f16 scale that spreads `range` over `levels` steps: nearest, but next up where a subnormal f16 rounded
// down leaves the top half a step or more outside; 0 only for range 0. Infinity when f16 cannot hold it.
uint16_t FitScale(float range, float levels) {
  uint16_t scale = FloatToHalf(range / levels);
  if (range > (levels + 0.5f) * HalfToFloat(scale)) ++scale;
  return scale;
}

float Clamp(float x, float lo, float hi) { return x < lo ? lo : (x > hi ? hi : x); }

// rne(w / scale) clamped to [-limit, limit]. Clamping first changes nothing: the bounds are whole.
void RoundRow(const float* w, int k, float scale, int limit, int8_t* q) {
  const float top = float(limit);
  for (int i = 0; i < k; ++i) q[i] = int8_t(RoundToInt(Clamp(w[i] / scale, -top, top)));
}

// Packs codes 0..15 of k inputs, the even input in the low nibble.
void PackNibbles(const uint8_t* u, int k, uint8_t* bytes) {
  for (int i = 0; i < k / 2; ++i) bytes[i] = uint8_t(u[2 * i] | u[2 * i + 1] << 4);
}

// Level 2 of kW4A8Group: 128 level-1 codes become u4 codes with an integer scale and zero point.
void QuantizeGroup(const int8_t* q8, uint8_t* bytes, uint8_t* group_scale, uint8_t* zero) {
  int8_t lo = q8[0], hi = q8[0];
  for (int i = 1; i < kGroup; ++i) {
    lo = q8[i] < lo ? q8[i] : lo;
    hi = q8[i] > hi ? q8[i] : hi;
  }
  const GroupParams p = FitGroup(lo, hi);
  uint8_t u[kGroup];
  for (int i = 0; i < kGroup; ++i) u[i] = uint8_t(GroupCode(q8[i], p));
  PackNibbles(u, kGroup, bytes);
  *group_scale = uint8_t(p.scale);
  *zero = uint8_t(p.zero);
}

void QuantizeRowGroup(const float* w, int row, float amax, QuantizedWeight* out) {
  const int64_t groups = out->k / kGroup;
  const uint16_t scale = FitScale(amax, kProtectiveRange);
  out->scale[size_t(row)] = scale;
  for (int64_t g = 0; g < groups; ++g) {
    int8_t q8[kGroup] = {};
    if (amax > 0) RoundRow(w + g * kGroup, kGroup, HalfToFloat(scale), kProtectiveRange, q8);
    const int64_t at = row * groups + g;
    QuantizeGroup(q8, &out->codes[size_t(at * kGroup / 2)], &out->group_scale[size_t(at)],
                  &out->zero[size_t(at)]);
  }
}

// The row's range includes 0, so a zero weight stays zero and z needs no sign.
void QuantizeRowChannel(const float* w, int row, const RowRange& r, QuantizedWeight* out) {
  const uint16_t scale = FitScale(r.hi - r.lo, kU4Max);
  out->scale[size_t(row)] = scale;
  const float s = scale == 0 ? 1.0f : HalfToFloat(scale);  // a zero row: every code is z = 0
  const int z = RoundToInt(Clamp(-r.lo / s, 0, kU4Max));
  out->zero[size_t(row)] = uint8_t(z);
  uint8_t* bytes = &out->codes[size_t(int64_t{row} * out->k / 2)];
  for (int i = 0; i < out->k; i += 8) {
    uint8_t u[8];
    for (int j = 0; j < 8; ++j) {
      const int code = RoundToInt(Clamp(w[i + j] / s, -kU4Max - 1, kU4Max + 1)) + z;
      u[j] = uint8_t(code < 0 ? 0 : (code > kU4Max ? kU4Max : code));
    }
    PackNibbles(u, 8, bytes + i / 2);
  }
}

void QuantizeRowW8(const float* w, int row, float amax, QuantizedWeight* out) {
  constexpr int kS8Max = 127;
  const uint16_t scale = FitScale(amax, kS8Max);
  out->scale[size_t(row)] = scale;
  auto* q = reinterpret_cast<int8_t*>(&out->codes[size_t(int64_t{row} * out->k)]);
  if (amax > 0) RoundRow(w, out->k, HalfToFloat(scale), kS8Max, q);
}

}  // namespace

WeightView QuantizedWeight::View() const {
  WeightView v;
  v.storage = storage;
  v.n = n;
  v.k = k;
  v.codes = reinterpret_cast<const std::byte*>(codes.data());
  v.scale = scale.data();
  v.group_scale = group_scale.empty() ? nullptr : group_scale.data();
  v.zero = zero.empty() ? nullptr : zero.data();
  return v;
}

Result<QuantizedWeight> AllocateQuantized(int n, int k, Storage storage) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(storage, n, k));
  QuantizedWeight q;
  q.storage = storage;
  q.n = n;
  q.k = k;
  const size_t values = size_t(n) * size_t(k);
  q.scale.resize(size_t(n));
  switch (storage) {
    case Storage::kW4A8Group:
      q.codes.resize(values / 2);
      q.group_scale.resize(values / kGroup);
      q.zero.resize(values / kGroup);
      return q;
    case Storage::kW4A8Channel:
      q.codes.resize(values / 2);
      q.zero.resize(size_t(n));
      return q;
    case Storage::kW8A8:
      q.codes.resize(values);
      return q;
    default:
      return Error(Code::kUnsupported, "{} is not a quantized storage; use w4a8-g128, w4a8-chn or w8a8",
                   Name(storage));
  }
}

Status QuantizeRows(const float* w, int row_begin, int row_end, QuantizedWeight* out) {
  NIBBLE_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= out->n, "rows outside the matrix");
  for (int row = row_begin; row < row_end; ++row, w += out->k) {
    const RowRange r = FindRange(w, out->k);
    if (r.not_finite >= 0)
      return Error(Code::kInvalidArgument, "row {}, column {}: weight is {}, expected a finite number", row,
                   r.not_finite, w[r.not_finite]);
    const float amax = r.hi >= -r.lo ? r.hi : -r.lo;  // +0, not -0, for a zero row
    // The least number of levels is 15, over hi - lo in the channel form: beyond this its scale is infinite.
    if (!(r.hi - r.lo < kHalfMax * kU4Max))
      return Error(Code::kInvalidArgument, "row {}: weights from {} to {} exceed what an f16 scale can hold",
                   row, r.lo, r.hi);
    if (out->storage == Storage::kW4A8Group) QuantizeRowGroup(w, row, amax, out);
    if (out->storage == Storage::kW4A8Channel) QuantizeRowChannel(w, row, r, out);
    if (out->storage == Storage::kW8A8) QuantizeRowW8(w, row, amax, out);
  }
  return {};
}

Result<QuantizedWeight> Quantize(const float* w, int n, int k, Storage storage) {
  NIBBLE_ASSIGN(auto q, AllocateQuantized(n, k, storage));
  NIBBLE_RETURN_IF_ERROR(QuantizeRows(w, 0, n, &q));
  return q;
}

}  // namespace nibble::weight
