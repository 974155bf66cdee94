// SPDX-License-Identifier: Apache-2.0
// Perplexity and divergence: the row mathematics against values computed by hand, the windows, and Evaluate
// over an engine whose logits are a known function of position and token.
#include "engine/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/thread_pool.h"
#include "text/decode_run.h"

namespace nibble {
namespace {

const float kInf = std::numeric_limits<float>::infinity();

float Ln(double p) { return float(std::log(p)); }

TEST(ScoreRow, LogSoftmaxByHand) {
  // Logits ln 1, ln 2, ln 5 are probabilities 1/8, 2/8, 5/8.
  const std::vector<float> row = {Ln(1), Ln(2), Ln(5)};
  EXPECT_NEAR(ScoreRow(row, 0).nll, std::log(8.0), 1e-6);
  EXPECT_NEAR(ScoreRow(row, 1).nll, std::log(4.0), 1e-6);
  EXPECT_NEAR(ScoreRow(row, 2).nll, std::log(1.6), 1e-6);
  EXPECT_EQ(ScoreRow(row, 0).argmax, 2);
}

TEST(ScoreRow, LargeLogitsAndTies) {
  EXPECT_NEAR(ScoreRow(std::vector<float>{10000, 10000}, 1).nll, std::log(2.0), 1e-12);
  EXPECT_NEAR(ScoreRow(std::vector<float>{-10000, 0}, 0).nll, 10000, 1e-9);
  EXPECT_EQ(ScoreRow(std::vector<float>{1, 3, 3}, 0).argmax, 1);
  EXPECT_NEAR(ScoreRow(std::vector<float>{-kInf, 0, 0}, 1).nll, std::log(2.0), 1e-12);
}

TEST(CompareRows, DivergenceByHand) {
  // reference (1/2, 1/4, 1/4), model (1/4, 1/4, 1/2): KL = 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2. The other way
  // round it is the same number, so the second pair tells the directions apart:
  // KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812, reversed 0.143841.
  const std::vector<float> r = {Ln(2), Ln(1), Ln(1)}, m = {Ln(1), Ln(1), Ln(2)};
  const RowComparison c = CompareRows(m, r, 0);
  EXPECT_NEAR(c.kld, 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(c.nll, std::log(4.0), 1e-6);
  EXPECT_NEAR(c.reference_nll, std::log(2.0), 1e-6);
  EXPECT_NEAR(c.delta_p, -0.25, 1e-6);
  EXPECT_FALSE(c.same_top);

  const std::vector<float> skewed = {Ln(3), Ln(1)}, flat = {7, 7};
  EXPECT_NEAR(CompareRows(flat, skewed, 0).kld, 0.130812, 1e-5);
  EXPECT_NEAR(CompareRows(skewed, flat, 0).kld, 0.143841, 1e-5);
  EXPECT_TRUE(CompareRows(flat, skewed, 0).same_top);  // equal logits: the smaller id
}

TEST(CompareRows, EqualRowsAreExactlyZero) {
  std::vector<float> row(4096);
  for (size_t i = 0; i < row.size(); ++i) row[i] = std::sin(float(i)) * 20;
  const RowComparison c = CompareRows(row, row, 17);
  EXPECT_EQ(c.kld, 0);
  EXPECT_EQ(c.delta_p, 0);
  EXPECT_EQ(c.nll, c.reference_nll);
  EXPECT_TRUE(c.same_top);
}

TEST(CompareRows, ShiftDoesNotMatterAndSmallDivergencesAreResolved) {
  std::vector<float> a(1000, 0.0f), b(1000, 0.0f);
  a[3] = 0.001f;  // KL = (d^2 / 2) p (1 - p) to leading order, p = 1/1000
  const double want = 0.5 * 1e-6 * 0.001 * 0.999;
  EXPECT_NEAR(CompareRows(b, a, 0).kld / want, 1, 2e-3);
  for (float& z : b) z += 64;
  EXPECT_NEAR(CompareRows(b, a, 0).kld / want, 1, 2e-3);
}

TEST(CompareRows, MaskedEntries) {
  const std::vector<float> r = {0, 0, -kInf}, m = {0, 0, -kInf}, impossible = {0, -kInf, 0};
  EXPECT_EQ(CompareRows(m, r, 0).kld, 0);
  EXPECT_TRUE(std::isinf(CompareRows(impossible, r, 0).kld));
}

TEST(Summarize, QuantilesInterpolate) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Distribution d = Summarize(values);
  EXPECT_DOUBLE_EQ(d.mean, 50);
  EXPECT_DOUBLE_EQ(d.median, 50);
  EXPECT_DOUBLE_EQ(d.p99, 99);
  EXPECT_DOUBLE_EQ(d.p999, 99.9);
  EXPECT_DOUBLE_EQ(d.max, 100);
  EXPECT_DOUBLE_EQ(Summarize(std::vector<double>{1, 2}).median, 1.5);
  EXPECT_DOUBLE_EQ(Summarize(std::vector<double>{4}).p99, 4);
}

TEST(CutWindows, FullWindowsOnlyAndShortTexts) {
  const std::vector<int32_t> ids = {10, 11, 12, 13, 14, 15, 16};
  EXPECT_EQ(CutWindows(ids, 1, 4, 40), (Windows{{1, 10, 11, 12}, {1, 13, 14, 15}}));
  EXPECT_EQ(CutWindows(ids, 1, 4, 1), (Windows{{1, 10, 11, 12}}));
  EXPECT_EQ(CutWindows(ids, -1, 3, 40), (Windows{{10, 11, 12}, {13, 14, 15}}));
  EXPECT_EQ(CutWindows(ids, 1, 100, 40), (Windows{{1, 10, 11, 12, 13, 14, 15, 16}}));
  EXPECT_EQ(CutWindows(ids, 1, 8, 40).size(), 1u);
}

constexpr int kVocab = 40;

class ByteTokenizer final : public Tokenizer {  // one id a character, 'a' is 2
 public:
  explicit ByteTokenizer(int offset) : offset_(offset) {}
  Result<std::vector<int32_t>> Encode(std::string_view text, SpecialTokens, SpecialText) const override {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(c - 'a' + offset_);
    return ids;
  }
  std::string Decode(std::span<const int32_t>, bool) const override { return ""; }
  std::string TokenText(int32_t) const override { return ""; }
  bool IsSpecial(int32_t) const override { return false; }
  int vocab_size() const override { return kVocab; }
  Result<TokenSpellings> Spellings() const override { return TokenSpellings(); }
  std::unique_ptr<DecodeRun> StartDecode(bool) const override { std::abort(); }

