// SPDX-License-Identifier: Apache-2.0
#include "apps/server/embedding_format.h"

#include <cmath>

#include "apps/server/api_error.h"
#include "apps/server/log.h"

namespace nibble::server {
namespace {

std::string ToBase64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    const size_t left = std::min<size_t>(bytes.size() - i, 3);
    for (size_t j = 0; j < 3; ++j)
      group = group << 8 | (j < left ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) out += j <= left ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

// As embedding models give them, so that a dot product is the cosine.
std::vector<float> Normalized(std::vector<float> v) {
  double sum = 0;
  for (const float x : v) sum += double{x} * x;
  const double scale = sum > 0 ? 1 / std::sqrt(sum) : 0;
  for (float& x : v) x = static_cast<float>(x * scale);
  return v;
}

class EmbeddingFormat final : public Format {
 public:
  EmbeddingFormat(std::string model, bool base64) : model_(std::move(model)), base64_(base64) {}

  std::string Whole(std::span<const Choice> choices, const Usage& usage) override {
    std::string list;
    for (const Choice& choice : choices)
      list += fmt::format(R"({}{{"object":"embedding","index":{},"embedding":{}}})", list.empty() ? "" : ",",
                          choice.index, Vector(Normalized(choice.embedding)));
    return fmt::format(
        R"({{"object":"list","data":[{}],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})",
        list, Quoted(model_), usage.prompt_tokens, usage.prompt_tokens);
  }
  // There are no streams of these.
  std::string Begin() override { return ""; }
  std::string Piece(const Choice&, const Delta&) override { return ""; }
  std::string End(std::span<const Choice>, const Usage&) override { return ""; }
  std::string Error(int http_status, std::string_view message) override {
    return ErrorBody(http_status, message);
  }

 private:
  std::string Vector(const std::vector<float>& v) const {
    if (!base64_) return fmt::format("[{}]", fmt::join(v, ","));
    return '"' + ToBase64({reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float)}) + '"';
  }
  std::string model_;
  bool base64_;
};

}  // namespace

std::unique_ptr<Format> MakeEmbeddingFormat(std::string model, bool base64) {
  return std::make_unique<EmbeddingFormat>(std::move(model), base64);
}

}  // namespace nibble::server
