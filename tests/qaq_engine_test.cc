// SPDX-License-Identifier: Apache-2.0
// QAQ while decoding, through cache, backend and the kernels of every ISA: widths and outputs agree with a
// scalar truth of the whole schedule; they do not depend on chunks, threads and batch; narrowing and widening
// are exact to the bit; the host copy gives what resident planes give.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "backend/cpu_backend.h"
#include "backend/kv_view.h"
#include "cache/kv_cache.h"
#include "float_kernels.h"
#include "kernels/cpu/kernels.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kPage = kv::kPageTokens, kHeads = 4, kKvHeads = 2, kDim = 64, kTokens = 6 * kPage + 16;
constexpr kv::PageShape kShape{kDim, kPage};

struct Sequence {
  std::vector<float> q, k, v;  // [tokens, heads or kv_heads, kDim]
  static Sequence Random(uint32_t seed) {
    Sequence s;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    // Every 64 tokens the queries look elsewhere: importance rises and falls.
    const auto fill = [&](std::vector<float>& x, int heads, float spread) {
      for (int t = 0; t < kTokens; ++t)
        for (int i = 0; i < heads * kDim; ++i)
          x.push_back(normal(random) * spread * ((i * 7 + t / kPage * 3) % 5 == 0 ? 2.f : .5f));
    };
    fill(s.q, kHeads, 1), fill(s.k, kKvHeads, 1.5f), fill(s.v, kKvHeads, 1);
    return s;
  }
};

enum class Fault { kNone, kOneWave };
struct Options {
  AttentionRecipe recipe;
  const cpu::CpuKernels* isa;
  int threads = 1, chunk = kTokens;
  bool batch = false;
  Fault fault = Fault::kNone;
};

struct Outcome {  // of sequence 0
  std::vector<float> out;
  std::vector<kv::QaqHeader> k, v;                 // [pages, kv_heads]
  std::vector<std::vector<float>> k_rows, v_rows;  // decoded
  KvUsage k_usage, v_usage;
};

class Play {
 public:
  explicit Play(const Options& o) : o_(o), backend_(*o.isa, o.threads) {
    NIBBLE_CHECK(backend_.Reserve(2 * kTokens, 256, kHeads, kKvHeads, kDim).ok(), "Reserve");
    auto cache = KvCache::Make(backend_, {.shape = {1, kKvHeads, kDim},
                                          .heads = kHeads,
                                          .recipe = o.recipe,
                                          .max_seqs = 2,
                                          .max_step_tokens = 2 * kTokens,
                                          .max_tokens = 4 * kTokens});
    NIBBLE_CHECK(cache.ok(), "cache");
    cache_ = *std::move(cache);
    for (int s = 0; s <= int(o.batch); ++s) {
      seqs_.push_back(Sequence::Random(uint32_t(1 + s)));
      ids_.push_back(*cache_->Open());
    }
  }

  Outcome Go() {
    result_.out.resize(seqs_[0].q.size());
    for (int t = 0; t < kTokens; t += o_.chunk) Step(t, std::min(o_.chunk, kTokens - t));
    Collect();
    return result_;
  }

