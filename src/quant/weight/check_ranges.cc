// SPDX-License-Identifier: Apache-2.0
// Floor 2. The values that quantized weights from a file must keep to before a kernel may trust them. One
// pass over the codes; messages name the tensor and the row.
#include "base/half.h"
#include "quant/weight/pack.h"

namespace nibble::weight {
namespace {

// Signed values that the codes of a row, a group or a part of it reach, zero point subtracted.
struct Range {
  int lo = 0, hi = 0;
  bool IsZero() const { return lo == 0 && hi == 0; }
};

Range NibbleRange(const std::byte* bytes, int count) {
  int lo = 15, hi = 0;
  for (int i = 0; i < count; ++i) {
    const int even = int(bytes[i]) & 15, odd = int(bytes[i]) >> 4;
    const int least = even < odd ? even : odd, most = even < odd ? odd : even;
    lo = least < lo ? least : lo;
    hi = most > hi ? most : hi;
  }
  return {lo, hi};
}

Status CheckZero(int zero, std::string_view name, int row) {
  if (zero > 15) return Error(Code::kCorrupt, "{}: zero point {} in row {}, expected 0..15", name, zero, row);
  return {};
}

Result<Range> CheckGroupRow(const WeightView& w, std::string_view name, int row) {
  const int64_t groups = w.k / kGroup;
  Range all;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t at = row * groups + g;
    const int s2 = w.group_scale[at], zero = w.zero[at];
    if (s2 < 1 || s2 > 16)
      return Error(Code::kCorrupt, "{}: group scale {} in row {}, group {}, expected 1..16", name, s2, row,
                   g);
    NIBBLE_RETURN_IF_ERROR(CheckZero(zero, name, row));
    const Range u = NibbleRange(w.codes + at * (kGroup / 2), kGroup / 2);
    const Range q{(u.lo - zero) * s2, (u.hi - zero) * s2};
    if (q.lo < -128 || q.hi > 127)
      return Error(Code::kCorrupt,
                   "{}: row {}, group {} reaches {}..{} (codes {}..{}, zero point {}, scale {}), expected "
                   "-128..127",
                   name, row, g, q.lo, q.hi, u.lo, u.hi, zero, s2);
    all.lo = q.lo < all.lo ? q.lo : all.lo;
    all.hi = q.hi > all.hi ? q.hi : all.hi;
  }
  return all;
}

Result<Range> CheckChannelRow(const WeightView& w, std::string_view name, int row) {
  const int zero = w.zero[row];
  NIBBLE_RETURN_IF_ERROR(CheckZero(zero, name, row));
  const Range u = NibbleRange(w.codes + int64_t{row} * (w.k / 2), w.k / 2);
  return Range{u.lo - zero, u.hi - zero};
}

Result<Range> CheckByteRow(const WeightView& w, std::string_view name, int row) {
  const auto* q = reinterpret_cast<const int8_t*>(w.codes) + int64_t{row} * w.k;
  Range r;
  for (int i = 0; i < w.k; ++i) {
    r.lo = q[i] < r.lo ? q[i] : r.lo;
    r.hi = q[i] > r.hi ? q[i] : r.hi;
  }
  if (r.lo < -127) return Error(Code::kCorrupt, "{}: code -128 in row {}, expected -127..127", name, row);
  return r;
}

Result<Range> CheckRow(const WeightView& w, std::string_view name, int row) {
  if (w.storage == Storage::kW4A8Group) return CheckGroupRow(w, name, row);
  if (w.storage == Storage::kW4A8Channel) return CheckChannelRow(w, name, row);
  return CheckByteRow(w, name, row);
}

Status CheckParts(const WeightView& w, std::string_view name) {
  const bool group = w.storage == Storage::kW4A8Group;
  const bool zero = group || w.storage == Storage::kW4A8Channel;
  const char* missing = nullptr;
  if (w.codes == nullptr) missing = "codes";
  if (IsQuantized(w.storage) && w.scale == nullptr) missing = "scale";
  if (group && w.group_scale == nullptr) missing = "group scale";
  if (zero && w.zero == nullptr) missing = "zero point";
  if (missing == nullptr) return {};
  return Error(Code::kCorrupt, "{}: {} needs a {} part, found none", name, Name(w.storage), missing);
}

}  // namespace

Status CheckRanges(const WeightView& w, std::string_view name) {
  if (Status s = CheckShape(w.storage, w.n, w.k); !s.ok())
    return Error(s.code(), "{}: {}", name, s.message());
  NIBBLE_RETURN_IF_ERROR(CheckParts(w, name));
  if (!IsQuantized(w.storage)) return {};
  for (int row = 0; row < w.n; ++row) {
    uint16_t scale = 0;  // a mapped file may hold it at an odd address
    memcpy(&scale, reinterpret_cast<const std::byte*>(w.scale) + int64_t{row} * 2, 2);
    if (scale >= 0x7c00)  // infinity, NaN, and everything with a sign
      return Error(Code::kCorrupt, "{}: scale of row {} is {}, expected a finite number >= 0", name, row,
                   HalfToFloat(scale));
    NIBBLE_ASSIGN(const Range r, CheckRow(w, name, row));
    if (scale == 0 && !r.IsZero())
      return Error(Code::kCorrupt, "{}: scale of row {} is 0 but its codes are not all zero", name, row);
  }
  return {};
}

}  // namespace nibble::weight
