// SPDX-License-Identifier: Apache-2.0
// QAQ on the GPU against the CPU: outputs, the widths that pages get, and every byte of what they keep; that
// no byte depends on chunks or batch; and sequences that leave for the host and come back. Skips without a
// GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "backend/kv_view.h"
#include "cache/kv_cache.h"
#include "quant/kv/qaq.h"
#include "tests/support/cuda.h"

namespace nibble {
namespace {

using test::Difference;
using test::Random;
using Shape = test::AttentionShape;

// A page as it is, wherever its parts lie.
struct Page {
  int width = 0, resident = 0, differed = 0;
  std::vector<uint16_t> ranges, outliers;
  std::vector<std::byte> planes;  // those that are read
  float half_range = 0, need = 0;

  bool Same(const Page& o) const {
    return width == o.width && resident == o.resident && differed == o.differed && ranges == o.ranges &&
           outliers == o.outliers && planes == o.planes && half_range == o.half_range;
  }
};

struct Outcome {
  std::vector<float> out;  // of all rows, step after step
  std::vector<Page> k, v;  // [pages, kv_heads] of sequence 0; none of another codec
  KvUsage k_usage, v_usage;
  AttentionCounters counters{};
};

// Rows of a sequence. Every 64 tokens the queries look elsewhere: importance rises and falls.
std::vector<float> Rows(int seq, int64_t position, int rows, int heads, int dim, uint32_t which) {
  std::vector<float> x;
  for (int r = 0; r < rows; ++r) {
    const int64_t t = position + r;
    const auto row = Random(size_t(heads * dim), uint32_t(10007 * t + 31 * seq) + which);
    const float spread = which == 1 ? 1.5f : 1.0f;
    for (int i = 0; i < heads * dim; ++i)
      x.push_back(row[size_t(i)] * spread * ((i * 7 + int(t / 64) * 3) % 5 == 0 ? 2.0f : 0.5f));
  }
  return x;
}

class Runner {
 public:
  Runner(Backend& backend, const std::string& recipe, Shape shape, int seqs, DType dtype)
      : backend_(backend), shape_(shape), recipe_(*ParseRecipe(recipe, dtype)) {
    NIBBLE_CHECK(backend.Reserve(1024, 1024, shape.heads, shape.kv_heads, shape.head_dim).ok(), "Reserve");
    cache_ = *KvCache::Make(backend, {.shape = {1, shape.kv_heads, shape.head_dim},
                                      .heads = shape.heads,
                                      .recipe = recipe_,
                                      .max_seqs = seqs,
                                      .max_step_tokens = 1024,
                                      .max_tokens = 2048});
    for (int i = 0; i < seqs; ++i) seqs_.push_back(*cache_->Open());
    k_before_ = backend.Usage(KvSide::kK), v_before_ = backend.Usage(KvSide::kV);
    backend.TakeCounters();
  }

  void Step(const std::vector<int32_t>& counts) {
    std::vector<float> q, k, v;
    int64_t own = 0;  // rows of sequence 0
    for (size_t i = 0; i < seqs_.size(); ++i) {
      const int64_t at = cache_->Length(seqs_[i]);
      const auto add = [&](std::vector<float>& to, int heads, uint32_t which) {
        const auto rows = Rows(int(i) + other_, at, counts[i], heads, shape_.head_dim, which);
        to.insert(to.end(), rows.begin(), rows.end());
      };
      add(q, shape_.heads, 0), add(k, shape_.kv_heads, 1), add(v, shape_.kv_heads, 2);
      if (i == 0) own = counts[i];
    }
    NIBBLE_CHECK(cache_->BeginStep(seqs_, counts).ok(), "BeginStep");
    const std::vector<float> out = test::AppendAndAttend(backend_, *cache_, shape_, q, k, v);
    outcome_.out.insert(outcome_.out.end(), out.begin(), out.begin() + own * shape_.heads * shape_.head_dim);
  }

  // Out to the host, over another sequence's pages, and back.
  void Swap() {
    const SeqId id = seqs_[0];
    std::vector<std::byte> host(size_t(cache_->SwapBytes(id)));
    const int64_t length = cache_->Length(id);
    cache_->SwapOut(id, host);
    cache_->Close(id);
    seqs_[0] = *cache_->Open();
    other_ = 50;
    Step({200, 0});
    other_ = 0;
    cache_->Close(seqs_[0]);
    seqs_[0] = *cache_->Open();
    cache_->SwapIn(seqs_[0], length, host);
  }

