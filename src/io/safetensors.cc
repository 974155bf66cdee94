// SPDX-License-Identifier: Apache-2.0
// Floor 5. The safetensors header: every size checked before anything is built from it.
#include "io/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "base/checked.h"
#include "base/printable.h"
#include "io/header_scanner.h"

namespace nibble::io {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr size_t kMaxMetadata = 65536;

// The types of the safetensors crate.
constexpr std::array<ElementType, 22> kElementTypes = {{
    {"F64", 64, Element::kF64},          {"F32", 32, Element::kF32},      {"F16", 16, Element::kF16},
    {"BF16", 16, Element::kBF16},        {"I64", 64, Element::kI64},      {"I32", 32, Element::kI32},
    {"I16", 16, Element::kI16},          {"I8", 8, Element::kI8},         {"U8", 8, Element::kU8},
    {"BOOL", 8, Element::kBool},         {"U64", 64, Element::kOther},    {"U32", 32, Element::kOther},
    {"U16", 16, Element::kOther},        {"C64", 64, Element::kOther},    {"F8_E4M3", 8, Element::kOther},
    {"F8_E5M2", 8, Element::kOther},     {"F8_E8M0", 8, Element::kOther}, {"F8_E4M3FNUZ", 8, Element::kOther},
    {"F8_E5M2FNUZ", 8, Element::kOther}, {"F6_E2M3", 6, Element::kOther}, {"F6_E3M2", 6, Element::kOther},
    {"F4", 4, Element::kOther},
}};

// What is kept of a tensor until the whole file is known to be good: a header of a million entries that lie
// over the same bytes must not cost hundreds of megabytes before it is refused.
struct Extent {
  uint64_t begin = 0, end = 0;
  uint32_t entry = 0;  // where its name begins in the header
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& path, int file)
      : bytes_(bytes), path_(path), file_(file) {}

  Result<SafetensorsFile> Read() {
    NIBBLE_RETURN_IF_ERROR(FindHeader());
    HeaderScanner scanner(header_, path_);
    NIBBLE_RETURN_IF_ERROR(ScanEntries(&scanner));
    NIBBLE_RETURN_IF_ERROR(CheckLayout());
    return Collect(&scanner);
  }

 private:
  Status FindHeader();
  Status ScanEntries(HeaderScanner* s);
  Status Metadata(HeaderScanner* s);
  Status Entry(HeaderScanner* s, TensorInfo* t, Extent* extent);
  Status Fields(HeaderScanner* s, TensorInfo* t, Extent* extent);
  Status Shape(HeaderScanner* s, TensorInfo* t);
  Status CheckEntry(TensorInfo* t, const Extent& extent);
  Status CheckLayout();
  Result<SafetensorsFile> Collect(HeaderScanner* s);

  uint64_t DataBytes() const { return bytes_.size() - kLengthBytes - header_.size(); }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  int file_;
  std::string_view header_;
  std::vector<Extent> extents_;
};

Status Reader::FindHeader() {
  const auto not_safetensors = [&](const std::string& why) {
    const std::string guess = LooksLike(bytes_);
    return Error(Code::kCorrupt, "{}: not a safetensors file: {}", path_, guess.empty() ? why : guess);
  };
  if (bytes_.size() < kLengthBytes) {
    return not_safetensors(fmt::format("{} bytes, the header length alone takes 8", bytes_.size()));
  }
  uint64_t length = 0;  // little-endian, as this project's machines are
  memcpy(&length, bytes_.data(), kLengthBytes);
  if (length > kMaxHeaderBytes || length > bytes_.size() - kLengthBytes) {
    return not_safetensors(fmt::format("header length {}, the file has {} bytes and the limit is {}", length,
                                       bytes_.size(), kMaxHeaderBytes));
  }
  header_ = {reinterpret_cast<const char*>(bytes_.data()) + kLengthBytes, static_cast<size_t>(length)};
  if (header_.empty() || header_[0] != '{') return not_safetensors("the header does not begin with {");
  if (!simdjson::validate_utf8(header_.data(), header_.size())) {
    return Error(Code::kCorrupt, "{}: the header is not UTF-8", path_);
  }
  return {};
}

Status Reader::ScanEntries(HeaderScanner* s) {
  NIBBLE_RETURN_IF_ERROR(s->Expect('{'));
  bool metadata_seen = false;
  TensorInfo scratch;
  for (bool first = true; !s->Skip('}'); first = false) {
    if (!first) NIBBLE_RETURN_IF_ERROR(s->Expect(','));
    Extent extent;
    extent.entry = static_cast<uint32_t>(s->position());
    NIBBLE_RETURN_IF_ERROR(s->String(&scratch.name));
    NIBBLE_RETURN_IF_ERROR(s->Expect(':'));
    if (scratch.name == "__metadata__") {
      if (metadata_seen) return Error(Code::kCorrupt, "{}: __metadata__ appears twice", path_);
      metadata_seen = true;
      NIBBLE_RETURN_IF_ERROR(Metadata(s));
      continue;
    }
    NIBBLE_RETURN_IF_ERROR(Entry(s, &scratch, &extent));
    if (extents_.size() == kMaxTensors) {
      return Error(Code::kInvalidArgument, "{}: more than {} tensors", path_, kMaxTensors);
    }
    extents_.push_back(extent);
  }
  if (!s->AtEnd()) return s->Fail("nothing but spaces after the header");
  return {};
}