 private:
  int offset_;
};

// Logits are sharpness * sin(position, token, id), handed over in blocks of `block` rows.
class SineEngine final : public Engine {
 public:
  SineEngine(float sharpness, int block, int offset = 2)
      : sharpness_(sharpness), block_(block), tokenizer_(offset) {
    config_.vocab = kVocab;
    config_.max_position = 64;
    config_.bos_token = 1;
  }
  std::vector<float> Row(int64_t position, int32_t token) const {
    std::vector<float> row(kVocab);
    for (int id = 0; id < kVocab; ++id)
      row[size_t(id)] = sharpness_ * std::sin(float(position * 7 + token * 3 + id * id));
    if (position == bad_row) row[5] = std::numeric_limits<float>::quiet_NaN();
    return row;
  }
  using Engine::Score;
  Status Score(std::span<const int32_t> tokens, int64_t prefill, const OnLogits& on_logits) override {
    EXPECT_EQ(prefill, 0);
    fed.emplace_back(tokens.begin(), tokens.end());
    for (int64_t first = 0; first < int64_t(tokens.size()); first += block_) {
      const int64_t rows = std::min<int64_t>(block_, int64_t(tokens.size()) - first);
      std::vector<float> block;
      for (int64_t i = first; i < first + rows; ++i) {
        const std::vector<float> row = Row(i, tokens[size_t(i)]);
        block.insert(block.end(), row.begin(), row.end());
      }
      NIBBLE_RETURN_IF_ERROR(
          on_logits(first, Tensor::Dense(block.data(), DType::kF32, Device::kCpu, {rows, kVocab})));
    }
    return {};
  }
  Result<std::vector<Completion>> Generate(std::span<const Request>, const std::atomic<bool>*) override {
    return Error(Code::kUnsupported, "this engine only scores");
  }
  Result<std::unique_ptr<Engine>> WithRecipe(const std::string&) const override { std::abort(); }
  void Observe(Observer*) override { FAIL() << "not called"; }
  RowReads TakeReads() override { return {}; }
  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const AttentionRecipe& recipe() const override { return recipe_; }
  Backend& backend() override { std::abort(); }
  EngineParts parts() override { std::abort(); }
  size_t weight_bytes() const override { return 0; }
  KvSizes kv_sizes() const override { return {}; }
  std::vector<std::string> Explain() const override { return {}; }
  std::vector<std::string> Notes() const override { return {}; }

