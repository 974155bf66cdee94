// SPDX-License-Identifier: Apache-2.0
// Floor 4. Sealed pages whose codes attention reads as integers, by
// docs/decisions/0017-codes-meet-integers.md: what is rounded to 16 bits is a decision in f32, as every
// kernel makes it; all that follows is double.
#pragma once
#include <vector>

#include "quant/kv/codec.h"

namespace nibble::ref {

// value = (code * step + base) * page_scale, step and base by channel or by token.
struct CodePage {
  int bits = 0;  // of a code; 0: this codec's pages are decoded
  bool by_channel = false;
  std::vector<int> code;          // [tokens, head_dim]
  std::vector<float> step, base;  // [head_dim] or [tokens]
  float page_scale = 1;
};
CodePage ReadCodePage(kv::CodecId codec, kv::PageShape shape, const std::byte* page);

// q . k of every token, the query rounded to 16 bits by its greatest channel. q [head_dim].
std::vector<double> CodeScores(const CodePage& k, const float* q, int head_dim);

// Sum of p v by channel, the weights of the page rounded to 15 bits by the power of two under the greatest.
std::vector<double> WeighCodes(const CodePage& v, const std::vector<double>& p, int head_dim);

}  // namespace nibble::ref