Status Reader::Metadata(HeaderScanner* s) {  // strings to strings
  NIBBLE_RETURN_IF_ERROR(s->Expect('{'));
  std::vector<std::string> keys;
  std::string value;
  for (bool first = true; !s->Skip('}'); first = false) {
    if (!first) NIBBLE_RETURN_IF_ERROR(s->Expect(','));
    if (keys.size() == kMaxMetadata) {
      return Error(Code::kInvalidArgument, "{}: more than {} __metadata__ entries", path_, kMaxMetadata);
    }
    NIBBLE_RETURN_IF_ERROR(s->String(&keys.emplace_back()));
    NIBBLE_RETURN_IF_ERROR(s->Expect(':'));
    NIBBLE_RETURN_IF_ERROR(s->String(&value));
  }
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return {};
  return Error(Code::kCorrupt, "{}: __metadata__ key \"{}\" appears twice", path_, Printable(*twice));
}

Status Reader::Entry(HeaderScanner* s, TensorInfo* t, Extent* extent) {
  if (t->name.size() > kMaxNameBytes || t->name.find('\0') != std::string::npos || t->name.empty()) {
    return Error(Code::kCorrupt, "{}: tensor name \"{}\": expected 1 to {} bytes without a zero byte", path_,
                 Printable(t->name), kMaxNameBytes);
  }
  NIBBLE_RETURN_IF_ERROR(Fields(s, t, extent));
  return CheckEntry(t, *extent);
}

Status Reader::Fields(HeaderScanner* s, TensorInfo* t, Extent* extent) {
  NIBBLE_RETURN_IF_ERROR(s->Expect('{'));
  std::string key;
  enum : unsigned { kDtype = 1, kShape = 2, kOffsets = 4, kAll = 7 };
  unsigned seen = 0;
  for (bool first = true; !s->Skip('}'); first = false) {
    if (!first) NIBBLE_RETURN_IF_ERROR(s->Expect(','));
    NIBBLE_RETURN_IF_ERROR(s->String(&key));
    NIBBLE_RETURN_IF_ERROR(s->Expect(':'));
    const unsigned bit = key == "dtype"          ? kDtype
                         : key == "shape"        ? kShape
                         : key == "data_offsets" ? kOffsets
                                                 : 0u;
    if (bit == 0 || (seen & bit)) {
      return Error(Code::kCorrupt, "{}: tensor \"{}\": the key \"{}\" {}", path_, Printable(t->name),
                   Printable(key), bit == 0 ? "is unknown" : "appears twice");
    }
    seen |= bit;
    if (bit == kDtype) {
      NIBBLE_RETURN_IF_ERROR(s->String(&t->dtype));
    } else if (bit == kShape) {
      NIBBLE_RETURN_IF_ERROR(Shape(s, t));
    } else {
      NIBBLE_RETURN_IF_ERROR(s->Expect('['));
      NIBBLE_RETURN_IF_ERROR(s->Natural(&extent->begin));
      NIBBLE_RETURN_IF_ERROR(s->Expect(','));
      NIBBLE_RETURN_IF_ERROR(s->Natural(&extent->end));
      NIBBLE_RETURN_IF_ERROR(s->Expect(']'));
    }
  }
  if (seen == kAll) return {};
  return Error(Code::kCorrupt, "{}: tensor \"{}\": {} is missing", path_, Printable(t->name),
               !(seen & kDtype)   ? "dtype"
               : !(seen & kShape) ? "shape"
                                  : "data_offsets");
}

Status Reader::Shape(HeaderScanner* s, TensorInfo* t) {
  t->shape.clear();
  NIBBLE_RETURN_IF_ERROR(s->Expect('['));
  for (bool first = true; !s->Skip(']'); first = false) {
    if (!first) NIBBLE_RETURN_IF_ERROR(s->Expect(','));
    uint64_t dim = 0;
    NIBBLE_RETURN_IF_ERROR(s->Natural(&dim));
    if (dim > kMaxDim || t->shape.size() == size_t{kMaxRank}) {
      return Error(Code::kCorrupt, "{}: tensor \"{}\": expected at most {} dimensions of at most {}", path_,
                   Printable(t->name), kMaxRank, kMaxDim);
    }
    t->shape.push_back(static_cast<int64_t>(dim));
  }
  return {};
}