  Outcome Finish() {
    const KvView view = cache_->View(0);
    const KvSegment* last = nullptr;
    for (const KvSegment& s : view.segments)
      if (s.seq == seqs_[0]) last = &s;
    for (int p = 0; last != nullptr && p < last->pages; ++p)
      for (int h = 0; h < shape_.kv_heads; ++h) {
        const int32_t page = view.page_table[size_t(last->table + p)];
        if (view.k_qaq.params != nullptr) outcome_.k.push_back(PageOf(view, view.k_qaq, false, page, h));
        if (view.v_qaq.params != nullptr) outcome_.v.push_back(PageOf(view, view.v_qaq, true, page, h));
      }
    outcome_.k_usage = backend_.Usage(KvSide::kK) - k_before_;
    outcome_.v_usage = backend_.Usage(KvSide::kV) - v_before_;
    outcome_.counters = backend_.TakeCounters();
    return std::move(outcome_);
  }
  std::vector<float> TakeOut() { return std::exchange(outcome_.out, {}); }

 private:
  std::vector<std::byte> Get(const std::byte* from, int64_t bytes) {
    std::vector<std::byte> host(static_cast<size_t>(bytes));
    backend_.Download(from, host.data(), host.size());
    backend_.Sync();
    return host;
  }
  Page PageOf(const KvView& view, const QaqStore& store, bool is_v, int32_t page, int head) {
    const kv::PageShape shape = view.page;
    const auto record = Get(SealedPagesOf(view, is_v, 0, head).At(page), kv::QaqRecordBytes(shape));
    const kv::QaqHeader h = kv::LoadQaqHeader(record.data());
    Page p{.width = h.width,
           .resident = h.resident,
           .differed = h.differed,
           .half_range = h.half_range,
           .need = h.need};
    for (int t = 0; t < shape.tokens; ++t) {
      const kv::QaqRange r = kv::LoadQaqRange(shape, record.data(), t);
      p.ranges.push_back(r.min), p.ranges.push_back(r.half);
    }
    const int bytes = kv::QaqPlaneBytes(shape);
    for (int b = 0; b < h.width; ++b) {
      const auto plane = Get(store.planes + (head * store.plane_capacity + h.plane[b]) * bytes, bytes);
      p.planes.insert(p.planes.end(), plane.begin(), plane.end());
    }
    uint32_t at = h.first_cell;
    for (int i = 0; i < h.outliers; ++i) {
      const auto cell =
          Get(store.cells + (head * store.cell_capacity + at) * kv::kQaqCellBytes, kv::kQaqCellBytes);
      const int j = i % kv::kQaqCellOutliers;
      p.outliers.push_back(kv::LoadU16(cell.data() + 4 * j));
      p.outliers.push_back(kv::LoadU16(cell.data() + 4 * j + 2));
      if (j + 1 == kv::kQaqCellOutliers) memcpy(&at, cell.data() + kv::kQaqCellBytes - 4, 4);
    }
    return p;
  }

