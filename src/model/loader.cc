// SPDX-License-Identifier: Apache-2.0
#include "model/loader.h"

#include <cstring>

#include "base/half.h"
#include "quant/weight/pack.h"

namespace nibble {
namespace {

std::string ShapeText(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Result<weight::Storage> FloatStorage(const io::TensorInfo& t) {
  switch (t.element) {
    case io::Element::kF32:
      return weight::Storage::kF32;
    case io::Element::kF16:
      return weight::Storage::kF16;
    case io::Element::kBF16:
      return weight::Storage::kBF16;
    default:
      return Error(Code::kUnsupported, "tensor {}: dtype {} where F32, F16 or BF16 is needed", t.name,
                   t.dtype);
  }
}

float ReadFloat(const std::byte* p, io::Element e, int64_t i) {
  if (e == io::Element::kF32) {
    float f;
    std::memcpy(&f, p + 4 * i, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, p + 2 * i, 2);
  return e == io::Element::kF16 ? HalfToFloat(h) : Bf16ToFloat(h);
}

}  // namespace

Result<const io::TensorInfo*> Loader::Tensor(const std::string& name, std::initializer_list<int64_t> shape) {
  const io::TensorInfo* t = weights_.Find(name);
  if (t == nullptr) {
    return Error(Code::kNotFound, "tensor {} is missing (the config asks for {})", name,
                 ShapeText({shape.begin(), shape.size()}));
  }
  if (!std::equal(t->shape.begin(), t->shape.end(), shape.begin(), shape.end())) {
    return Error(Code::kCorrupt, "tensor {} has shape {}, but the config says {}", name, ShapeText(t->shape),
                 ShapeText({shape.begin(), shape.size()}));
  }
  used_.insert(name);
  current_.push_back(t);
  return t;
}

// Kernels and packers read whole elements; a header of odd length puts data at odd addresses.
const std::byte* Loader::Aligned(const io::TensorInfo& t) {
  if (reads_file() || reinterpret_cast<uintptr_t>(t.data) % 4 == 0) return t.data;  // never read, or aligned
  aligned_copies_.emplace_back(t.data, t.data + t.bytes);
  return aligned_copies_.back().data();
}

Result<const std::byte*> Loader::Codes(const std::string& name, io::Element element,
                                       std::initializer_list<int64_t> shape) {
  NIBBLE_ASSIGN(const io::TensorInfo* t, Tensor(name, shape));
  if (t->element != element) {
    return Error(Code::kCorrupt, "tensor {}: dtype {} does not fit the format {}", name, t->dtype,
                 config_.weights.format);
  }
  return Aligned(*t);
}

Result<weight::WeightView> Loader::FloatView(const std::string& name, int n, int k) {
  NIBBLE_ASSIGN(const io::TensorInfo* t, Tensor(name + ".weight", {n, k}));
  NIBBLE_ASSIGN(const weight::Storage storage, FloatStorage(*t));
  return weight::WeightView{.storage = storage, .n = n, .k = k, .codes = Aligned(*t)};
}

Result<weight::WeightView> Loader::Int8View(const std::string& name, int n, int k) {
  NIBBLE_ASSIGN(const std::byte* codes, Codes(name + ".weight", io::Element::kI8, {n, k}));
  NIBBLE_ASSIGN(const std::byte* scale, Codes(name + ".weight_scale", io::Element::kF16, {n}));
  return weight::WeightView{.storage = weight::Storage::kW8A8,
                            .n = n,
                            .k = k,
                            .codes = codes,
                            .scale = reinterpret_cast<const uint16_t*>(scale)};
}

Result<weight::WeightView> Loader::Int4View(const std::string& name, int n, int k, weight::Storage storage) {
  weight::WeightView view{.storage = storage, .n = n, .k = k};
  NIBBLE_ASSIGN(view.codes, Codes(name + ".weight_packed", io::Element::kU8, {n, k / 2}));
  NIBBLE_ASSIGN(const std::byte* scale, Codes(name + ".weight_scale", io::Element::kF16, {n}));
  view.scale = reinterpret_cast<const uint16_t*>(scale);
  if (storage == weight::Storage::kW4A8Channel) {
    NIBBLE_ASSIGN(const std::byte* zero, Codes(name + ".weight_zero", io::Element::kU8, {n}));
    view.zero = reinterpret_cast<const uint8_t*>(zero);
    return view;
  }
  const int groups = k / weight::kGroup;
  NIBBLE_ASSIGN(const std::byte* group_scale,
                Codes(name + ".weight_group_scale", io::Element::kU8, {n, groups}));
  NIBBLE_ASSIGN(const std::byte* zero, Codes(name + ".weight_group_zero", io::Element::kU8, {n, groups}));
  view.group_scale = reinterpret_cast<const uint8_t*>(group_scale);
  view.zero = reinterpret_cast<const uint8_t*>(zero);
  return view;
}

Result<weight::PackedWeight> Loader::Pack(const std::string& name, const weight::WeightView& view) {
  if (reads_file()) {
    NIBBLE_ASSIGN(const std::vector<weight::PackedWeight> one, FromFile({&name, 1}, {&view, 1}));
    return one[0];
  }
  NIBBLE_RETURN_IF_ERROR(weight::CheckRanges(view, name));
  auto packed = backend_.Pack(view, arith_);
  if (!packed.ok()) return Error(packed.status().code(), "tensor {}: {}", name, packed.status().message());
  NIBBLE_RETURN_IF_ERROR(Packed(name, *packed));
  return packed;
}

// Their ranges were checked before they were written, and the file's sums since.
Result<std::vector<weight::PackedWeight>> Loader::FromFile(std::span<const std::string> names,
                                                           std::span<const weight::WeightView> views) {
  std::vector<weight::PackedWeight> mapped;
  for (size_t i = 0; i < views.size(); ++i) {
    const weight::WeightView& view = views[i];
    NIBBLE_RETURN_IF_ERROR(weight::CheckShape(view.storage, view.n, view.k));
    const weight::Layout layout = weight::LayoutFor(view.storage, arith_ == MatmulArith::kBF16);
    NIBBLE_ASSIGN(const weight::PackedWeight w, packed_->reader->Find(names[i], layout, view.n, view.k));
    mapped.push_back(w);
    bytes_ += w.bytes;
  }
  current_.clear();
  return backend_.Adopt(mapped);
}

Status Loader::Packed(const std::string& name, const weight::PackedWeight& w) {
  for (const io::TensorInfo* t : current_) weights_.Release(*t);
  current_.clear();
  aligned_copies_.clear();
  bytes_ += w.bytes;
  return packed_ != nullptr ? packed_->writer->Add(name, w) : Status{};
}

Result<weight::WeightView> Loader::View(const std::string& name, int n, int k) {
  const std::string& format = config_.weights.format;
  if (format.empty()) return FloatView(name, n, k);
  if (format == "w8a8") return Int8View(name, n, k);
  return Int4View(name, n, k,
                  format == "w4a8-g128" ? weight::Storage::kW4A8Group : weight::Storage::kW4A8Channel);
}

Result<LinearWeight> Loader::Linear(const std::string& name, int n, int k, Bias bias) {
  const Part part{name, n};
  NIBBLE_ASSIGN(const std::vector<LinearWeight> one, Linears({&part, 1}, k, bias));
  return one[0];
}

Result<std::vector<LinearWeight>> Loader::Linears(std::span<const Part> parts, int k, Bias bias) {
  std::vector<weight::WeightView> views;
  std::vector<std::string> names;
  for (const Part& part : parts) {
    NIBBLE_ASSIGN(const weight::WeightView view, View(part.name, part.n, k));
    views.push_back(view);
    names.push_back(part.name + ".weight");
  }
  NIBBLE_ASSIGN(const std::vector<weight::PackedWeight> packed,
                reads_file() ? FromFile(names, views) : PackTogether(names, views));
  std::vector<LinearWeight> linears;
  for (const weight::PackedWeight& w : packed) linears.push_back({w, nullptr});
  for (size_t i = 0; bias == Bias::kYes && i < parts.size(); ++i) {
    NIBBLE_ASSIGN(linears[i].bias, Vector(parts[i].name + ".bias", parts[i].n));
  }
  return linears;
}

Result<std::vector<weight::PackedWeight>> Loader::PackTogether(std::span<const std::string> names,
                                                               std::span<const weight::WeightView> views) {
  for (size_t i = 0; i < views.size(); ++i) NIBBLE_RETURN_IF_ERROR(weight::CheckRanges(views[i], names[i]));
  auto packed = backend_.PackTogether(views, arith_);
  if (!packed.ok())
    return Error(packed.status().code(), "tensor {}: {}", fmt::join(names, ", "), packed.status().message());
  for (size_t i = 0; i < views.size(); ++i) NIBBLE_RETURN_IF_ERROR(Packed(names[i], (*packed)[i]));
  return packed;
}

Result<weight::PackedWeight> Loader::Embedding(const std::string& name, int n, int k) {
  auto view = config_.weights.int8_embedding ? Int8View(name, n, k) : FloatView(name, n, k);
  if (!view.ok()) return view.status();
  return Pack(name + ".weight", *view);
}

Result<const float*> Loader::Vector(const std::string& name, int n) {
  NIBBLE_ASSIGN(const io::TensorInfo* t, Tensor(name, {n}));
  NIBBLE_RETURN_IF_ERROR(FloatStorage(*t).status());
  std::vector<float> host(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) host[i] = ReadFloat(t->data, t->element, i);
  NIBBLE_ASSIGN(Buffer buffer, backend_.Alloc(host.size() * sizeof(float)));
  buffers_.push_back(buffer);
  backend_.Upload(host.data(), buffer.data, buffer.bytes);
  bytes_ += host.size() * sizeof(float);
  current_.clear();
  return reinterpret_cast<const float*>(buffer.data);
}

std::vector<std::string> Loader::Unused() const {
  std::vector<std::string> names;
  for (const io::TensorInfo& t : weights_.tensors()) {
    if (!used_.contains(t.name)) names.push_back(t.name);
  }
  return names;
}

}  // namespace nibble
