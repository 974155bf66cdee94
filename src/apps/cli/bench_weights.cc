// SPDX-License-Identifier: Apache-2.0
// Floor 9. Llama shapes with random weights.
#include "apps/cli/bench_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/half.h"

namespace nibble::cli {
namespace {

constexpr int64_t kContext = 1 << 20;  // what --depth may ask for

// Standard deviations of what FillTensor makes: a uniform byte, (u - z) of a uniform nibble, that times s2.
constexpr float kByteSpread = 73.9f, kNibbleSpread = 4.6f, kGroupSpread = 37.0f;

struct Shape {
  int layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
};

Shape ShapeOf(std::string_view name) {
  if (name == "1b") return {16, 2048, 8192, 32, 8, 64, 32000};
  if (name == "3b") return {28, 3072, 8192, 24, 8, 128, 32000};
  if (name == "8b-4") return {4, 4096, 14336, 32, 8, 128, 32000};
  NIBBLE_CHECK(name == "8b", "a shape of kShapeNames");
  return {32, 4096, 14336, 32, 8, 128, 128256};
}

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  float Uniform() { return float(Next() >> 40) * 0x1p-24f; }  // [0, 1)

 private:
  uint64_t state_;
};

void FillBytes(Random& random, std::byte* bytes, size_t count) {
  for (size_t i = 0; i < count; i += 8) {
    const uint64_t word = random.Next();
    std::memcpy(bytes + i, &word, std::min<size_t>(8, count - i));
  }
}

void StoreFloat(io::Element element, std::byte* p, float x) {
  if (element == io::Element::kF32) {
    std::memcpy(p, &x, 4);
    return;
  }
  const uint16_t h = element == io::Element::kF16 ? FloatToHalf(x) : FloatToBf16(x);
  std::memcpy(p, &h, 2);
}

size_t ElementBytes(io::Element element) {
  if (element == io::Element::kF32) return 4;
  return element == io::Element::kF16 || element == io::Element::kBF16 ? 2 : 1;
}

const char* DtypeName(io::Element element) {
  switch (element) {
    case io::Element::kF32:
      return "F32";
    case io::Element::kF16:
      return "F16";
    case io::Element::kBF16:
      return "BF16";
    case io::Element::kI8:
      return "I8";
    default:
      return "U8";
  }
}

io::Element FloatElement(weight::Storage storage) {
  if (storage == weight::Storage::kF32) return io::Element::kF32;
  return storage == weight::Storage::kF16 ? io::Element::kF16 : io::Element::kBF16;
}

}  // namespace

ModelConfig FindShape(std::string_view name, weight::Storage storage) {
  const Shape s = ShapeOf(name);
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.layers = s.layers;
  c.hidden = s.hidden;
  c.intermediate = s.intermediate;
  c.heads = s.heads;
  c.kv_heads = s.kv_heads;
  c.head_dim = s.head_dim;
  c.vocab = s.vocab;
  c.max_position = kContext;
  c.norm_eps = 1e-5;
  c.layer_uses_window.assign(size_t(s.layers), false);
  if (weight::IsQuantized(storage)) c.weights = {weight::Name(storage), /*int8_embedding=*/true};
  return c;
}

RandomWeights::RandomWeights(const ModelConfig& c, weight::Storage storage) {
  const weight::Storage table = weight::IsQuantized(storage) ? weight::Storage::kW8A8 : storage;
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const auto add_norm = [this, &c](const std::string& name) {
    Add(name, io::Element::kBF16, {c.hidden}, {Fill::kOnes, 1});
  };
  AddLinear("model.embed_tokens", c.vocab, c.hidden, table);
  AddLinear("lm_head", c.vocab, c.hidden, table);
  add_norm("model.norm.weight");
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    add_norm(layer + "input_layernorm.weight");
    add_norm(layer + "post_attention_layernorm.weight");
    AddLinear(layer + "self_attn.q_proj", q, c.hidden, storage);
    AddLinear(layer + "self_attn.k_proj", kv, c.hidden, storage);
    AddLinear(layer + "self_attn.v_proj", kv, c.hidden, storage);
    AddLinear(layer + "self_attn.o_proj", c.hidden, q, storage);
    AddLinear(layer + "mlp.gate_proj", c.intermediate, c.hidden, storage);
    AddLinear(layer + "mlp.up_proj", c.intermediate, c.hidden, storage);
    AddLinear(layer + "mlp.down_proj", c.hidden, c.intermediate, storage);
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
}

