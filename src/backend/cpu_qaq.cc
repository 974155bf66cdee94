// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: QAQ (arXiv 2403.04643) while decoding. Attention goes through a step in waves, the
// n-th of which holds the n-th page of every sequence. When a page is completed, what its last queries saw
// decides the widths of all earlier pages, and the page itself is sealed with all planes, before any query of
// the next page attends. So widths depend on positions and never on how a prompt was cut. Why:
// docs/decisions/0012-qaq-changes-widths-at-pages.md.
#include <algorithm>
#include <cmath>

#include "backend/cpu_backend.h"
#include "backend/kv_view.h"
#include "backend/qaq_pages.h"
#include "backend/qaq_waves.h"
#include "base/check.h"
#include "quant/kv/qaq_update.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

const QaqStore& StoreOf(const KvView& kv, KvSide side) { return side == KvSide::kK ? kv.k_qaq : kv.v_qaq; }

// One page's place in a completed sequence, K or V of one KV head.
class Requantizer {
 public:
  Requantizer(const AttendArgs& a, KvSide side, const KvSegment& s, int head, float* rows, KvUsage& usage)
      : kv_(a.kv),
        side_(side),
        segment_(s),
        head_(head),
        store_(StoreOf(a.kv, side)),
        params_(store_.params[head]),
        sealed_(SealedPagesOf(a.kv, side == KvSide::kV, s.seq, head)),
        pages_(QaqPagesOf(a.kv, side, head)),
        rows_(rows),
        usage_(usage) {
    const int64_t tokens = s.position + s.rows;
    const double seen = double(a.window > 0 ? std::min(tokens, a.window) : tokens);
    bound_ =
        side == KvSide::kK
            ? kv::QaqKeyBound(params_, seen, kv_.qaq_state[int64_t{s.seq} * kv_.kv_heads + head], a.scale)
            : kv::QaqValueBound(params_, seen);
  }

  void Run() {
    for (int p = 0; p < segment_.pages; ++p) Update(p);
    FreeSpare();
    const std::byte* raw = RawPage(kv_, side_ == KvSide::kV, segment_.raw_slot, head_, RawPageBytes());
    std::byte* page = sealed_.At(segment_.seal_page);
    pages_.Seal(Floats(raw), bound_.sigma, page);
    if (store_.host != nullptr) memcpy(Host(segment_.seal_page), raw, RawPageBytes());
    for (int p = 0; p < segment_.pages; ++p) Count(Page(p));
    Count(page);
    if (side_ == KvSide::kK) usage_.bits += int64_t{8} * int64_t(sizeof(QaqState));
  }

 private:
  int32_t PageId(int p) const { return kv_.page_table[size_t(segment_.table + p)]; }
  std::byte* Page(int p) const { return sealed_.At(PageId(p)); }
  size_t RawPageBytes() const { return RawBytes(kv_, kv::Qaq::kRaw); }
  std::byte* Host(int32_t page) const {
    return store_.host + size_t(int64_t{page} * kv_.kv_heads + head_) * RawPageBytes();
  }
  const float* Floats(const std::byte* raw) const {
    for (int i = 0; i < kv_.page.tokens * kv_.page.head_dim; ++i)
      rows_[i] = HalfToFloat(kv::LoadU16(raw + 2 * i));
    return rows_;
  }

  void Update(int p) {
    std::byte* page = Page(p);
    kv::QaqHeader h = kv::LoadQaqHeader(page);
    const int wanted = kv::QaqWantedWidth(params_, bound_, side_ == KvSide::kV, &h), before = h.width;
    if (wanted < before) {
      h.width = uint8_t(wanted);
      ++usage_.narrowings;
    }
    kv::StoreQaqHeader(page, h);
    if (wanted > before) Widen(p, wanted);
  }

  void Widen(int p, int wanted) {
    std::byte* page = Page(p);
    kv::QaqHeader h = kv::LoadQaqHeader(page);
    if (wanted > h.resident && store_.host != nullptr) {
      pages_.Restore(page, Floats(Host(PageId(p))), wanted);
      usage_.host_bytes += int64_t(RawPageBytes());
      h = kv::LoadQaqHeader(page);
    }
    const int reached = std::min<int>(wanted, h.resident);
    usage_.starved += reached < wanted;
    usage_.widenings += reached > h.width;
    h.width = uint8_t(reached);
    kv::StoreQaqHeader(page, h);
  }

  // Keeps planes above the widths while the sequence's share of the arena has room for them; the page that
  // needs them least gives first.
  void FreeSpare() {
    const auto budget = int64_t(std::floor(double(params_.room) * segment_.pages));
    int64_t resident = 0, active = 0;
    for (int p = 0; p < segment_.pages; ++p) {
      const kv::QaqHeader h = kv::LoadQaqHeader(Page(p));
      resident += h.resident, active += h.width;
    }
    while (resident > std::max(budget, active)) {
      std::byte* least = nullptr;
      float least_need = 0;
      for (int p = 0; p < segment_.pages; ++p) {
        const kv::QaqHeader h = kv::LoadQaqHeader(Page(p));
        if (h.resident == h.width) continue;
        if (least != nullptr && !(h.need < least_need)) continue;
        least = Page(p), least_need = h.need;
        if (active >= budget) break;  // all of them go
      }
      const kv::QaqHeader h = kv::LoadQaqHeader(least);
      const auto gone = std::min<int64_t>(h.resident - h.width, resident - std::max(budget, active));
      pages_.Drop(least, int(h.resident - gone));
      resident -= gone;
    }
  }

