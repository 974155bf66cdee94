// SPDX-License-Identifier: Apache-2.0
// Checks of SparQ decode: the tokens it reads and its outputs against kernels/ref over codecs, copies of K,
// head sizes, groups, windows, parameters and cluster sizes; the same bytes again, alone and in a batch; NaN
// in pages that no token was chosen from.
#include "kernels/cuda/sparq.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <thread>

#include "base/half.h"
#include "bench/gpu/decode_case.h"
#include "kernels/cpu/kernels.h"
#include "kernels/ref/select.h"

namespace nibble::gpu {
namespace {

using kv::CodecId;
constexpr int kPage = kv::kPageTokens;

// Of the greatest output: half a unit of bf16 in the last place; sums are f32 throughout.
constexpr double kTolerance = 4.5e-3;
constexpr double kNearMargin = 1e-4;  // of scores; f32 logits of up to 30 may decide otherwise below it

struct Case {
  DecodeShape shape;  // its window is of the call; pages before it are in the problem all the same
  SparqParams sparq;
  int blocks = 0;
  std::string Name() const {
    return fmt::format("sparq r {} k {} local {} sinks {} rho {} mean {} copy {} logits {} blocks {} {}",
                       sparq.r, sparq.k, sparq.local, sparq.sinks, sparq.rho, int(sparq.mean),
                       int(sparq.copy), int(sparq.rank_logits), blocks, shape.Name());
  }
};

DecodeShape WithoutWindow(DecodeShape shape) {
  shape.window = 0;
  return shape;
}

struct SparqProblem {
  explicit SparqProblem(const Case& of);
  ref::SelectedRow Reference(int entry, int row, int head) const;
  const std::byte* Page(const DecodeCache& side, int entry, int page, int head) const {
    return &side.pool[size_t(TableAt(entry, page) * base.shape.kv_heads + head) * size_t(side.head_stride)];
  }
  int TableAt(int entry, int page) const { return all_pages[size_t(entry * base.max_pages + page)]; }
  std::byte* Record(int entry, int page, int head) {
    return &records[size_t(TableAt(entry, page) * base.shape.kv_heads + head) * size_t(record_bytes)];
  }
  const std::byte* Record(int entry, int page, int head) const {
    return const_cast<SparqProblem*>(this)->Record(entry, page, head);
  }
  int FirstSeen(int entry, int row) const {
    const int position = Position(entry, row);
    return c.shape.window > 0 ? std::max(0, position - c.shape.window + 1) : 0;
  }
  int Position(int entry, int row) const {
    return base.shape.lengths[size_t(entry)] - base.RowsOf(entry) + row;
  }

  Case c;
  DecodeProblem base;
  kv::PageShape page_shape;
  int64_t record_bytes;
  std::vector<std::byte> records;
  std::vector<int32_t> all_pages;