 private:
  void Step(int first, int count) {
    const std::vector<int32_t> counts(ids_.size(), count);
    ASSERT_TRUE(cache_->BeginStep(ids_, counts).ok());
    std::vector<float> q, k, v;
    for (const Sequence& s : seqs_) {
      const auto add = [&](std::vector<float>& to, const std::vector<float>& from, int heads) {
        to.insert(to.end(), from.begin() + first * heads * kDim,
                  from.begin() + (first + count) * heads * kDim);
      };
      add(q, s.q, kHeads), add(k, s.k, kKvHeads), add(v, s.v, kKvHeads);
    }
    std::vector<float> out(q.size());
    const int64_t rows = int64_t(count) * int64_t(seqs_.size());
    const auto tensor = [&](std::vector<float>& x, int heads) {
      return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, heads, kDim});
    };
    const KvView view = cache_->View(0);
    backend_.KvAppend({.kv = view, .k = tensor(k, kKvHeads), .v = tensor(v, kKvHeads)});
    AttendArgs a{
        .kv = view, .q = tensor(q, kHeads), .out = tensor(out, kHeads), .heads = kHeads, .scale = .125f};
    if (o_.fault == Fault::kOneWave) a.kv.qaq_state = nullptr;  // nothing is ever sealed or requantized
    backend_.Attention(a);
    std::copy(out.begin(), out.begin() + count * kHeads * kDim, result_.out.begin() + first * kHeads * kDim);
  }

  void Collect() {
    const KvView view = cache_->View(0);
    const KvSegment* last = nullptr;
    for (const KvSegment& s : view.segments)
      if (s.seq == ids_[0]) last = &s;
    ASSERT_NE(last, nullptr);
    for (int p = 0; p < last->pages; ++p)
      for (int h = 0; h < kKvHeads; ++h) {
        const int64_t index = int64_t{view.page_table[size_t(last->table + p)]} * kKvHeads + h;
        const auto look = [&](kv::CodecId codec, const std::byte* pool, std::vector<kv::QaqHeader>& headers,
                              std::vector<std::vector<float>>& rows) {
          if (!kv::Get(codec).requantizes) return;
          const std::byte* page = pool + index * kv::Get(codec).pool_bytes(kShape);
          headers.push_back(kv::LoadQaqHeader(page));
          rows.emplace_back(size_t(kPage * kDim));
          for (int t = 0; t < kPage; ++t)
            for (int d = 0; d < kDim; d += 8)
              kv::Qaq::Decode8(kShape, page, t, d, rows.back().data() + t * kDim + d);
        };
        look(view.k_codec, view.k_pool, result_.k, result_.k_rows);
        look(view.v_codec, view.v_pool, result_.v, result_.v_rows);
      }
    result_.k_usage = backend_.Usage(KvSide::kK), result_.v_usage = backend_.Usage(KvSide::kV);
  }

  const Options o_;
  CpuBackend backend_;
  std::unique_ptr<KvCache> cache_;
  std::vector<Sequence> seqs_;
  std::vector<SeqId> ids_;
  Outcome result_;
};

AttentionRecipe Parse(const char* text) {
  auto recipe = ParseRecipe(text, DType::kF32);
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  return *recipe;
}

const cpu::CpuKernels* Best() { return *cpu::ChooseIsa(); }

bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A recipe whose widths move both ways.
constexpr const char* kMoving =
    "k=qaq:sigma=0.002,max=7,pick=quantile,outliers=0.02,room=8 "
    "v=qaq:sigma=0.05,max=7,window=5,decay=0,outliers=0.02,room=8";

// One page of the scalar truth, as it was sealed.
struct TruePage {
  int width = 0, resident = 0, differed = 0;
  double importance = 0, fresh = 0;
  std::vector<double> rows, min, range;
  std::vector<bool> outlier;

  TruePage(const std::vector<double>& x, const kv::QaqParams& p) : width(p.max), resident(p.max), rows(x) {
    outlier.resize(x.size());
    const int each = int(std::ceil(double(p.outliers) / 2 * kDim));
    for (int t = 0; t < kPage; ++t) {
      std::vector<int> order;
      for (int d = 0; d < kDim; ++d) order.push_back(t * kDim + d);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[size_t(a)] < x[size_t(b)]; });
      for (int i = 0; i < each; ++i)
        outlier[size_t(order[size_t(i)])] = outlier[size_t(order[size_t(kDim - 1 - i)])] = true;
      min.push_back(x[size_t(order[size_t(each)])]);
      const float half = float(x[size_t(order[size_t(kDim - 1 - each)])] - min.back()) / 2;
      uint16_t stored = FloatToHalf(half);
      if (HalfToFloat(stored) < half) ++stored;
      range.push_back(2 * double(HalfToFloat(stored)));
    }
  }
  double At(int t, int d) const {
    const double x = rows[size_t(t * kDim + d)], lo = min[size_t(t)], r = range[size_t(t)];
    if (outlier[size_t(t * kDim + d)]) return x;
    const double code =
        std::floor(double(kv::QaqCode8(float(x), float(lo), float(r / 2))) / (1 << (8 - width)));
    return lo + (code + .5) * r / (1 << width);
  }
};