void RandomWeights::Add(std::string name, io::Element element, std::vector<int64_t> shape, Spec spec) {
  io::TensorInfo t;
  t.bytes = ElementBytes(element);
  for (int64_t d : shape) t.bytes *= uint64_t(d);
  t.name = std::move(name);
  t.dtype = DtypeName(element);
  t.element = element;
  t.shape = std::move(shape);
  specs_.emplace(t.name, spec);
  tensors_.push_back(std::move(t));
}

// Weights of a standard deviation of 1 / sqrt(k), so that activations keep their size from layer to layer.
void RandomWeights::AddLinear(const std::string& name, int n, int k, weight::Storage storage) {
  const float spread = 1 / std::sqrt(float(k));
  const std::string w = name + ".weight";
  switch (storage) {
    case weight::Storage::kW8A8:
      Add(w, io::Element::kI8, {n, k}, {Fill::kBytes, 0});
      Add(w + "_scale", io::Element::kF16, {n}, {Fill::kScale, spread / kByteSpread});
      return;
    case weight::Storage::kW4A8Channel:
      Add(w + "_packed", io::Element::kU8, {n, k / 2}, {Fill::kNibbles, 0});
      Add(w + "_scale", io::Element::kF16, {n}, {Fill::kScale, spread / kNibbleSpread});
      Add(w + "_zero", io::Element::kU8, {n}, {Fill::kGroupZero, 0});
      return;
    case weight::Storage::kW4A8Group:
      Add(w + "_packed", io::Element::kU8, {n, k / 2}, {Fill::kNibbles, 0});
      Add(w + "_scale", io::Element::kF16, {n}, {Fill::kScale, spread / kGroupSpread});
      Add(w + "_group_scale", io::Element::kU8, {n, k / weight::kGroup}, {Fill::kGroupScale, 0});
      Add(w + "_group_zero", io::Element::kU8, {n, k / weight::kGroup}, {Fill::kGroupZero, 0});
      return;
    default:
      Add(w, FloatElement(storage), {n, k}, {Fill::kFloats, spread * std::sqrt(3.0f)});
  }
}

void RandomWeights::FillTensor(const io::TensorInfo& t, std::byte* bytes) const {
  const Spec spec = specs_.find(t.name)->second;
  Random random(uint64_t(&t - tensors_.data()));
  const size_t each = ElementBytes(t.element), count = t.bytes / each;
  const auto floats = [&](auto value) {
    for (size_t i = 0; i < count; ++i) StoreFloat(t.element, bytes + i * each, value());
  };
  const auto codes = [&](int from, int to) {  // uniform in [from, to]
    for (size_t i = 0; i < count; ++i)
      bytes[i] = std::byte(from + int(random.Next() % uint64_t(to - from + 1)));
  };
  switch (spec.fill) {
    case Fill::kOnes:
      return floats([] { return 1.0f; });
    case Fill::kFloats:
      return floats([&] { return (2 * random.Uniform() - 1) * spec.size; });
    case Fill::kScale:
      return floats([&] { return (0.75f + 0.5f * random.Uniform()) * spec.size; });
    case Fill::kNibbles:
      return FillBytes(random, bytes, t.bytes);
    case Fill::kBytes:
      FillBytes(random, bytes, t.bytes);
      for (size_t i = 0; i < t.bytes; ++i)  // -128 is no code
        if (bytes[i] == std::byte{0x80}) bytes[i] = std::byte{0x81};
      return;
    case Fill::kGroupScale:
      return codes(4, 12);
    case Fill::kGroupZero:
      return codes(6, 9);  // (u - z) * s2 stays within 8 bits
  }
}

const io::TensorInfo* RandomWeights::Find(std::string_view name) const {
  const auto t =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const io::TensorInfo& tensor, std::string_view n) { return tensor.name < n; });
  if (t == tensors_.end() || t->name != name) return nullptr;
  if (t->data == nullptr) {
    auto& bytes = bytes_[t->name];
    bytes = std::make_unique_for_overwrite<std::byte[]>(t->bytes);
    FillTensor(*t, bytes.get());
    t->data = bytes.get();
  }
  return &*t;
}

uint64_t RandomWeights::total_bytes() const {
  uint64_t total = 0;
  for (const io::TensorInfo& t : tensors_) total += t.bytes;
  return total;
}

void RandomWeights::Release(const io::TensorInfo& tensor) const {
  bytes_.erase(tensor.name);
  for (io::TensorInfo& t : tensors_)
    if (&t == &tensor) t.data = nullptr;
}

}  // namespace nibble::cli