 private:
  void MakeRecords(int entry, int head);
};

SparqProblem::SparqProblem(const Case& of)
    : c(of), base(WithoutWindow(of.shape)), page_shape{of.shape.head_dim, kPage} {
  record_bytes = page_shape.head_dim * 4 + page_shape.head_dim * kPage * 2 + page_shape.head_dim * 4;
  records.assign(base.table.size() * size_t(base.shape.kv_heads) * size_t(record_bytes), std::byte{0xFF});
  all_pages = base.table;
  for (int b = 0; b < int(base.shape.lengths.size()); ++b) {
    for (int h = 0; h < base.shape.kv_heads; ++h) MakeRecords(b, h);
    for (int p = 0; p < FirstSeen(b, 0) / kPage - 1; ++p) base.table[size_t(b * base.max_pages + p)] = -1;
  }
}

void SparqProblem::MakeRecords(int entry, int head) {
  const kv::CodecInfo& codec = kv::Get(base.shape.codec);
  const cpu::CpuKernels* isa = *cpu::ChooseIsa();
  const size_t values = size_t(page_shape.head_dim) * kPage;
  std::vector<float> scratch(values);
  std::vector<std::byte> raw(values * 2);
  for (int p = 0; p < base.Sealed(entry); ++p) {
    for (size_t i = 0; i < values; i += 8) {
      float x[8];
      codec.decode8(page_shape, Page(base.k, entry, p, head), int(i) / page_shape.head_dim,
                    int(i) % page_shape.head_dim, x);
      for (size_t j = 0; j < 8; ++j) {
        const uint16_t bits = codec.raw == DType::kF16 ? FloatToHalf(x[j]) : FloatToBf16(x[j]);
        std::memcpy(&raw[2 * (i + j)], &bits, 2);
      }
    }
    isa->key_copy({.raw = raw.data(),
                   .copy = Record(entry, p, head) + page_shape.head_dim * 4,
                   .scratch = scratch.data(),
                   .raw_type = codec.raw,
                   .format = c.sparq.copy,
                   .shape = page_shape});
    isa->value_sum({.page = Page(base.v, entry, p, head),
                    .before = p > 0 ? reinterpret_cast<const float*>(Record(entry, p - 1, head)) : nullptr,
                    .sum = reinterpret_cast<float*>(Record(entry, p, head)),
                    .scratch = scratch.data(),
                    .codec = base.shape.codec,
                    .shape = page_shape});
  }
}

ref::SelectedRow SparqProblem::Reference(int entry, int row, int head) const {
  const DecodeShape& s = base.shape;
  std::vector<const std::byte*> k, v, r;
  for (int p = 0; p < base.Sealed(entry); ++p) {
    k.push_back(Page(base.k, entry, p, head));
    v.push_back(Page(base.v, entry, p, head));
    r.push_back(Record(entry, p, head));
  }
  std::vector<float> q;
  const size_t at =
      size_t((base.row_begin[size_t(entry)] + row) * s.kv_heads + head) * size_t(s.group * s.head_dim);
  for (int i = 0; i < s.group * s.head_dim; ++i) q.push_back(Bf16ToFloat(base.q[at + size_t(i)]));
  const size_t open =
      size_t(base.open_index[size_t(entry)] * s.kv_heads + head) * size_t(base.k.open_head_stride);
  AttentionCounters counters{};
  SelectRow select{};
  select.q = q.data();
  select.k_pages = k.data(), select.v_pages = v.data(), select.records = r.data();
  select.k_raw = &base.k.open[open], select.v_raw = &base.v.open[open];
  select.first = FirstSeen(entry, row), select.position = Position(entry, row);
  select.group = s.group, select.page = page_shape;
  select.k_codec = select.v_codec = s.codec;
  select.scale = base.scale, select.counters = &counters;
  return ref::Sparq({.row = select, .sparq = c.sparq, .v_sum = 0, .k_copy = page_shape.head_dim * 4});
}

class OnDevice {
 public:
  explicit OnDevice(const SparqProblem& p)
      : base_(p.base),
        records_(p.records),
        words_(p.base.max_pages * 2 + 2),
        chosen_(size_t(p.base.row_begin.back() * p.base.shape.kv_heads * words_)),
        args_{.cache = base_.args(),
              .records = records_.data(),
              .record_stride = p.record_bytes * p.base.shape.kv_heads,
              .record_head_stride = p.record_bytes,
              .v_sum = 0,
              .k_copy = p.page_shape.head_dim * 4,
              .sparq = p.c.sparq,
              .chosen = chosen_.data(),
              .chosen_words = words_,
              .blocks = p.c.blocks},
        workspace_(WithWindow(p)) {
    args_.cache.workspace = workspace_.size() > 1 ? workspace_.data() : nullptr;
  }
  cuda::Launch Run() { return cuda::SparqDecode(args_, nullptr); }
  std::vector<float> Out() const { return base_.Out(); }
  std::vector<uint16_t> Bytes() const { return base_.Bytes(); }
  std::vector<uint32_t> Chosen() const { return chosen_.Host(); }
  int words() const { return words_; }