// The whole schedule for one KV head, written down plainly: room = 8, planes.
class Truth {
 public:
  Truth(const Sequence& s, const AttentionRecipe& r, int head) : s_(s), r_(r), head_(head) {}

  void Go(std::vector<double>* out) {
    for (int t = 0; t < kTokens; ++t) {
      for (int g = 0; g < kHeads / kKvHeads; ++g) Row(t, head_ * (kHeads / kKvHeads) + g, out);
      if (t % kPage == kPage - 1) Complete(t + 1);
    }
  }
  std::vector<TruePage> k, v;

 private:
  double Raw(const std::vector<float>& x, int t, int d) const {
    return double(HalfToFloat(FloatToHalf(x[size_t((t * kKvHeads + head_) * kDim + d)])));
  }
  void Row(int t, int h, std::vector<double>* out) {
    const float* q = s_.q.data() + (t * kHeads + h) * kDim;
    std::vector<double> w(size_t(t + 1));
    double sum = 0, norm = 0;
    for (int d = 0; d < kDim; ++d) norm += double(q[d]) * double(q[d]) / kDim;
    norms_.push_back(norm);
    const int own = t / kPage;
    for (int u = 0; u <= t; ++u) {
      double score = 0;
      for (int d = 0; d < kDim; ++d)
        score += double(q[d]) * (u / kPage == own ? Raw(s_.k, u, d) : k[size_t(u / kPage)].At(u % kPage, d));
      sum += w[size_t(u)] = std::exp(score * .125);
    }
    for (int u = 0; u <= t; ++u) {
      const double weight = w[size_t(u)] / sum;
      for (int d = 0; d < kDim; ++d)
        (*out)[size_t((t * kHeads + h) * kDim + d)] +=
            weight * (u / kPage == own ? Raw(s_.v, u, d) : v[size_t(u / kPage)].At(u % kPage, d));
      if (u / kPage == own || t % kPage < kPage - r_.v_qaq.window) continue;
      TruePage& page = v[size_t(u / kPage)];
      page.fresh = std::max(page.fresh, weight * page.range[size_t(u % kPage)]);
    }
  }
  static void Move(TruePage& page, double need, const kv::QaqParams& p) {
    const double bits = std::ceil(std::log2(need / (2 * std::sqrt(3.0))));
    const int wanted = int(std::clamp(bits, double(p.min), double(p.max)));
    page.differed = wanted == page.width ? 0 : page.differed + 1;
    if (page.differed < p.hysteresis || wanted == page.width) return;
    page.width = wanted, page.differed = 0;
  }
  void Complete(int tokens) {
    std::vector<double> sorted = norms_;
    std::sort(sorted.begin(), sorted.end());
    const double exact = sorted[size_t(std::ceil(.9 * double(sorted.size()))) - 1];
    // Upper edge of a quarter octave.
    const double norm = std::exp2(std::floor(std::log2(exact) * 4 + 1) / 4), t = tokens;
    const double sigma_s = double(r_.k_qaq.sigma);
    const double sigma_k = std::sqrt(std::log(t * t * t / (t - 1) * sigma_s * sigma_s + 1) / norm);
    for (TruePage& page : k)
      Move(page, *std::max_element(page.range.begin(), page.range.end()) / sigma_k, r_.k_qaq);
    for (TruePage& page : v) {
      page.importance = std::max(page.fresh, double(r_.v_qaq.decay) * page.importance);
      page.fresh = 0;
      Move(page, page.importance * std::sqrt(t) / double(r_.v_qaq.sigma), r_.v_qaq);
    }
    std::vector<double> k_rows, v_rows;
    for (int u = tokens - kPage; u < tokens; ++u)
      for (int d = 0; d < kDim; ++d) k_rows.push_back(Raw(s_.k, u, d)), v_rows.push_back(Raw(s_.v, u, d));
    k.emplace_back(k_rows, r_.k_qaq), v.emplace_back(v_rows, r_.v_qaq);
  }

  const Sequence& s_;
  const AttentionRecipe& r_;
  const int head_;
  std::vector<double> norms_;
};