// Offsets first, so that no tensor gets past them, whatever its type.
Status Reader::CheckEntry(TensorInfo* t, const Extent& extent) {
  if (extent.begin > extent.end || extent.end > DataBytes()) {
    return Error(Code::kCorrupt, "{}: tensor \"{}\": bytes [{}, {}) of {} data bytes", path_,
                 Printable(t->name), extent.begin, extent.end, DataBytes());
  }
  const auto type = FindElementType(t->dtype);
  if (!type) {
    return Error(Code::kUnsupported, "{}: tensor \"{}\": unknown dtype \"{}\"", path_, Printable(t->name),
                 Printable(t->dtype));
  }
  Checked bits(static_cast<uint64_t>(type->bits));
  for (const int64_t dim : t->shape) bits *= static_cast<uint64_t>(dim);
  const auto wanted = bits.Get();
  if (!wanted || *wanted % 8 != 0 || *wanted / 8 != extent.end - extent.begin) {
    return Error(Code::kCorrupt, "{}: tensor \"{}\": {} of shape [{}] does not take the {} bytes [{}, {})",
                 path_, Printable(t->name), t->dtype, fmt::join(t->shape, ","), extent.end - extent.begin,
                 extent.begin, extent.end);
  }
  t->element = type->element;
  t->bytes = extent.end - extent.begin;
  t->data = bytes_.data() + kLengthBytes + header_.size() + extent.begin;
  t->file = file_;
  return {};
}

// Sorted by place, every tensor begins where the one before ended: no hole, no overlap, nothing after the
// end.
Status Reader::CheckLayout() {
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t end = 0;
  for (const Extent& e : extents_) {
    if (e.begin == end) {
      end = e.end;
      continue;
    }
    HeaderScanner at(header_, path_);
    at.Seek(e.entry);
    std::string name;
    NIBBLE_RETURN_IF_ERROR(at.String(&name));
    return Error(Code::kCorrupt, "{}: tensor \"{}\" begins at {}, {} the end of the one before it at {}",
                 path_, Printable(name), e.begin, e.begin < end ? "before" : "after", end);
  }
  if (end == DataBytes()) return {};
  return Error(Code::kCorrupt, "{}: the tensors end at {}, the file has {} data bytes", path_, end,
               DataBytes());
}

Result<SafetensorsFile> Reader::Collect(HeaderScanner* s) {
  SafetensorsFile out;
  out.tensors.resize(extents_.size());
  std::map<std::string, std::vector<size_t>> unread;  // type -> count and an example
  for (size_t i = 0; i < extents_.size(); ++i) {
    TensorInfo& t = out.tensors[i];
    s->Seek(extents_[i].entry);
    NIBBLE_RETURN_IF_ERROR(s->String(&t.name));
    NIBBLE_RETURN_IF_ERROR(s->Expect(':'));
    NIBBLE_RETURN_IF_ERROR(Entry(s, &t, &extents_[i]));
    if (t.element == Element::kOther) unread[t.dtype].push_back(i);
  }
  for (const auto& [dtype, which] : unread) {
    out.notes.push_back(
        fmt::format("{}: {} tensor(s) of type {}, which nothing here reads, for example \"{}\"", path_,
                    which.size(), dtype, Printable(out.tensors[which[0]].name)));
  }
  std::sort(out.tensors.begin(), out.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(out.tensors.begin(), out.tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twice == out.tensors.end()) return out;
  return Error(Code::kCorrupt, "{}: tensor \"{}\" appears twice", path_, Printable(twice->name));
}

}  // namespace

Result<SafetensorsFile> ReadSafetensors(std::span<const std::byte> bytes, const std::string& path, int file) {
  return Reader(bytes, path, file).Read();
}

std::optional<ElementType> FindElementType(std::string_view name) {
  for (const ElementType& type : kElementTypes) {
    if (name == type.name) return type;
  }
  return std::nullopt;
}

std::string LooksLike(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()),
                              std::min<size_t>(bytes.size(), 64));
  const auto starts = [&](std::string_view with) { return text.substr(0, with.size()) == with; };
  if (starts("version https://git-lfs")) return "this is a Git LFS pointer, run git lfs pull";
  if (starts("<!DOCTYPE") || starts("<!doctype") || starts("<html") || starts("<HTML") || starts("<?xml")) {
    return "this is a web page, the download failed";
  }
  if (starts("\x1f\x8b")) return "this is gzip, unpack it first";
  if (starts("PK\x03\x04")) return "this is a zip archive (a pickle of PyTorch?), pickle files are not read";
  if (starts("\x80\x02") || starts("\x80\x03") || starts("\x80\x04") || starts("\x80\x05")) {
    return "this is a pickle, pickle files are not read";
  }
  if (starts("GGUF")) return "this is a GGUF file";
  if (starts("\x7f"
             "ELF")) {
    return "this is a program";
  }
  return "";
}

}  // namespace nibble::io
