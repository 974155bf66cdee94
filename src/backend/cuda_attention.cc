// SPDX-License-Identifier: Apache-2.0
// Floor 5. CUDA backend: the KV cache ops, and which recipes it takes. Of one layer, first every segment is
// appended and sealed, then every query attends.
#include <algorithm>

#include "backend/cuda_backend.h"
#include "backend/kv_view.h"
#include "backend/smoothing.h"
#include "base/check.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/kv_append.h"
#include "recipe/prompt_pages.h"

namespace nibble {
namespace {

void CheckSegments(const KvView& kv, int64_t rows, int kv_heads, int head_dim) {
  NIBBLE_CHECK(kv.kv_heads == kv_heads && kv.page.head_dim == head_dim, "KV view of another shape");
  NIBBLE_CHECK(kv.page.tokens == kv::kPageTokens, "KV view of other pages");
  for (const KvSegment& s : kv.segments) {
    NIBBLE_CHECK(s.rows > 0 && s.row >= 0 && s.row + s.rows <= rows, "segment outside the step's rows");
    NIBBLE_CHECK(s.position % kv.page.tokens + s.rows <= kv.page.tokens, "segment over two pages");
    NIBBLE_CHECK(size_t(s.table) + size_t(s.pages) <= kv.page_table.size(), "segment outside the page table");
  }
}

void CheckHeads(const Tensor& x, const char* what) {
  NIBBLE_CHECK(x.rank == 3 && x.dtype == DType::kF32 && x.device == Device::kCuda && x.stride[2] == 1, what);
}

cuda::AppendArgs RowsOf(const KvAppendArgs& a, const cuda::PagedKv& kv, unsigned long long* clamped) {
  return {.kv = kv,
          .k = a.k.as<const float>(),
          .v = a.v.as<const float>(),
          .k_stride = a.k.stride[0],
          .v_stride = a.v.stride[0],
          .k_head_stride = a.k.stride[1],
          .v_head_stride = a.v.stride[1],
          .clamped = clamped};
}

template <class Pick>
bool Any(const KvView& kv, Pick pick) {
  return std::any_of(kv.segments.begin(), kv.segments.end(), pick);
}

}  // namespace

Status CudaBackend::CheckRecipe(const AttentionRecipe& recipe, int head_dim) const {
  const auto missing = [&](const char* what) {
    return Error(Code::kUnsupported, "recipe '{}': {} is not there on a GPU yet; use --device cpu",
                 ToString(recipe), what);
  };
  if (head_dim > cuda::kMaxAttentionHeadDim)
    return Error(Code::kUnsupported, "heads of {} channels: on a GPU at most {}; use --device cpu", head_dim,
                 cuda::kMaxAttentionHeadDim);
  const bool host = (recipe.k == kv::CodecId::kQaq && recipe.k_qaq.source == kv::QaqSource::kHost) ||
                    (recipe.v == kv::CodecId::kQaq && recipe.v_qaq.source == kv::QaqSource::kHost);
  if (host) return missing("qaq with a full-precision copy on the host (source=host)");
  return {};
}

Status CudaBackend::ReservePrompts(const AttentionRecipe& recipe, int64_t seq_tokens, int step_tokens,
                                   int kv_heads, int head_dim) {
  if (PromptsOf(recipe, head_dim, 0) != Prompts::kDecoded) return {};
  const auto grow = [this](Buffer* buffer, int64_t bytes) -> Status {
    if (bytes <= int64_t(buffer->bytes)) return {};
    Free(std::exchange(*buffer, {}));
    NIBBLE_ASSIGN(*buffer, Alloc(size_t(bytes)));
    return {};
  };
  const int64_t pages = PromptPages(seq_tokens, step_tokens);
  NIBBLE_RETURN_IF_ERROR(grow(&prompt_pages_, PromptBytes(pages, kv_heads, head_dim)));
  prompt_step_tokens_ = std::max(prompt_step_tokens_, step_tokens);
  const int heads = int(max_q_width_ / head_dim);  // Reserve's
  return grow(&prompt_codes_, PromptCodeBytes(recipe, pages, prompt_step_tokens_, heads, kv_heads, head_dim));
}

// Calibration makes plans by the dozen, one where another was: what counts is the content.
const float* CudaBackend::OfPlan(const std::vector<float>& values) {
  if (values.empty()) return nullptr;
  PlanVector& kept = plan_vectors_[values.data()];
  if (kept.values == values) return reinterpret_cast<const float*>(kept.buffer.data);
  const size_t bytes = values.size() * sizeof(float);
  Free(kept.buffer);
  const auto buffer = Alloc(bytes);
  NIBBLE_CHECK(buffer.ok(), "no memory for the vectors of a plan");
  kept = {values, *buffer};
  Upload(values.data(), kept.buffer.data, bytes);
  return reinterpret_cast<const float*>(kept.buffer.data);
}

cuda::PagedKv CudaBackend::PagedOf(const KvView& kv) {
  const auto side = [&kv](bool is_v) {
    const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
    const HeadMix& mix = is_v ? kv.v_mix : kv.k_mix;
    return cuda::PagedSide{.codec = codec.id,
                           .raw = codec.raw,
                           .pool = is_v ? kv.v_pool : kv.k_pool,
                           .tail = is_v ? kv.v_tail : kv.k_tail,
                           .scratch = is_v ? kv.v_scratch : kv.k_scratch,
                           .page_stride = kv::RowBytes(codec, kv.page, kv.kv_heads, mix.two_bit),
                           .head_stride = codec.pool_bytes(kv.page),
                           .raw_bytes = int64_t(RawBytes(kv, codec.raw)),
                           .places = mix.places,
                           .two_bit = codec.two_bit,
                           .two_bit_bytes = kv::Get(codec.two_bit).pool_bytes(kv.page)};
  };
  return {.k = side(false),
          .v = side(true),
          .side_pool = kv.side_pool,
          .side_tail = kv.side_tail,
          .side_bytes = kv.side.bytes,
          .side_seq_bytes = kv.side.seq_bytes,
          .segments = segments_.Send(kv.segments, *ring_),
          .page_table = page_table_.Send(kv.page_table, *ring_),
          .segment_count = int(kv.segments.size()),
          .kv_heads = kv.kv_heads,
          .page = kv.page,
          .open = TailOf(kv)};
}

const uint8_t* CudaBackend::PlannedHeads(const std::vector<bool>& heads) {
  const std::vector<uint8_t> bytes(heads.begin(), heads.end());
  const auto known = std::find_if(planned_heads_.begin(), planned_heads_.end(),
                                  [&bytes](const auto& p) { return p.first == bytes; });
  if (known != planned_heads_.end()) return reinterpret_cast<const uint8_t*>(known->second.data);
  const auto buffer = Alloc(bytes.size());
  NIBBLE_CHECK(buffer.ok(), "no memory for the heads of a plan");
  Upload(bytes.data(), buffer->data, bytes.size());
  planned_heads_.emplace_back(bytes, *buffer);
  return reinterpret_cast<const uint8_t*>(buffer->data);
}

void CudaBackend::ChooseHeads(const KvView& view, const cuda::PagedKv& kv, bool is_v) {
  const HeadMix& mix = is_v ? view.v_mix : view.k_mix;
  if (mix.places == nullptr) return;
  const uint8_t* planned = nullptr;
  if (view.plan != nullptr) {
    const std::vector<bool>& heads = is_v ? view.plan->v_two_bit : view.plan->k_two_bit;
    NIBBLE_CHECK(heads.empty() || std::count(heads.begin(), heads.end(), true) == mix.two_bit,
                 "a plan with another number of 2-bit heads");
    if (!heads.empty()) planned = PlannedHeads(heads);
  }
  CheckCuda(cuda::ChooseHeads(kv, is_v, mix.two_bit, planned, stream_));
}

// A decode row sees its own page raw, so that no row of a decode step reads what the step seals.
bool CudaBackend::Defers(const KvView& kv) const {
  return deferring_ && kv.k_mix.places == nullptr && kv.v_mix.places == nullptr && !NeedsKeyMean(kv) &&
         !(kv.side.v_sum && kv.side.k_copy);
}

void CudaBackend::SealDeferred() {
  for (size_t first = 0; first < deferred_.size(); first += cuda::kMostSealLayers) {
    cuda::SealLayersArgs args{.kv = deferred_[first], .layers = {}, .count = 0};
    for (size_t i = first; i < deferred_.size() && args.count < cuda::kMostSealLayers; ++i) {
      const cuda::PagedKv& kv = deferred_[i];
      args.layers[args.count++] = {kv.k.pool, kv.v.pool, kv.k.tail, kv.v.tail};
    }
    CheckCuda(cuda::SealLayers(args, stream_));
  }
  deferred_.clear();
}

// Where the last two rotations are of this step's q and k, and every segment has one row: all in one launch.
bool CudaBackend::RotateAndAppend(const KvAppendArgs& a, const cuda::PagedKv& kv) {
  if (rotations_.size() != 2 || kv.open != kv::Tail::kFloat) return false;
  const Rotation &q = rotations_[0], &k = rotations_[1];
  const bool mine = k.x.data == a.k.data && k.x.dim == a.k.dim && q.x.dim[0] == a.k.dim[0] &&
                    q.x.dim[2] == a.k.dim[2] && q.cos.data == k.cos.data;
  if (!mine || int64_t(a.kv.segments.size()) != a.k.dim[0]) return false;
  if (Any(a.kv, [](const KvSegment& s) { return s.rows != 1 || s.copy_from >= 0; })) return false;
  const int heads = int(q.x.dim[1]);
  const bool rounded = AttendsOnTensorCores(a.kv, heads);
  NIBBLE_CHECK(!rounded || (q.x.dim[0] <= max_rows_ && heads * q.x.dim[2] <= max_q_width_),
               "KvAppend: more than Reserve was told");
  const cuda::RopeAppendArgs args{.append = RowsOf(a, kv, &device_counters_->tail_clamped),
                                  .q = q.x.as<float>(),
                                  .k = k.x.as<float>(),
                                  .q_stride = q.x.stride[0],
                                  .cos = q.cos.as<const float>(),
                                  .sin = q.sin.as<const float>(),
                                  .q_bf16 = rounded ? q_bf16_ : nullptr,
                                  .heads = heads};
  rotations_.clear();
  Begin();
  CheckCuda(cuda::RopeAndAppend(args, stream_));
  if (rounded) rounded_queries_ = args.q;
  return true;
}

void CudaBackend::KvAppend(const KvAppendArgs& a) {
  CheckHeads(a.k, "KvAppend: k"), CheckHeads(a.v, "KvAppend: v");
  NIBBLE_CHECK(a.k.dim == a.v.dim, "KvAppend: k and v shapes");
  CheckSegments(a.kv, a.k.dim[0], int(a.k.dim[1]), int(a.k.dim[2]));
  if (a.kv.segments.empty()) return;
  const cuda::PagedKv kv = PagedOf(a.kv);
  if (!RotateAndAppend(a, kv)) {
    Begin();
    if (Any(a.kv, [](const KvSegment& s) { return s.copy_from >= 0; }))
      CheckCuda(cuda::CopyOpenRows(kv, stream_));
    CheckCuda(cuda::AppendRows(RowsOf(a, kv, &device_counters_->tail_clamped), stream_));
  }
  if (kv.open == kv::Tail::kInt8) {
    counters_.tail_values += 2 * a.k.numel();
    if (recording_ != nullptr) recording_->tail_values += 2 * a.k.numel();
  }
  if (!Any(a.kv, [](const KvSegment& s) { return s.seal_page >= 0; })) return;
  if (Defers(a.kv)) return deferred_.push_back(kv);
  for (const bool is_v : {false, true}) ChooseHeads(a.kv, kv, is_v);
  CheckCuda(cuda::SealPages(kv, NeedsKeyMean(a.kv) ? a.kv.side.k_mean.offset : -1, stream_));
  const SideLayout& side = a.kv.side;
  if (side.v_sum && side.k_copy)
    CheckCuda(cuda::SealRecords(kv, a.kv.recipe->select.sparq.copy, side.v_sum.offset, side.k_copy.offset,
                                stream_));
}

cuda::Means CudaBackend::MeansOf(const KvView& kv) {
  cuda::Means means{.k = nullptr, .q = nullptr, .k_record = -1, .q_record = -1};
  if (kv.recipe == nullptr || !IsInteger(kv.recipe->arithmetic.qk)) return means;
  const Smooth smooth = kv.recipe->arithmetic.smooth;
  if (smooth == Smooth::kNone) return means;
  NeedsKeyMean(kv) ? void(means.k_record = kv.side.k_mean.offset) : void(means.k = OfPlan(kv.plan->k_mean));
  if (smooth != Smooth::kQK) return means;
  NeedsQuerySums(kv) ? void(means.q_record = kv.side.q_sum.offset) : void(means.q = OfPlan(kv.plan->q_mean));
  return means;
}

// What every row reads when it is a decode step by itself.
void CudaBackend::CountDense(const KvView& kv, int64_t window) {
  if (recording_ != nullptr) recording_->attends.emplace_back(kv, window);
  const kv::CodecInfo &k = kv::Get(kv.k_codec), &v = kv::Get(kv.v_codec);
  const int tokens = kv.page.tokens, dim = kv.page.head_dim;
  const int raw_row =
      kv::TailRowBytes(TailOf(kv), k.raw, kv.page) + kv::TailRowBytes(TailOf(kv), v.raw, kv.page);
  // Of all heads: those of 2 bits are as many in every sequence.
  const auto of_heads = [&kv](const kv::CodecInfo& codec, const HeadMix& mix) {
    if (codec.requantizes) return int64_t{0};  // the device knows the widths
    return int64_t{kv.kv_heads - mix.two_bit} * codec.page_bytes(kv.page) +
           int64_t{mix.two_bit} * kv::Get(codec.two_bit).page_bytes(kv.page);
  };
  const int64_t page_bytes = of_heads(k, kv.k_mix) + of_heads(v, kv.v_mix);
  for (const KvSegment& s : kv.segments)
    for (int row = s.dense_rows; row < DenseRows(kv, s); ++row) {
      const int64_t position = s.position + row, own = position / tokens * tokens;
      const int64_t first = FirstSeen(position, window), seen = position - first + 1;
      const int64_t pages = std::max<int64_t>(0, own / tokens - first / tokens);
      counters_.rows += kv.kv_heads;
      counters_.tokens_read += kv.kv_heads * seen;
      counters_.scalars_read += kv.kv_heads * (2 * seen + 2) * dim;
      counters_.bytes_read +=
          pages * page_bytes + kv.kv_heads * (position - std::max(own, first) + 1) * raw_row;
    }
}

bool CudaBackend::AttendsOnTensorCores(const KvView& kv, int heads) const {
  if (kv.recipe == nullptr || !DecodeEntries::Takes(*kv.recipe, heads, kv.kv_heads, kv.page.head_dim))
    return false;
  for (int head = 0; SelectOf(kv) == SelectKind::kSparq && head < kv.kv_heads; ++head) {  // a plan by heads
    const SparqParams p = SparqOfHead(*kv.recipe, kv.plan, head);
    if (!(p == SparqOfHead(*kv.recipe, kv.plan, 0)) || !DecodeEntries::TakesSparq(p, kv.page.head_dim))
      return false;
  }
  return true;
}

CudaBackend::Prompts CudaBackend::PromptsOf(const AttentionRecipe& recipe, int head_dim,
                                            int64_t window) const {
  if (!IsHopper() || window != 0) return Prompts::kAsAll;
  if (PrefillSequences::Takes(recipe, head_dim, window)) return Prompts::kBf16Pages;
  return DecodesPrompts(recipe, head_dim) ? Prompts::kDecoded : Prompts::kAsAll;
}

// The rows below dense_rows, into out_bf16_. REQUIRES rounded queries.
void CudaBackend::AttendPrompts(const AttendArgs& a, const cuda::PagedKv& kv, Prompts kind) {
  if (kind == Prompts::kBf16Pages)
    prefill_->Run({kv, q_bf16_, out_bf16_, a.heads, a.scale}, a.kv.segments, a.kv.page_table, *ring_);
  if (kind == Prompts::kBf16Pages) return;
  const AttentionRecipe& recipe = *a.kv.recipe;
  UnpackedPrompts::Args args{kv,      q_bf16_, out_bf16_,
                             a.heads, a.scale, std::span(prompt_pages_.data, prompt_pages_.bytes)};
  const auto run = [&] { prompts_->Run(args, a.kv.segments, a.kv.page_table, *ring_); };
  const std::span codes(prompt_codes_.data, prompt_codes_.bytes);
  const UnpackedPrompts::Turbo turbo{.q = a.q.as<const float>(),
                                     .q_stride = a.q.stride[0],
                                     .polynomial = PolynomialOf(recipe.arithmetic),
                                     .threshold = int(recipe.arithmetic.sas.threshold),
                                     .memory = codes,
                                     .step_tokens = prompt_step_tokens_};
  if (TurboPrompts(recipe, kv.page.head_dim)) args.turbo = &turbo;
  if (!SagePrompts(recipe, kv.page.head_dim)) return run();
  const cuda::Means means = MeansOf(a.kv);
  const UnpackedPrompts::Sage sage{.q = a.q.as<const float>(),
                                   .q_stride = a.q.stride[0],
                                   .k_mean = means.k,
                                   .records = means.k_record >= 0 ? kv.side_tail + means.k_record : nullptr,
                                   .record_stride = kv.side_seq_bytes,
                                   .q_mean = means.q,
                                   .q_sums = means.q_record >= 0 ? kv.side_pool + means.q_record : nullptr,
                                   .q_sum_stride = kv.side_bytes,
                                   .levels = recipe.arithmetic.qk == QkArith::kInt4Thread ? 7.0f : 127.0f,
                                   .by_page = recipe.arithmetic.qk == QkArith::kInt8Block,
                                   .memory = codes,
                                   .step_tokens = prompt_step_tokens_};
  args.sage = &sage;
  run();
}

void CudaBackend::RoundQueries(const AttendArgs& a) {
  const int rows = int(a.q.dim[0]), width = a.heads * a.kv.page.head_dim;
  NIBBLE_CHECK(rows <= max_rows_ && width <= max_q_width_, "Attention: more than Reserve was told");
  const bool rounded = rounded_queries_ == a.q.data;
  Begin();
  if (!rounded)
    CheckCuda(cuda::RoundToBf16(
        {.x = a.q.as<const float>(), .to = q_bf16_, .x_stride = a.q.stride[0], .rows = rows, .k = width},
        stream_));
}

void CudaBackend::AttendEntries(const AttendArgs& a, const cuda::PagedKv& kv, DecodeEntries::Rows which) {
  entries_->Prepare(a.kv.segments, a.kv.page_table, which, *ring_);
  entries_->Run(EntriesOf(a, kv));
}

DecodeEntries::Args CudaBackend::EntriesOf(const AttendArgs& a, const cuda::PagedKv& kv) const {
  return {
      .kv = kv, .q = q_bf16_, .out = out_bf16_, .heads = a.heads, .scale = a.scale, .window = int(a.window)};
}

// From out_bf16_ into the step's outputs.
void CudaBackend::WidenOutputs(const AttendArgs& a) {
  const int rows = int(a.q.dim[0]), width = a.heads * a.kv.page.head_dim;
  const cuda::WidenArgs widen{
      .x = out_bf16_, .to = a.out.as<float>(), .to_stride = a.out.stride[0], .rows = rows, .k = width};
  const cuda::RowCopies copies = CopiesFor(width);
  if (!copies.any()) return CheckCuda(cuda::WidenBf16(widen, stream_));
  CheckCuda(cuda::WidenRows(widen, copies, stream_));
  Leave(Tensor::Dense(a.out.data, DType::kF32, Device::kCuda, {rows, width}), out_bf16_);
}

void CudaBackend::AttendOnTensorCores(const AttendArgs& a, const cuda::PagedKv& kv) {
  RoundQueries(a);
  using Rows = DecodeEntries::Rows;
  const bool prompts = Any(a.kv, [](const KvSegment&s) { return s.dense_rows > 0; }),
             others = Any(a.kv, [](const KvSegment&s) { return s.dense_rows < s.rows; }),
             selects = SelectOf(a.kv) != SelectKind::kAll;
  const Prompts kind = PromptsOf(*a.kv.recipe, a.kv.page.head_dim, a.window);
  const bool apart = kind != Prompts::kAsAll;
  if (!apart && !selects) {
    AttendEntries(a, kv, Rows::kAll);
  } else {
    if (prompts && apart) AttendPrompts(a, kv, kind);
    if (prompts && !apart) AttendEntries(a, kv, Rows::kDense);
    if (others && selects) AttendBySparq(a, EntriesOf(a, kv));
    if (others && !selects) AttendEntries(a, kv, Rows::kOther);
  }
  WidenOutputs(a);
}

void CudaBackend::Attention(const AttendArgs& a) {
  Attend(a);
  AfterLayer();
}

void CudaBackend::Attend(const AttendArgs& a) {
  const KvView& kv = a.kv;
  CheckHeads(a.q, "Attention: q"), CheckHeads(a.out, "Attention: out");
  NIBBLE_CHECK(a.q.dim == a.out.dim && a.q.dim[1] == a.heads, "Attention: q and out shapes");
  NIBBLE_CHECK(a.heads % kv.kv_heads == 0, "Attention: heads must be a multiple of kv_heads");
  NIBBLE_CHECK(a.q.stride[1] == kv.page.head_dim && a.out.stride[1] == kv.page.head_dim, "Attention: heads");
  CheckSegments(kv, a.q.dim[0], kv.kv_heads, int(a.q.dim[2]));
  if (kv.segments.empty()) return;
  CountDense(kv, a.window);
  if (kv.qaq_state != nullptr) return AttendInWaves(a);
  if (AttendsOnTensorCores(kv, a.heads)) return AttendOnTensorCores(a, PagedOf(kv));
  const Prompts kind =
      kv.recipe != nullptr ? PromptsOf(*kv.recipe, kv.page.head_dim, a.window) : Prompts::kAsAll;
  const bool apart = kind != Prompts::kAsAll && Any(kv, [](const KvSegment& s) { return s.dense_rows > 0; });
  AttendPages(a, PagedOf(kv), apart ? kind : Prompts::kAsAll);
}

// Rows that attend to all they see: prompts by the kernel of their `kind`, where they have one, and all
// others; then those that select.
void CudaBackend::AttendPages(const AttendArgs& a, const cuda::PagedKv& paged, Prompts kind) {
  const KvView& kv = a.kv;
  const bool selects = SelectOf(kv) != SelectKind::kAll, apart = kind != Prompts::kAsAll;
  int most_rows = 0;
  for (const KvSegment& s : kv.segments)
    most_rows = std::max(most_rows, (selects ? s.dense_rows : s.rows) - (apart ? s.dense_rows : 0));
  const cuda::PageAttentionArgs args{
      .kv = paged,
      .q = a.q.as<const float>(),
      .out = a.out.as<float>(),
      .q_stride = a.q.stride[0],
      .out_stride = a.out.stride[0],
      .heads = a.heads,
      .most_rows = most_rows,
      .scale = a.scale,
      .window = a.window,
      .arithmetic = kv.recipe != nullptr ? kv.recipe->arithmetic : Arithmetic{},
      .means = MeansOf(kv),
      .skip_dense = apart,
      .selecting = selects,
      .counters = &device_counters_->sas};
  if (apart) RoundQueries(a);
  Begin();
  if (args.means.q_record >= 0) CheckCuda(cuda::SumQueries(args, stream_));
  if (apart) {  // all rows are widened; the kernels below replace those that are no prompt's
    AttendPrompts(a, args.kv, kind);
    CheckCuda(cuda::WidenBf16({.x = out_bf16_,
                               .to = a.out.as<float>(),
                               .to_stride = a.out.stride[0],
                               .rows = int(a.q.dim[0]),
                               .k = a.heads * kv.page.head_dim},
                              stream_));
  }
  if (most_rows > 0) CheckCuda(cuda::PageAttention(args, stream_));
  if (args.selecting) AttendSelected(a, args.kv);
}

AttentionCounters CudaBackend::TakeCounters() {
  DeviceCounters device{};
  Download(reinterpret_cast<const std::byte*>(device_counters_), &device, sizeof device);
  CheckCuda(cudaMemsetAsync(device_counters_, 0, sizeof device, stream_), "counters");
  Sync();
  AttentionCounters sum = std::exchange(counters_, {});
  sum.rows += int64_t(device.select.rows);
  sum.tokens_read += int64_t(device.select.tokens);
  sum.scalars_read += int64_t(device.select.scalars);
  sum.bytes_read += int64_t(device.select.bytes);
  sum.dense_fallbacks = int64_t(device.select.fallbacks);
  sum.sas_rows = int64_t(device.sas.rows);
  sum.sas_dropped = int64_t(device.sas.dropped);
  sum.sas_dropped_mass = int64_t(device.sas.dropped_mass);
  sum.tail_clamped = int64_t(device.tail_clamped);
  return sum;
}

std::string CudaBackend::ExplainAttention(const AttentionRecipe& recipe) const {
  const Arithmetic& a = recipe.arithmetic;
  // Of a head size that all kernels take; ops ask with the model's own.
  const Prompts kind = PromptsOf(recipe, 128, 0);
  const std::string prompts =
      kind == Prompts::kBf16Pages ? "cuda/exact-wgmma/bf16"
      : SagePrompts(recipe, 128) && IsHopper()
          ? (a.qk == QkArith::kInt4Thread ? "cuda/sage-wgmma/int4,e4m3" : "cuda/sage-wgmma/int8,e4m3")
      : TurboPrompts(recipe, 128) && IsHopper() ? "cuda/turbo-wgmma/int8,int8"
      : kind == Prompts::kDecoded
          ? fmt::format("cuda/exact-wgmma/decoded {},{}", kv::Get(recipe.k).name, kv::Get(recipe.v).name)
          : "";
  if (DecodeEntries::Takes(recipe, 1, 1, 128)) {
    const std::string entries = fmt::format("cuda/decode-mma/{}", kv::Get(recipe.k).name);
    const bool selects = recipe.select.kind != SelectKind::kAll;
    if (prompts.empty() && !selects) return entries;
    return fmt::format("prompts {}; decode rows {}", prompts.empty() ? entries : prompts,
                       selects ? fmt::format("cuda/sparq-mma/{}", kv::Get(recipe.k).name) : entries);
  }
  std::string text = prompts.empty() ? std::string() : fmt::format("prompts {}; other rows ", prompts);
  text += fmt::format("cuda/pages-f32/k={},v={}", kv::Get(recipe.k).name, kv::Get(recipe.v).name);
  if (a.softmax != SoftmaxKind::kExact) text += "; softmax by SAS";
  if (IsInteger(a.qk)) text += "; sealed pages: QK of integers held in f32";
  if (const std::string_view rows = SelectKernelName(recipe.select); !rows.empty())
    text += fmt::format("; decode rows {}", rows);
  if (!IsFloat(a.pv)) text += "; sealed pages: PV rounded as on tensor cores, simulated in f32";
  return text;
}

}  // namespace nibble