TEST(QaqEngine, AgreesWithTheScalarTruth) {
  for (const char* text : {kMoving,
                           "k=qaq:sigma=0.002,min=2,pick=quantile,outliers=0,hysteresis=2,room=8 "
                           "v=qaq:sigma=0.05,max=8,window=64,decay=0.5,hysteresis=2,room=8"}) {
    const AttentionRecipe recipe = Parse(text);
    const Sequence s = Sequence::Random(1);
    std::vector<double> want(s.q.size());
    std::vector<Truth> heads;
    for (int h = 0; h < kKvHeads; ++h) {
      heads.emplace_back(s, recipe, h);
      heads.back().Go(&want);
    }
    for (const auto* isa : test::Isas()) {
      const Outcome got = Play({.recipe = recipe, .isa = isa, .chunk = 50}).Go();
      ASSERT_EQ(got.k.size(), heads[0].k.size() * kKvHeads);
      std::set<int> widths;
      for (size_t i = 0; i < got.k.size(); ++i) {
        EXPECT_EQ(int(got.k[i].width), heads[i % kKvHeads].k[i / kKvHeads].width) << "K page " << i;
        EXPECT_EQ(int(got.v[i].width), heads[i % kKvHeads].v[i / kKvHeads].width) << "V page " << i;
        widths.insert(got.v[i].width);
      }
      EXPECT_GT(widths.size(), 1u) << "all widths alike: this test would show little";
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i)
        worst = std::max(worst, std::fabs(want[i] - double(got.out[i])));
      EXPECT_LT(worst, 1e-4) << isa->isa;  // f32 sums of up to 400 products of order 1
      const Outcome broken = Play({.recipe = recipe, .isa = isa, .fault = Fault::kOneWave}).Go();
      double difference = 0;
      for (size_t i = 0; i < want.size(); ++i)
        difference = std::max(difference, std::fabs(want[i] - double(broken.out[i])));
      EXPECT_GT(difference, 1e-2) << "pages that were never sealed went unnoticed";
    }
  }
}

TEST(QaqEngine, ChunksThreadsAndBatchChangeNoByte) {
  for (const char* text :
       {kMoving, "qaq", "k=qaq v=int4-token", "k=int8-token v=qaq:pick=cost,source=host",
        "k=qaq:rule=code,norm=raw,pick=cost,sigma=0.01 v=qaq:room=3.5,sigma=0.05,hysteresis=2"}) {
    const Options options{.recipe = Parse(text), .isa = Best()};
    const Outcome whole = Play(options).Go();
    for (const int chunk : {1, 7, 64, 256})
      for (const int threads : {1, 3})
        for (const bool batch : {false, true}) {
          if (batch && threads == 1 && chunk != 7) continue;
          Options other = options;
          other.chunk = chunk, other.threads = threads, other.batch = batch;
          const Outcome got = Play(other).Go();
          EXPECT_TRUE(SameBytes(whole.out, got.out))
              << text << " " << chunk << " " << threads << " " << batch;
          EXPECT_EQ(whole.k_rows, got.k_rows);
          EXPECT_EQ(whole.v_rows, got.v_rows);
          if (batch) continue;  // the other sequence counts too
          EXPECT_EQ(whole.v_usage.bits, got.v_usage.bits);
          EXPECT_EQ(whole.v_usage.narrowings, got.v_usage.narrowings);
          EXPECT_EQ(whole.k_usage.paper_bits, got.k_usage.paper_bits);
        }
    EXPECT_FALSE(SameBytes(whole.out, Play({.recipe = Parse("kv8"), .isa = Best()}).Go().out));
  }
}

// What a page decodes to after any history is what quantizing its rows directly at its width gives.
// The mean of the first page's keys is known before the page is sealed, whoever seals it.
TEST(QaqEngine, SmoothedKeysHaveTheirMean) {
  const auto out = [](const char* text, int chunk) {
    return Play({.recipe = Parse(text), .isa = Best(), .chunk = chunk}).Go().out;
  };
  const std::vector<float> smooth = out("qaq qk=int8-thread smooth=k", kTokens);
  EXPECT_FALSE(SameBytes(smooth, out("qaq qk=int8-thread", kTokens))) << "a mean of zeros";
  for (const int chunk : {1, 7, 64})
    EXPECT_TRUE(SameBytes(smooth, out("qaq qk=int8-thread smooth=k", chunk)));
}

