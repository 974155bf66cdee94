// SPDX-License-Identifier: Apache-2.0
// Floor 5. The writing side of docs/formats/safetensors.md.
#include "io/safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/checked.h"
#include "base/printable.h"
#include "io/safetensors.h"

namespace nibble::io {
namespace {

constexpr uint64_t kAlign = 64;  // of the data start: mappings then give aligned cache lines

Result<uint64_t> BytesOf(const TensorSpec& t) {
  const auto type = FindElementType(t.dtype);
  NIBBLE_CHECK(type && type->bits % 8 == 0, "a dtype of whole bytes");
  Checked bytes(static_cast<uint64_t>(type->bits / 8));
  for (const int64_t dim : t.shape) bytes *= static_cast<uint64_t>(dim);
  if (const auto got = bytes.Get()) return *got;
  return Error(Code::kInvalidArgument, "tensor \"{}\": shape [{}] is too large", Printable(t.name),
               fmt::join(t.shape, ","));
}

int BitsOf(const TensorSpec& t) { return FindElementType(t.dtype)->bits; }

}  // namespace

Result<SafetensorsWriter> SafetensorsWriter::Create(FileWriter file, std::vector<TensorSpec> specs) {
  for (const TensorSpec& t : specs) NIBBLE_RETURN_IF_ERROR(BytesOf(t).status());
  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return BitsOf(a) != BitsOf(b) ? BitsOf(a) > BitsOf(b) : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  header["__metadata__"] = {{"format", "pt"}};  // what transformers asks for
  std::map<std::string, Place, std::less<>> places;
  Checked end(0);
  for (const TensorSpec& t : specs) {
    const uint64_t bytes = *BytesOf(t), begin = end.Get().value_or(0);
    end += bytes;
    if (!end.ok() || !places.emplace(t.name, Place{begin, bytes, false}).second) {
      return Error(Code::kInvalidArgument, "tensor \"{}\": {}", Printable(t.name),
                   end.ok() ? "declared twice" : "the file would be too large");
    }
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {begin, *end.Get()}}};
  }

  std::string text = header.dump();
  text.append((kAlign - (8 + text.size()) % kAlign) % kAlign, ' ');
  if (text.size() > kMaxHeaderBytes) {
    return Error(Code::kInvalidArgument, "a header of {} bytes, the format allows {}", text.size(),
                 kMaxHeaderBytes);
  }
  const uint64_t length = text.size();
  NIBBLE_RETURN_IF_ERROR(file.Reserve(8 + length + *end.Get()));
  NIBBLE_RETURN_IF_ERROR(file.Write(std::as_bytes(std::span(&length, 1))));
  NIBBLE_RETURN_IF_ERROR(file.Write(text));
  for (auto& [name, place] : places) place.offset += 8 + length;
  return SafetensorsWriter(std::move(file), std::move(places));
}

Status SafetensorsWriter::Put(std::string_view name, std::span<const std::byte> bytes) {
  const auto at = places_.find(name);
  NIBBLE_CHECK(at != places_.end() && !at->second.put, "a declared tensor, once");
  NIBBLE_CHECK(at->second.bytes == bytes.size(), "the bytes of the declared shape");
  at->second.put = true;
  --left_;
  return file_.WriteAt(at->second.offset, bytes);
}

Status SafetensorsWriter::Commit() {
  NIBBLE_CHECK(left_ == 0, "every tensor put");
  return file_.Commit();
}

}  // namespace nibble::io