 private:
  size_t WithWindow(const SparqProblem& p) {
    args_.cache.window = p.c.shape.window;
    args_.cache.lse = nullptr;
    return size_t(cuda::SparqWorkspaceBytes(args_)) + 1;
  }
  DecodeOnDevice base_;
  Buffer<std::byte> records_;
  int words_;
  Buffer<uint32_t> chosen_;
  cuda::SparqDecodeArgs args_;
  Buffer<std::byte> workspace_;
};

struct Tally {
  int compared = 0, near = 0;
};

// All rows and KV heads of a problem by the definition.
std::vector<ref::SelectedRow> References(const SparqProblem& p) {
  const int heads = p.base.shape.kv_heads;
  std::vector<ref::SelectedRow> all(size_t(p.base.row_begin.back() * heads));
  std::vector<std::thread> threads;
  for (int b = 0; b < int(p.base.shape.lengths.size()); ++b)
    for (int h = 0; h < heads; ++h)
      threads.emplace_back([&, b, h] {
        for (int i = 0; i < p.base.RowsOf(b); ++i)
          all[size_t((p.base.row_begin[size_t(b)] + i) * heads + h)] = p.Reference(b, i, h);
      });
  for (std::thread& t : threads) t.join();
  return all;
}

// Pages of K and V that no row chose from become NaN.
void Poison(SparqProblem* p, const std::vector<ref::SelectedRow>& want) {
  const int heads = p->base.shape.kv_heads;
  for (int b = 0; b < int(p->base.shape.lengths.size()); ++b)
    for (int h = 0; h < heads; ++h)
      for (int page = 0; page < p->base.Sealed(b); ++page) {
        bool read = false;
        for (int i = 0; i < p->base.RowsOf(b); ++i) {
          read |= p->c.shape.window > 0 && page == p->FirstSeen(b, i) / kPage;  // the mean may need it
          for (const int64_t t : want[size_t((p->base.row_begin[size_t(b)] + i) * heads + h)].tokens)
            read |= t / kPage == page;
        }
        if (read) continue;
        for (DecodeCache* side : {&p->base.k, &p->base.v})
          std::memset(const_cast<std::byte*>(p->Page(*side, b, page, h)), 0xFF, size_t(side->head_stride));
      }
}

bool SameTokens(const uint32_t* words, int count, const std::vector<int64_t>& tokens, int64_t first) {
  std::vector<int64_t> got;
  for (int64_t t = first / kPage * kPage; t < int64_t{count} * 32; ++t)
    if (words[t / 32] >> (t % 32) & 1 && t <= tokens.back()) got.push_back(t);
  return got == tokens;
}

void CheckCase(Checks* checks, const Case& c, Tally* tally) {
  if (!checks->Wanted(c.Name())) return;
  SparqProblem problem(c);
  OnDevice device(problem);
  Require(device.Run());
  Require(cudaDeviceSynchronize(), c.Name().c_str());
  const std::vector<ref::SelectedRow> want = References(problem);
  const std::vector<float> got = device.Out();
  const std::vector<uint32_t> chosen = device.Chosen();
  const size_t row = size_t(c.shape.group * c.shape.head_dim);
  bool near = false;
  for (int b = 0; b < int(c.shape.lengths.size()); ++b)
    for (int i = 0; i < problem.base.RowsOf(b); ++i)
      for (int h = 0; h < c.shape.kv_heads; ++h) {
        const size_t at = size_t((problem.base.row_begin[size_t(b)] + i) * c.shape.kv_heads + h);
        if (want[at].margin < kNearMargin) {
          ++tally->near, near = true;
          continue;
        }
        ++tally->compared;
        const auto begin = got.begin() + long(at * row);
        checks->Compare(c.Name(), {begin, begin + long(row)}, want[at].out, kTolerance);
        checks->Equal(c.Name() + " tokens", SameTokens(&chosen[at * size_t(device.words())], device.words(),
                                                       want[at].tokens, problem.FirstSeen(b, i)));
      }
  const std::vector<uint16_t> bytes = device.Bytes();
  Require(device.Run());
  checks->Equal(c.Name() + " repeated", device.Bytes() == bytes);
  if (near) return;  // pages of another choice must not be poisoned
  Poison(&problem, want);
  OnDevice poisoned(problem);
  Require(poisoned.Run());
  checks->Equal(c.Name() + " NaN in other pages", poisoned.Bytes() == bytes);
}

constexpr CodecId kCodecs[] = {CodecId::kF16,          CodecId::kBF16,    CodecId::kInt8Token,
                               CodecId::kInt4Token,    CodecId::kFlashQ4, CodecId::kFlashQ2,
                               CodecId::kFlashQ2Search};

uint32_t Draw(uint32_t i, uint32_t what, uint32_t below) { return Mix(i, 900 + what) % below; }

Case RandomCase(uint32_t i) {
  constexpr int kDims[] = {64, 80, 96, 128, 256}, kMost[] = {64, 300, 1000, 4096},
                kBlocks[] = {0, 0, 1, 2, 4, 8};
  Case c{.shape = {.codec = kCodecs[Draw(i, 0, 7)], .lengths = {}, .seed = i}};
  c.shape.head_dim = kDims[Draw(i, 1, 5)];
  c.shape.group = 1 + int(Draw(i, 2, Draw(i, 3, 4) == 0 ? 16 : 8));
  c.shape.rows = 1 + int(Draw(i, 4, 3));
  const int most = kMost[Draw(i, 5, 4)];
  for (uint32_t b = 0; b < 3; ++b) c.shape.lengths.push_back(1 + int(Draw(i, 6 + b, uint32_t(most))));
  if (Draw(i, 10, 4) == 0) c.shape.window = 1 + int(Draw(i, 11, uint32_t(most)));
  c.sparq.r = 1 + int(Draw(i, 12, uint32_t(c.shape.head_dim)));
  c.sparq.k = 4 + int(Draw(i, 13, 197));
  const int locals[] = {-1, 0, 1, c.sparq.k / 2};
  c.sparq.local = locals[Draw(i, 14, 4)];
  c.sparq.sinks = int(Draw(i, 15, 3));
  c.sparq.rho = Draw(i, 16, 4) == 0 ? 0.7f : 0;
  c.sparq.mean = std::array{Reallocation::kAuto, Reallocation::kOff, Reallocation::kMean}[Draw(i, 17, 3)];
  c.sparq.copy = std::array{KeyCopy::kF16, KeyCopy::kInt8, KeyCopy::kInt4}[Draw(i, 18, 3)];
  c.sparq.rank_logits = Draw(i, 19, 4) == 0;
  c.blocks = kBlocks[Draw(i, 20, 6)];
  return c;
}

std::vector<uint16_t> FirstRow(const Case& c) {
  const SparqProblem problem(c);
  OnDevice device(problem);
  Require(device.Run());
  const std::vector<uint16_t> all = device.Bytes();
  return {all.begin(), all.begin() + long(c.shape.kv_heads * c.shape.group * c.shape.head_dim)};
}

// The bytes of a sequence alone, in a batch, with a longer table, with logits outside of shared memory; and
// wrong parameters show.
void CheckIndependence(Checks* checks) {
  const std::string name = "sparq independence";
  if (!checks->Wanted(name)) return;
  Case c{.shape = {.codec = CodecId::kInt4Token, .lengths = {1500}}, .sparq = {.r = 16, .k = 64}};
  c.sparq.mean = Reallocation::kMean;
  const std::vector<uint16_t> alone = FirstRow(c);
  const auto with = [&](auto change) {
    Case other = c;
    change(&other);
    return FirstRow(other);
  };
  checks->Equal(name + ": batch", with([](Case* o) { o->shape.lengths = {1500, 1, 4000, 640}; }) == alone);
  checks->Equal(name + ": outside", with([](Case* o) {
                                      o->shape.lengths = {1500, 33000}, o->shape.group = 4, o->blocks = 1;
                                    }) == with([](Case* o) { o->blocks = 1; }));
  checks->Equal(name + ": r shows", with([](Case* o) { o->sparq.r = 15; }) != alone);
  checks->Equal(name + ": k shows", with([](Case* o) { o->sparq.k = 63; }) != alone);
  checks->Equal(name + ": local shows", with([](Case* o) { o->sparq.local = 17; }) != alone);
  checks->Equal(name + ": mean shows", with([](Case* o) { o->sparq.mean = Reallocation::kOff; }) != alone);
}

// Keys that are all the same: the first tokens are read, besides the newest.
void CheckTies(Checks* checks) {
  const std::string name = "sparq ties";
  if (!checks->Wanted(name)) return;
  Case c{.shape = {.codec = CodecId::kF16, .lengths = {3000}}, .sparq = {.r = 8, .k = 100, .local = 10}};
  SparqProblem problem(c);
  for (size_t i = 0; i < problem.base.q.size(); ++i) problem.base.q[i] = 0;
  OnDevice device(problem);
  Require(device.Run());
  const std::vector<uint32_t> chosen = device.Chosen();
  std::vector<int64_t> want;
  for (int64_t t = 0; t < 90; ++t) want.push_back(t);
  for (int64_t t = 2990; t < 3000; ++t) want.push_back(t);
  checks->Equal(name, SameTokens(chosen.data(), device.words(), want, 0));
}

}  // namespace

void CheckSparq(Checks* checks) {
  CheckIndependence(checks);
  CheckTies(checks);
  Tally tally;
  for (const CodecId codec : kCodecs)
    for (const int dim : {64, 128})
      CheckCase(checks,
                {.shape = {.codec = codec, .head_dim = dim, .lengths = {64, 129, 2000}},
                 .sparq = {.r = 32, .k = 96, .sinks = 4, .mean = Reallocation::kMean}},
                &tally);
  for (uint32_t i = 0; i < 200; ++i) CheckCase(checks, RandomCase(i), &tally);
  if (tally.compared > 0)
    fmt::print("sparq: {} rows compared, {} skipped for near ties\n", tally.compared, tally.near);
  if (checks->Wanted("sparq near ties")) checks->AtMost("sparq near ties", tally.near, 0.25 * tally.compared);
}

}  // namespace nibble::gpu
