// SPDX-License-Identifier: Apache-2.0
// Floor 4. What SparqDecode read, from the bits of the tokens it chose: counted as kernels/cuda/select.h
// does.
#pragma once
#include "kernels/cuda/select.h"
#include "kernels/cuda/sparq.h"

namespace nibble::cuda {

// `call.chosen` is not null; the parameters have neither rho nor eps.
struct CountChosenArgs {
  SparqDecodeArgs call;
  TokenBytes k_bytes, v_bytes;
  SelectCounters* counters;
};
Launch CountChosen(const CountChosenArgs&, Stream);

}  // namespace nibble::cuda
