// SPDX-License-Identifier: Apache-2.0
// Floor 4. What attention.cc needs of one page: K and V as a query sees them, in every arithmetic of a
// recipe. RowCodes and their scales are decisions in f32, so they are made in f32, as every kernel makes
// them; all that follows is double.
#pragma once
#include <vector>

#include "kernels/args.h"
#include "kernels/ref/attention.h"
#include "kernels/ref/code_page.h"

namespace nibble::ref {

// Rows as integers: x ~ code * scale of the row.
struct RowCodes {
  std::vector<int> code;
  std::vector<float> scale;  // [rows]
};

struct Tile {
  int64_t start = 0;  // position of its first token
  int tokens = 0;
  bool sealed = false;
  std::vector<float> k, v;  // [tokens, head_dim], decoded
  RowCodes k_codes;         // of a sealed page under integer qk: of k - k_mean
  CodePage k_page, v_page;  // of a sealed page under float qk, float pv
  // Of a sealed page under a rounded pv: v ~ v_code * v_factor, by channel.
  std::vector<double> v_code, v_factor;
};

// The tiles of a call in order: the listed sealed pages, then the raw page.
std::vector<Tile> MakeTiles(const AttentionArgs& a, CodePages codes);

// Scores of one query against the tile, `scale` included. group_head: which row of q_mean.
std::vector<double> TileScores(const AttentionArgs& a, const Tile& tile, const float* q, int group_head);

// Sum over the tile of weights p times V, by channel, as the arithmetic has it.
std::vector<double> WeighTile(const AttentionArgs& a, const Tile& tile, const std::vector<double>& p);

// e^x for x <= 0 under the softmax of the recipe, before its threshold.
double WeightOf(const Arithmetic& how, double x);

}  // namespace nibble::ref
