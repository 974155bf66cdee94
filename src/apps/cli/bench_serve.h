// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble bench serve`: load on a running server, in an open loop: requests come when they come,
// whatever became of those before.
#pragma once
#include "apps/cli/common.h"

namespace nibble::cli {

// A subcommand of `bench`.
Command AddBenchServe(Parser bench);

}  // namespace nibble::cli