  ModelConfig config_;
  std::vector<std::vector<int32_t>> fed;
  int64_t bad_row = -1;

 private:
  float sharpness_;
  int block_;
  ByteTokenizer tokenizer_;
  AttentionRecipe recipe_;
};

// The definition, written down once more: no blocks, no threads, probabilities instead of logarithms.
struct Expected {
  double nll = 0, reference_nll = 0, kld = 0, same_top = 0;
  int tokens = 0;
};
Expected Slow(const SineEngine& model, const SineEngine& reference,
              const std::vector<std::vector<int32_t>>& windows) {
  Expected e;
  for (const auto& window : windows)
    for (size_t t = 0; t + 1 < window.size(); ++t, ++e.tokens) {
      const auto m = model.Row(int64_t(t), window[t]), r = reference.Row(int64_t(t), window[t]);
      double sum_m = 0, sum_r = 0;
      for (size_t i = 0; i < kVocab; ++i) sum_m += std::exp(double(m[i])), sum_r += std::exp(double(r[i]));
      for (size_t i = 0; i < kVocab; ++i) {
        const double pm = std::exp(double(m[i])) / sum_m, pr = std::exp(double(r[i])) / sum_r;
        e.kld += pr * std::log(pr / pm);
        if (i != size_t(window[t + 1])) continue;
        e.nll -= std::log(pm);
        e.reference_nll -= std::log(pr);
      }
      e.same_top += std::max_element(m.begin(), m.end()) - m.begin() ==
                    std::max_element(r.begin(), r.end()) - r.begin();
    }
  for (double* v : {&e.nll, &e.reference_nll, &e.kld, &e.same_top}) *v /= e.tokens;
  return e;
}

const std::string_view kText = "itwasadarkandstormynightandtherainfellintorrents";

EvaluateOptions SmallWindows(int threads) {
  EvaluateOptions options;
  options.window = 12;
  options.threads = threads;
  return options;
}

TEST(Evaluate, AgreesWithTheDefinition) {
  SineEngine model(2.0f, 5), reference(1.5f, 3);
  const auto report = Evaluate(model, &reference, kText, SmallWindows(2));
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_EQ(model.fed.size(), 4u);  // 48 characters: four pieces of 11, four left over
  EXPECT_EQ(model.fed, reference.fed);
  EXPECT_EQ(model.fed[1][0], 1);
  const Expected want = Slow(model, reference, model.fed);
  EXPECT_EQ(report->windows, 4);
  EXPECT_EQ(report->tokens, want.tokens);
  EXPECT_EQ(report->tokens, 44);
  EXPECT_NEAR(report->nll_per_token, want.nll, 1e-12);
  EXPECT_NEAR(report->perplexity, std::exp(want.nll), 1e-10);
  EXPECT_NEAR(report->reference->nll_per_token, want.reference_nll, 1e-12);
  EXPECT_NEAR(report->reference->kld.mean, want.kld, 1e-12);
  EXPECT_DOUBLE_EQ(report->reference->same_top, want.same_top);
  EXPECT_GT(report->reference->kld.max, report->reference->kld.median);
  EXPECT_GT(want.kld, 0.01);  // the two engines do differ: a report of zeros would not pass
}

TEST(Evaluate, ThreadsAndBlocksChangeNoBit) {
  SineEngine model(2.0f, 64), reference(1.5f, 64);
  const auto want = Evaluate(model, &reference, kText, SmallWindows(1));
  ASSERT_TRUE(want.ok());
  for (int threads : {1, 2, 3})
    for (int block : {1, 4, 11, 12}) {
      SineEngine m(2.0f, block), r(1.5f, 13 - block);
      const auto got = Evaluate(m, &r, kText, SmallWindows(threads));
      ASSERT_TRUE(got.ok());
      EXPECT_EQ(got->nll_per_token, want->nll_per_token);
      EXPECT_EQ(got->reference->kld.mean, want->reference->kld.mean);
      EXPECT_EQ(got->reference->delta_p_rms, want->reference->delta_p_rms);
    }
}

TEST(Evaluate, WithoutReference) {
  SineEngine model(2.0f, 5);
  int64_t last = 0, total = 0;
  EvaluateOptions options = SmallWindows(1);
  options.max_windows = 2;
  options.on_progress = [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done, total = all;
  };
  const auto report = Evaluate(model, nullptr, kText, options);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->tokens, 22);
  EXPECT_FALSE(report->reference.has_value());
  EXPECT_NEAR(report->nll_per_token, Slow(model, model, model.fed).nll, 1e-12);
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, 24);
}