  void Count(const std::byte* page) {
    const kv::QaqHeader h = kv::LoadQaqHeader(page);
    const int64_t values = int64_t{kv_.page.tokens} * kv_.page.head_dim;
    usage_.values += values;
    usage_.bits += 8 * pages_.Bytes(page);
    usage_.paper_bits += h.width * (values - h.outliers) + 16 * h.outliers + 32 * kv_.page.tokens;
  }

  const KvView& kv_;
  const KvSide side_;
  const KvSegment& segment_;
  const int head_;
  const QaqStore& store_;
  const kv::QaqParams& params_;
  const SealedPages sealed_;  // records
  QaqPages pages_;
  float* rows_;  // [tokens, head_dim]
  KvUsage& usage_;
  kv::QaqBound bound_{};
};

}  // namespace

void CpuBackend::AttendInWaves(const AttendArgs& a) {
  ForWaves(a.kv.segments, &wave_, [&] {
    AttendArgs part = a;
    part.kv.segments = wave_;
    AttendAll(part);
    GatherStatistics(part);
    const auto completed = [](const KvSegment& s) { return s.seal_page >= 0; };
    if (std::none_of(wave_.begin(), wave_.end(), completed)) return;
    pool_.Run(2 * a.kv.kv_heads, [&](int64_t item, int worker) {
      const KvSide side = item % 2 == 0 ? KvSide::kK : KvSide::kV;
      if (StoreOf(a.kv, side).params == nullptr) return;
      Scratch& scratch = scratch_[size_t(worker)];
      for (const KvSegment& s : wave_)
        if (completed(s))
          Requantizer(part, side, s, int(item / 2), scratch.floats, scratch.usage[size_t(side)]).Run();
    });
  });
}

// One item a sequence and KV head: the norms of all its queries, the attention of its last ones.
void CpuBackend::GatherStatistics(const AttendArgs& a) {
  const KvView& kv = a.kv;
  pool_.Run(int64_t(kv.segments.size()) * kv.kv_heads, [&](int64_t item, int worker) {
    const KvSegment& s = kv.segments[size_t(item / kv.kv_heads)];
    const int head = int(item % kv.kv_heads), group = a.heads / kv.kv_heads;
    QaqState& state = kv.qaq_state[int64_t{s.seq} * kv.kv_heads + head];
    if (s.position == 0) state = {};
    if (kv.k_qaq.params != nullptr)
      for (int row = s.row; row < s.row + s.rows; ++row)
        for (int g = 0; g < group; ++g) {
          const float* q = a.q.as<const float>() + row * a.q.stride[0] + (head * group + g) * a.q.stride[1];
          double norm2 = 0;
          for (int d = 0; d < kv.page.head_dim; ++d) norm2 += double(q[d]) * double(q[d]);
          state.Add(norm2 * double(a.scale) * double(a.scale));
        }
    if (kv.v_qaq.params != nullptr) WeighRows(a, s, head, scratch_[size_t(worker)]);
  });
}

// Those of the segment's rows that are among the last of their page.
void CpuBackend::WeighRows(const AttendArgs& a, const KvSegment& s, int head, Scratch& scratch) {
  const KvView& kv = a.kv;
  const int in_page = s.position % kv.page.tokens;
  const int begin = std::max(0, kv.page.tokens - kv.v_qaq.params[head].window - in_page);
  if (begin >= s.rows || s.pages == 0) return;
  const std::byte **k_pages = scratch.pages, **v_pages = scratch.pages + kMaxContextPages;
  const SealedPages k = SealedPagesOf(kv, false, s.seq, head), v = SealedPagesOf(kv, true, s.seq, head);
  for (int p = 0; p < s.pages; ++p) {
    const int32_t page = kv.page_table[size_t(s.table + p)];
    k_pages[p] = k.At(page), v_pages[p] = v.At(page);
  }
  const int group = a.heads / kv.kv_heads;
  kernels_.qaq_weigh(
      {.q = a.q.as<const float>() + (s.row + begin) * a.q.stride[0] + head * group * a.q.stride[1],
       .k_pages = k_pages,
       .k_raw = RawPage(kv, false, s.raw_slot, head, RawBytes(kv, k.codec.raw)),
       .scratch = scratch.floats,
       .q_stride = a.q.stride[0],
       .position = s.position + begin,
       .window = a.window,
       .rows = s.rows - begin,
       .group = group,
       .pages = s.pages,
       .page = kv.page,
       .k_codec = k.codec.id,
       .v_codec = v.codec.id,
       .scale = a.scale},
      const_cast<std::byte* const*>(v_pages));
}

KvUsage CpuBackend::Usage(KvSide side) const {
  KvUsage sum;
  for (const Scratch& s : scratch_) sum += s.usage[size_t(side)];
  return sum;
}

}  // namespace nibble