  Backend& backend_;
  const Shape shape_;
  const AttentionRecipe recipe_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SeqId> seqs_;
  Outcome outcome_;
  KvUsage k_before_, v_before_;
  int other_ = 0;  // added to the number of a sequence, whose rows it then has
};

constexpr int kTokens = 6 * 64 + 16;

Outcome Play(Backend& backend, const std::string& recipe, Shape shape, int chunk = kTokens,
             bool batch = false, DType dtype = DType::kF32, int tokens = kTokens) {
  Runner run(backend, recipe, shape, batch ? 3 : 1, dtype);
  int other = 0;
  for (int done = 0; done < tokens; done += chunk) {
    std::vector<int32_t> counts{std::min(chunk, tokens - done)};
    if (batch) counts.insert(counts.end(), {other++ % 2, std::min(200, counts[0])});
    run.Step(counts);
  }
  return run.Finish();
}

// Widths that move both ways; outliers by share and by cost; rules, norms, room and hysteresis; one side
// only.
const std::string kMoving =
    "k=qaq:sigma=0.002,max=7,pick=quantile,outliers=0.02,room=8 "
    "v=qaq:sigma=0.05,max=7,window=5,decay=0,outliers=0.02,room=8";
const std::vector<std::string> kRecipes = {
    kMoving,
    "qaq",
    "k=qaq:rule=code,norm=raw,pick=cost,sigma=0.01 v=qaq:room=3.5,sigma=0.05,hysteresis=2",
    "k=qaq:max=8,min=2 v=qaq:sigma=0.02,window=64,decay=0.5,pick=cost",
    "k=qaq v=int4-token",
    "k=int8-token v=qaq:outliers=0.05",
    "qaq qk=int8-thread smooth=k"};
constexpr Shape kShapes[] = {{4, 2, 64}, {4, 1, 80}, {2, 2, 128, 100}, {8, 1, 128}, {3, 1, 256}, {16, 2, 64}};

// NIBBLE_TEST_REDUCED=1: a part, for tools that slow every access down.
bool Reduced() { return std::getenv("NIBBLE_TEST_REDUCED") != nullptr; }

class CudaQaq : public test::OnGpu {};

std::map<int, int> Widths(const std::vector<Page>& pages) {
  std::map<int, int> widths;
  for (const Page& p : pages) ++widths[p.width];
  return widths;
}

void ExpectSamePages(const std::vector<Page>& got, const std::vector<Page>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_TRUE(got[i].Same(want[i]))
        << what << ", page and head " << i << ": " << got[i].width << "/" << got[i].resident << " for "
        << want[i].width << "/" << want[i].resident << " planes, need " << got[i].need << " for "
        << want[i].need;
}

TEST_F(CudaQaq, WidthsPagesAndOutputsAreThoseOfTheCpu) {
  for (const std::string& recipe : kRecipes)
    for (const Shape& shape : kShapes) {
      if (!CheckHeadSize(*ParseRecipe(recipe, DType::kF32), shape.head_dim).ok()) continue;
      if (Reduced() && (shape.head_dim == 256 || shape.heads == 16)) continue;
      const std::string what = fmt::format("{}, {} channels", recipe, shape.head_dim);
      const Outcome cpu = Play(*cpu_, recipe, shape, 150), gpu = Play(*gpu_, recipe, shape, 150);
      ExpectSamePages(gpu.k, cpu.k, what + ": K");
      ExpectSamePages(gpu.v, cpu.v, what + ": V");
      const bool codes = recipe.find("qk=") != recipe.npos || recipe.find("int") != recipe.npos;
      EXPECT_LT(Difference(gpu.out, cpu.out), codes ? 3e-3 : 5e-6) << what;
      for (const auto& [got, want] :
           {std::pair{gpu.k_usage, cpu.k_usage}, std::pair{gpu.v_usage, cpu.v_usage}}) {
        EXPECT_EQ(got.values, want.values) << what;
        EXPECT_EQ(got.bits, want.bits) << what;
        EXPECT_EQ(got.paper_bits, want.paper_bits) << what;
        EXPECT_EQ(got.narrowings, want.narrowings) << what;
        EXPECT_EQ(got.widenings, want.widenings) << what;
        EXPECT_EQ(got.starved, want.starved) << what;
      }
      EXPECT_EQ(gpu.counters.bytes_read, cpu.counters.bytes_read) << what;
      EXPECT_EQ(gpu.counters.tokens_read, cpu.counters.tokens_read) << what;
    }
  const Outcome moving = Play(*gpu_, kMoving, kShapes[0]);
  EXPECT_GT(Widths(moving.v).size(), 1u) << "all widths alike: this test would show little";
  EXPECT_GT(moving.v_usage.narrowings, 0);
  EXPECT_GT(moving.v_usage.widenings, 0);
  Outcome broken = moving;
  broken.v[0].planes[3] ^= std::byte{1};
  EXPECT_FALSE(broken.v[0].Same(moving.v[0])) << "a bit that is off is seen";
}

TEST_F(CudaQaq, ChunksAndBatchChangeNoByte) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const std::string& recipe : kRecipes) {
      if (Reduced() && &recipe - kRecipes.data() > 1) continue;
      const Shape shape{4, 2, dtype == DType::kF32 ? 64 : 128, 0};
      const Outcome whole = Play(*gpu_, recipe, shape, kTokens, false, dtype);
      for (const int chunk : {1, 7, 64, 256})
        for (const bool batch : {false, true}) {
          if (Reduced() && chunk < 64) continue;
          const std::string what = fmt::format("{}, chunks of {}, batch {}", recipe, chunk, batch);
          const Outcome got = Play(*gpu_, recipe, shape, chunk, batch, dtype);
          EXPECT_EQ(got.out.size(), whole.out.size());
          EXPECT_EQ(std::memcmp(got.out.data(), whole.out.data(), whole.out.size() * 4), 0) << what;
          ExpectSamePages(got.k, whole.k, what);
          ExpectSamePages(got.v, whole.v, what);
        }
    }
}

