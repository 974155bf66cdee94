// SPDX-License-Identifier: Apache-2.0
// Floor 5. Which files a model folder may refer to: plain names inside it, or, in a Hugging Face cache,
// symbolic links from snapshots/REVISION into the blobs folder beside it.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble::io {

// ^[A-Za-z0-9._-]+\.safetensors$
bool IsShardName(std::string_view name);

// The real path of DIR/NAME. kNotFound when it does not exist, kInvalidArgument when it leads out of the
// model.
Result<std::string> ResolveInModel(const std::string& dir, const std::string& name);

}  // namespace nibble::io
