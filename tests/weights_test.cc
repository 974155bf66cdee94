// SPDX-License-Identifier: Apache-2.0
// Good safetensors files: what the writer writes, the reader reads, and both keep to the published format.
#include "io/weights.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "io/safetensors_writer.h"
#include "tests/support/bad_files.h"
#include "tests/support/temp_dir.h"

namespace nibble::io {
namespace {

std::span<const std::byte> AsBytes(const std::string& text) { return std::as_bytes(std::span(text)); }

TEST(SafetensorsWriter, RoundTrip) {
  const TempDir dir;
  const std::string path = dir / "model.safetensors";
  auto file = FileWriter::Create(path);
  ASSERT_TRUE(file.ok());
  auto writer = SafetensorsWriter::Create(*std::move(file), {{"z.bytes", "U8", {3}},
                                                             {"a \"quoted\"\n", "F16", {2, 1}},
                                                             {"m.wide", "F32", {2}},
                                                             {"empty", "I8", {0, 7}},
                                                             {"scalar", "I64", {}}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  ASSERT_TRUE(writer->Put("z.bytes", AsBytes("xyz")).ok());  // any order
  ASSERT_TRUE(writer->Put("m.wide", AsBytes("12345678")).ok());
  ASSERT_TRUE(writer->Put("scalar", AsBytes("ABCDEFGH")).ok());
  ASSERT_TRUE(writer->Put("a \"quoted\"\n", AsBytes("abcd")).ok());
  ASSERT_TRUE(writer->Put("empty", {}).ok());
  ASSERT_TRUE(writer->Commit().ok());

  const auto weights = Weights::Open(path);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  const Weights& w = **weights;
  ASSERT_EQ(w.tensors().size(), 5u);
  EXPECT_EQ(w.tensors()[0].name, "a \"quoted\"\n");
  const TensorInfo* half = w.Find("a \"quoted\"\n");
  EXPECT_EQ(half->shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(half->element, Element::kF16);
  EXPECT_EQ(memcmp(half->data, "abcd", 4), 0);
  EXPECT_EQ(memcmp(w.Find("z.bytes")->data, "xyz", 3), 0);
  EXPECT_EQ(memcmp(w.Find("scalar")->data, "ABCDEFGH", 8), 0);
  EXPECT_TRUE(w.Find("scalar")->shape.empty());
  EXPECT_EQ(w.Find("empty")->bytes, 0u);
  for (const TensorInfo& t : w.tensors()) {  // each at a multiple of its element size, the data at one of 64
    const auto bytes = static_cast<uintptr_t>(FindElementType(t.dtype)->bits / 8);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % bytes, 0u) << t.name;
  }
  EXPECT_EQ(reinterpret_cast<uintptr_t>(w.Find("scalar")->data) % 64, 0u);
}

TEST(SafetensorsWriter, HeaderByAnotherParser) {
  const TempDir dir;
  auto writer =
      SafetensorsWriter::Create(*FileWriter::Create(dir / "f"), {{"b", "BF16", {2}}, {"a", "F32", {1}}});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Put("a", AsBytes("1234")).ok() && writer->Put("b", AsBytes("5678")).ok());
  ASSERT_TRUE(writer->Commit().ok());
  const std::string bytes = ReadTestFile(dir / "f");
  uint64_t length = 0;
  memcpy(&length, bytes.data(), 8);
  const auto header = nlohmann::json::parse(bytes.substr(8, length));
  EXPECT_EQ(header["a"]["data_offsets"], (std::vector<int>{0, 4}));
  EXPECT_EQ(header["b"]["data_offsets"], (std::vector<int>{4, 8}));
  EXPECT_EQ(header["b"]["dtype"], "BF16");
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  EXPECT_EQ(bytes.substr(8 + length), "12345678");
}

TEST(SafetensorsWriter, RefusesTwoOfOneName) {
  const TempDir dir;
  EXPECT_EQ(SafetensorsWriter::Create(*FileWriter::Create(dir / "f"), {{"a", "U8", {1}}, {"a", "U8", {1}}})
                .status()
                .message(),
            "tensor \"a\": declared twice");
  const auto huge =
      SafetensorsWriter::Create(*FileWriter::Create(dir / "f"), {{"a", "F64", {int64_t{1} << 62, 4}}});
  EXPECT_FALSE(huge.ok());
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(Weights, SingleFileWinsOverIndex) {
  const TempDir dir;
  WriteTestFile(dir / "model.safetensors", HonestFile().Add("t", "U8", {1}, "x").Text());
  WriteTestFile(dir / "model.safetensors.index.json", R"({"weight_map":{"t":"other.safetensors"}})");
  const auto weights = Weights::Open(dir.path());
  ASSERT_TRUE(weights.ok());
  ASSERT_EQ((*weights)->notes().size(), 1u);  // as transformers does, but it says so
  EXPECT_EQ((*weights)->files()[0], dir / "model.safetensors");
}

// The rules say little if real files break them.
TEST(Weights, EmbeddedModel) {
  const std::string model = std::string(NIBBLE_SOURCE_DIR) + "/models/novelist-10m";
  if (!std::filesystem::exists(model)) GTEST_SKIP() << model << " is not there";
  const auto weights = Weights::Open(model);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  EXPECT_TRUE((*weights)->notes().empty());
  EXPECT_EQ((*weights)->files().size(), 2u);
  EXPECT_EQ((*weights)->Find("model.embed_tokens.weight")->shape, (std::vector<int64_t>{4096, 384}));
  EXPECT_TRUE((*weights)->CheckUnchanged().ok());
}

}  // namespace
}  // namespace nibble::io
