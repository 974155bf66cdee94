// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of SparQ attention (arXiv 2312.04985): one decode step of one KV head with the
// query heads of its group. Selects the r largest components of the queries, ranks all tokens by them, reads
// k tokens, and gives the mass of the others to a mean of V.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/ref/matrix.h"
#include "kernels/ref/rounding.h"

namespace nibble::ref {

enum class Reallocation {
  kOff,                  // y of the selected tokens alone
  kMean,                 // the paper: mean of V over every visible token
  kUnselectedMean,       // F-S7a
  kBlockMean,            // F-S7b: a block's leftover mass goes to the block's mean of V
  kBlockUnselectedMean,  // F-S7b over the unselected tokens of the block
  kWeightedMean,         // reads all of V: the bound of what any of these can reach
};
enum class GroupRanking {
  kSumSoftmax,  // of the paper, canonical
  kSumLogits,   // of the released evaluation code, logits already divided by the temperature
};

struct SparqSpec {
  int r = 16, k = 128;  // k counts the sinks and the local tokens
  int local = 32;       // newest tokens, always selected
  int sinks = 0;        // F-S6: first tokens, always selected
  int chunk = 0;  // F-S6: of every `chunk` tokens the best one is added beyond k if it weighs > chunk_eps
  double chunk_eps = 0;
  Reallocation reallocation = Reallocation::kMean;
  int mean_block = 64;  // tokens
  GroupRanking ranking = GroupRanking::kSumSoftmax;
  // F-S1, when coverage > 0: the least r in r_min, r_min + r_step .. r_max whose components hold this share
  // of |q|; F-S2, when alpha_target > 0: the least k in k_min .. k_max with alpha >= alpha_target in every
  // head.
  double coverage = 0, alpha_target = 0;
  int r_min = 8, r_step = 8, r_max = 64, k_min = 1, k_max = 1 << 30;
  // When an alpha stays below this, r is doubled once, then the step is dense.
  double alpha_min = 0;
};

struct SparqStep {
  enum class Path { kSparse, kWiderR, kDense } path = Path::kSparse;
  std::vector<int> components, tokens;  // ascending
  std::vector<double> tau, alpha;       // by query head
  Matrix weights;                       // [group, tokens in cache] approximate softmax
  Matrix out;                           // [group, head_dim]
};

// q [group, head_dim] after RoPE; k, v [tokens, head_dim]; ranking_k: the keys that ranking reads
// (RankingKeys or k itself). visible, if not null, masks tokens out: they have weight 0 and lie outside every
// mean.
SparqStep SparqDecode(View q, View k, View ranking_k, View v, const SparqSpec& spec,
                      const std::vector<bool>* visible = nullptr);

// Step 1 by itself: the components by sum over heads of |q|, of equal ones the lower; their share of |q|.
std::vector<int> SparqComponents(View q, int r);
int SparqAdaptiveR(View q, const SparqSpec& spec);
double SparqTemperature(const double* q, int dim, const std::vector<int>& components);

// F-S3: what the d-major copy of K decodes to. By channel over `group_tokens` tokens, symmetric; the tokens
// of a group that is not full yet are f16.
enum class KtFormat { kF16, kInt8, kInt4 };
Matrix RankingKeys(View k, KtFormat format, int group_tokens, Storage scale,
                   Rounding rounding = Rounding::kEven);

// Mean of the rows appended so far.
class RunningMean {
 public:
  explicit RunningMean(int dim) : mean_(size_t(dim), 0.0) {}
  void Append(const double* row);
  const std::vector<double>& mean() const { return mean_; }

 private:
  std::vector<double> mean_;
  int64_t rows_ = 0;
};

// Scalars that a decode step moves for one KV head (section 4 and appendix of the paper): cache read, new key
// and value written, running mean read and written.
int64_t DenseTransfer(int64_t tokens, int64_t dim);
int64_t SparqTransfer(int64_t tokens, int64_t dim, int64_t r, int64_t k);
int64_t H2oTransfer(int64_t tokens, int64_t dim, int64_t k);
int64_t WindowTransfer(int64_t dim, int64_t k);
int64_t TopVTransfer(int64_t tokens, int64_t dim, int64_t k);  // FlexGen: all of K, k rows of V
// The same in bytes with the copy of K at kt_bits a value and everything else at 16.
double SparqTransferBytes(int64_t tokens, int64_t dim, int64_t r, int64_t k, double kt_bits);

}  // namespace nibble::ref