TEST(QaqEngine, NarrowingAndWideningAreExact) {
  const Sequence s = Sequence::Random(1);
  const Outcome got = Play({.recipe = Parse(kMoving), .isa = Best()}).Go();
  EXPECT_GT(got.v_usage.narrowings, 0);
  EXPECT_GT(got.v_usage.widenings, 0);
  EXPECT_EQ(got.v_usage.starved, 0);
  for (size_t i = 0; i < got.v.size(); ++i) {
    const int page = int(i) / kKvHeads, head = int(i) % kKvHeads;
    std::vector<double> rows;
    for (int t = 0; t < kPage; ++t)
      for (int d = 0; d < kDim; ++d)
        rows.push_back(
            double(HalfToFloat(FloatToHalf(s.v[size_t(((page * kPage + t) * kKvHeads + head) * kDim + d)]))));
    TruePage direct(rows, Parse(kMoving).v_qaq);
    direct.width = got.v[i].width;
    int differences = 0;
    for (int j = 0; j < kPage * kDim; ++j)
      differences += float(direct.At(j / kDim, j % kDim)) != got.v_rows[i][size_t(j)];
    EXPECT_EQ(differences, 0) << "page " << i;
    ++direct.width;
    differences = 0;
    for (int j = 0; j < kPage * kDim; ++j)
      differences += float(direct.At(j / kDim, j % kDim)) != got.v_rows[i][size_t(j)];
    EXPECT_GT(differences, 0) << "another width is another page";
  }
}

TEST(QaqEngine, HostCopyGivesWhatResidentPlanesGive) {
  const AttentionRecipe planes = Parse(kMoving);
  AttentionRecipe host = planes, starving = planes;
  for (kv::QaqParams* p : {&host.k_qaq, &host.v_qaq}) p->source = kv::QaqSource::kHost, p->room = 0;
  for (kv::QaqParams* p : {&starving.k_qaq, &starving.v_qaq}) p->room = 0;
  const Outcome a = Play({.recipe = planes, .isa = Best()}).Go(),
                b = Play({.recipe = host, .isa = Best()}).Go();
  EXPECT_TRUE(SameBytes(a.out, b.out));
  EXPECT_EQ(a.v_rows, b.v_rows);
  EXPECT_EQ(a.v_usage.widenings, b.v_usage.widenings);
  EXPECT_EQ(a.v_usage.host_bytes, 0);
  EXPECT_EQ(b.v_usage.host_bytes, b.v_usage.widenings * kPage * kDim * 2);
  EXPECT_LT(b.v_usage.bits, a.v_usage.bits) << "planes above the widths were not freed";
  const Outcome c = Play({.recipe = starving, .isa = Best()}).Go();
  EXPECT_GT(c.v_usage.starved, 0);
  EXPECT_EQ(c.v_usage.widenings, 0) << "nothing to widen from";
  EXPECT_FALSE(SameBytes(a.out, c.out));
}

// Room bounds the planes that are kept beyond the widths.
TEST(QaqEngine, RoomIsKept) {
  AttentionRecipe recipe = Parse(kMoving);
  double last = 1e9;
  for (const float room : {8.f, 5.f, 3.f, 0.f}) {
    recipe.v_qaq.room = room;
    const Outcome got = Play({.recipe = recipe, .isa = Best()}).Go();
    for (int h = 0; h < kKvHeads; ++h) {
      int resident = 0, width = 0, pages = 0;
      for (size_t i = size_t(h); i + kKvHeads < got.v.size(); i += kKvHeads, ++pages) {  // not the newest
        const kv::QaqHeader& p = got.v[i];
        ASSERT_GE(p.resident, p.width);
        resident += p.resident, width += p.width;
      }
      EXPECT_LE(resident, std::max(width, int(room * float(pages))));
    }
    const double bits = double(got.v_usage.bits) / double(got.v_usage.values);
    EXPECT_LE(bits, last);
    last = bits;
    EXPECT_GE(got.v_usage.bits, got.v_usage.paper_bits) << "honest is never less than the paper's count";
  }
}

}  // namespace
}  // namespace nibble