// On tensor cores decoded values and weights are f16. Widths hang on f32 queries and scores of pages alone.
TEST_F(CudaQaq, Bf16OnTensorCores) {
  for (const std::string& recipe : kRecipes)
    for (const Shape& shape : kShapes) {
      const auto parsed = ParseRecipe(recipe, DType::kBF16);
      if (!parsed.ok() || !CheckHeadSize(*parsed, shape.head_dim).ok()) continue;
      if (Reduced() && shape.head_dim == 256) continue;
      const std::string what = fmt::format("{}, {} channels, {} heads", recipe, shape.head_dim, shape.heads);
      const Outcome cpu = Play(*cpu_, recipe, shape, 150, false, DType::kBF16),
                    gpu = Play(*gpu_, recipe, shape, 150, false, DType::kBF16);
      ExpectSamePages(gpu.k, cpu.k, what + ": K");
      ExpectSamePages(gpu.v, cpu.v, what + ": V");
      const double difference = Difference(gpu.out, cpu.out);
      EXPECT_LT(difference, 8e-3) << what;
      RecordProperty(what, std::to_string(difference));
      Outcome other = gpu;
      for (size_t i = 64; i < other.out.size(); i += 128) other.out[i] = cpu.out[i - 64];
      EXPECT_GT(Difference(other.out, cpu.out), 0.05) << "a channel of another head is seen";
    }
}

// More pages than a chunk of the decode kernel has.
TEST_F(CudaQaq, LongContextsInBf16) {
  if (Reduced()) GTEST_SKIP() << "not in the reduced list";
  const Shape shape{8, 2, 128};
  const int tokens = 20 * 64 + 5;
  for (const std::string& recipe : {std::string("qaq"), kMoving}) {
    const Outcome cpu = Play(*cpu_, recipe, shape, 700, false, DType::kBF16, tokens),
                  gpu = Play(*gpu_, recipe, shape, 700, false, DType::kBF16, tokens);
    ExpectSamePages(gpu.k, cpu.k, recipe + ": K");
    ExpectSamePages(gpu.v, cpu.v, recipe + ": V");
    EXPECT_LT(Difference(gpu.out, cpu.out), 8e-3) << recipe;
  }
}

TEST_F(CudaQaq, ASequenceComesBackFromTheHost) {
  for (const std::string& recipe : {kMoving, std::string("k=int8-token v=qaq:pick=cost")}) {
    std::vector<float> outs[2];
    std::vector<Page> pages[2];
    for (const bool swap : {false, true}) {
      Runner run(*gpu_, recipe, {4, 2, 64}, 2, DType::kF32);
      run.Step({300, 70});
      if (swap) run.Swap();
      run.TakeOut();
      run.Step({90, 3});
      Outcome got = run.Finish();
      outs[swap] = std::move(got.out), pages[swap] = std::move(got.v);
    }
    ASSERT_EQ(outs[0].size(), outs[1].size());
    EXPECT_EQ(std::memcmp(outs[0].data(), outs[1].data(), outs[0].size() * 4), 0) << recipe;
    ExpectSamePages(pages[1], pages[0], recipe);
  }
}

TEST_F(CudaQaq, AFullPrecisionCopyIsRefusedByName) {
  for (const std::string recipe : {"k=qaq:source=host", "v=qaq:source=host"}) {
    const Status status = gpu_->CheckRecipe(*ParseRecipe(recipe, DType::kF32), 64);
    EXPECT_EQ(status.code(), Code::kUnsupported) << recipe;
    EXPECT_NE(status.message().find("source=host"), std::string::npos) << status.message();
  }
  EXPECT_TRUE(gpu_->CheckRecipe(*ParseRecipe("qaq", DType::kF32), 64).ok());
}

}  // namespace
}  // namespace nibble