TEST(Evaluate, KeptReferenceIsComputedOnceAndChangesNoBit) {
  SineEngine reference(1.5f, 5), lock_step(1.5f, 5);
  const EvaluateOptions options = SmallWindows(2);
  const auto windows = CutText(reference, nullptr, kText, options);
  ASSERT_TRUE(windows.ok());
  const size_t window_bytes = 12 * kVocab * sizeof(float);
  ReferenceLogits logits(reference, 2 * window_bytes);  // of four windows
  for (const float sharpness : {2.0f, 2.5f}) {
    SineEngine model(sharpness, 4);
    const auto got = EvaluateWindows(model, &logits, *windows, options);
    const auto want = Evaluate(model, &lock_step, kText, options);
    ASSERT_TRUE(got.ok() && want.ok());
    EXPECT_EQ(got->reference->kld.mean, want->reference->kld.mean);
    EXPECT_EQ(got->reference->kld.p99, want->reference->kld.p99);
    EXPECT_EQ(got->reference->nll_per_token, want->reference->nll_per_token);
  }
  EXPECT_EQ(reference.fed.size(), 6u);  // windows 0 and 1 once, 2 and 3 for each model
  EXPECT_TRUE(logits.Kept(1));
  EXPECT_FALSE(logits.Kept(2));
}

TEST(Evaluate, CancelKeepsCompleteWindows) {
  SineEngine model(2.0f, 4);
  std::atomic<bool> cancel{false};
  EvaluateOptions options = SmallWindows(1);
  options.cancel = &cancel;
  options.on_progress = [&](int64_t done, int64_t) { cancel = done > 24; };
  const auto report = Evaluate(model, nullptr, kText, options);
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->cancelled);
  EXPECT_EQ(report->windows, 2);
  EXPECT_EQ(report->tokens, 22);

  options.on_progress = [&](int64_t, int64_t) { cancel = true; };
  EXPECT_EQ(Evaluate(model, nullptr, kText, options).status().code(), Code::kCancelled);
}

TEST(Evaluate, RefusesWhatCannotBeCompared) {
  SineEngine model(2.0f, 4), shifted(2.0f, 4, 3), wide(2.0f, 4);
  wide.config_.vocab = kVocab + 1;
  EXPECT_NE(Evaluate(model, &shifted, kText, SmallWindows(1)).status().message().find("from token 0"),
            std::string::npos);
  EXPECT_NE(Evaluate(model, &wide, kText, SmallWindows(1)).status().message().find("41"), std::string::npos);
  EXPECT_EQ(Evaluate(model, nullptr, "", SmallWindows(1)).status().code(), Code::kInvalidArgument);
  EvaluateOptions options;
  options.window = 65;
  EXPECT_NE(Evaluate(model, nullptr, kText, options).status().message().find("64"), std::string::npos);
  model.bad_row = 7;
  EXPECT_EQ(Evaluate(model, nullptr, kText, SmallWindows(1)).status().code(), Code::kCorrupt);
}

}  // namespace
}  // namespace nibble
