// SPDX-License-Identifier: Apache-2.0
// Floor 5. nibble_manifest.json: length and XXH3-128 of every file of a folder that this project wrote.
// Guards against broken disks and downloads, not against people: XXH3 is no signature.
#pragma once
#include <string>

#include "base/folder_writer.h"
#include "base/result.h"

namespace nibble::io {

inline constexpr char kManifestName[] = "nibble_manifest.json";

// Adds the manifest of what the folder holds so far. Call it last.
Status WriteManifest(const FolderWriter& folder);

// Reads every listed file again. kNotFound without a manifest, kCorrupt naming the file that differs.
Status VerifyManifest(const std::string& dir);

}  // namespace nibble::io
