// SPDX-License-Identifier: Apache-2.0
// Bad safetensors files, the rows S01 to S38 of the table of bad inputs, each in a child process with limits.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "base/folder_writer.h"
#include "io/check_weights.h"
#include "io/manifest.h"
#include "io/weights.h"
#include "tests/support/bad_files.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using io::Weights;
using Words = std::vector<std::string>;

const std::string kEight(8, 'x');

std::string Times(const std::string& text, size_t n) {
  std::string out;
  out.reserve(text.size() * n);
  for (size_t i = 0; i < n; ++i) out += text;
  return out;
}

// Opens the file and reads every byte that a tensor claims.
Status OpenAndRead(const std::string& path) {
  NIBBLE_ASSIGN(const auto weights, Weights::Open(path));
  volatile unsigned sum = 0;
  for (const io::TensorInfo& t : weights->tensors()) {
    for (uint64_t i = 0; i < t.bytes; ++i) sum = sum + static_cast<unsigned>(t.data[i]);
  }
  return weights->CheckUnchanged();
}

Status OpenAndCheck(const std::string& path) {
  NIBBLE_ASSIGN(const auto weights, Weights::Open(path));
  return io::CheckWeights(*weights);
}

class BadSafetensors : public testing::Test {
 protected:
  static void SetUpTestSuite() { family_ = new Family("S (safetensors)"); }
  static void TearDownTestSuite() { delete std::exchange(family_, nullptr); }

  std::string Save(const std::string& bytes) {
    const std::string path = dir_ / ("f" + std::to_string(files_++) + ".safetensors");
    WriteTestFile(path, bytes);
    return path;
  }
  void Refused(const std::string& id, const std::string& bytes, Words words = {}, CaseLimits limits = {}) {
    const std::string path = Save(bytes);
    words.push_back(path);
    limits.file_bytes = bytes.size();
    family_->Refused(
        id, [&] { return OpenAndRead(path); }, words, limits);
  }
  void Accepted(const std::string& id, const std::string& bytes, CaseLimits limits = {}) {
    const std::string path = Save(bytes);
    limits.file_bytes = bytes.size();
    family_->Accepted(
        id, [&] { return OpenAndRead(path); }, limits);
  }
  void RefusedTensors(const std::string& id, const std::vector<FakeTensor>& tensors, const std::string& data,
                      const Words& words = {}) {
    Refused(id, FakeFile(Header(tensors), data), words);
  }

  static Family* family_;
  TempDir dir_;
  int files_ = 0;
};
Family* BadSafetensors::family_ = nullptr;

TEST_F(BadSafetensors, Length) {
  Refused("S01", "", {"0 bytes"});
  Refused("S02", "1234567", {"7 bytes"});
  const std::string good = Header({FakeTensor{}});
  Refused("S03", FakeFile(good, kEight, UINT64_MAX), {"18446744073709551615"});
  Refused("S05", FakeFile(good, kEight, good.size() + 16), {"header length"});
  Refused("S05 one", FakeFile(good, "", good.size() + 1), {"header length"});
  Refused("S06", FakeFile("", "", 0), {"begin with {"});
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{620'000'000}}) {  // S16: ten million entries
    const std::string path = Save(FakeFile("{", "", length));
    ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(length + 8)), 0);  // sparse
    family_->Refused(length == 100'000'001 ? "S04" : "S16 10 M", [&] { return OpenAndRead(path); },
                     {path, "the limit is 100000000"}, {.file_bytes = length});
  }
}

TEST_F(BadSafetensors, Text) {
  const std::string good = Header({FakeTensor{}});
  Refused("S07", FakeFile("{\"\xff\":1}", ""), {"UTF-8"});
  Refused("S07 metadata", FakeFile(Header({FakeTensor{}}, "\"__metadata__\":{\"a\":\"\xc0\x80\"},"), kEight),
          {"UTF-8"});
  Refused("S08 BOM", FakeFile("\xef\xbb\xbf" + good, kEight), {"begin with {"});
  Refused("S08 space", FakeFile(" " + good, kEight), {"begin with {"});
  Refused("S08 [", FakeFile("[" + good + "]", kEight), {"begin with {"});
  Refused("S09", FakeFile("{\"abc", ""), {"ends where"});
  for (size_t n = 1; n < good.size(); ++n) {
    Refused("S09 cut " + std::to_string(n), FakeFile(good.substr(0, n), ""));
  }
  Refused("S10", FakeFile("{\"__metadata__\":" + Times("[", 100'000), ""), {"found"});
  Refused("S10 objects", FakeFile("{\"__metadata__\":" + Times("{\"a\":", 100'000), ""), {"found"});
  Refused("S10 in a tensor", FakeFile("{\"t\":{\"shape\":" + Times("[", 100'000), ""), {"found"});
  Refused("after the end", FakeFile(good + "x", kEight), {"nothing but spaces"});
  Refused("comma", FakeFile("{" + FakeTensor{}.Text() + ",}", kEight));
  Refused("escape", FakeFile(Header({{.name = "\"\\x41\""}}), kEight));
  Refused("lone surrogate", FakeFile(Header({{.name = "\"\\ud800\""}}), kEight));
  Refused("lone low surrogate", FakeFile(Header({{.name = "\"\\udc00\""}}), kEight));
  Refused("half a pair", FakeFile(Header({{.name = "\"\\ud800\\u0041\""}}), kEight));
  Refused("control", FakeFile(Header({{.name = "\"a\nb\""}}), kEight));
  Accepted("padded", FakeFile(good + "   ", kEight));
  Accepted("escapes", FakeFile(Header({{.name = R"("\u0041\ud83d\ude00\n\/")"}}), kEight));
}

TEST_F(BadSafetensors, Twice) {
  RefusedTensors("S11", {{}, {.offsets = "[8,16]"}}, kEight + kEight, {"\"t\" appears twice"});
  RefusedTensors("S11 escaped", {{}, {.name = R"("\u0074")", .offsets = "[8,16]"}}, kEight + kEight,
                 {"twice"});
  Refused("S12",
          FakeFile(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]}})", kEight),
          {"data_offsets", "twice"});
  Refused("metadata twice",
          FakeFile(Header({FakeTensor{}}, R"("__metadata__":{},"__metadata__":{},)"), kEight), {"twice"});
  Refused("metadata key twice",
          FakeFile(Header({FakeTensor{}}, R"("__metadata__":{"a":"1","a":"2"},)"), kEight),
          {"\"a\" appears twice"});
  Refused("unknown key", FakeFile(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", kEight),
          {"\"x\" is unknown"});
  Refused("no shape", FakeFile(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", kEight),
          {"shape is missing"});
}

TEST_F(BadSafetensors, Offsets) {
  RefusedTensors("S13", {{.offsets = "[8,0]"}}, kEight, {"[8, 0)", "\"t\""});
  RefusedTensors("S14", {{.dtype = "\"U8\"", .shape = "[9]", .offsets = "[0,9]"}}, kEight, {"[0, 9) of 8"});
  RefusedTensors("S15", {{.name = "\"a\""}, {.name = "\"b\"", .offsets = "[7,15]"}}, Times("x", 15),
                 {"\"b\" begins at 7, before", "8"});
  RefusedTensors("S17", {{.name = "\"a\""}, {.name = "\"b\"", .offsets = "[9,17]"}}, Times("x", 17),
                 {"\"b\" begins at 9, after", "8"});
  RefusedTensors("S17 at the start", {{.offsets = "[1,9]"}}, Times("x", 9), {"begins at 1"});
  RefusedTensors("S18", {{}}, kEight + "PK\x03\x04 a zip", {"end at 8"});
  RefusedTensors("S18 one byte", {{}}, kEight + "x", {"end at 8, the file has 9"});
  RefusedTensors("S25", {{.offsets = "[0,9007199254740993]"}}, kEight, {"9007199254740993"});
  RefusedTensors("S25 2^64", {{.offsets = "[0,18446744073709551616]"}}, kEight, {"18446744073709551616"});
  RefusedTensors("S25 2^64+8", {{.offsets = "[0,18446744073709551624]"}}, kEight);
  for (const char* bad : {"-1", "1.5", "\"8\"", "1e3", "null", "true", "", "08", "+8", "8.0", "[8]"}) {
    const std::string id = std::string("S24 ") + bad;
    RefusedTensors(id + " offset", {{.offsets = "[0," + std::string(bad) + "]"}}, kEight);
    RefusedTensors(id + " shape", {{.shape = "[" + std::string(bad) + (*bad ? "]" : ",]")}}, kEight);
  }
  RefusedTensors("one offset", {{.offsets = "[0]"}}, kEight);
  RefusedTensors("three offsets", {{.offsets = "[0,8,8]"}}, kEight);
}

TEST_F(BadSafetensors, Shapes) {
  RefusedTensors("S19", {{.shape = "[4294967296,4294967296,2]", .offsets = "[0,0]"}}, "", {"\"t\""});
  RefusedTensors("S19 dim", {{.shape = "[18446744073709551615]", .offsets = "[0,0]"}}, "", {"dimensions"});
  RefusedTensors("S20", {{.shape = "[281474976710655,131072]", .offsets = "[0,0]"}}, "", {"shape"});
  RefusedTensors("S20 wraps to 8", {{.shape = "[281474976710655,4294967296,1]"}}, kEight, {"shape"});
  RefusedTensors("S21", {{.shape = "[3]"}}, kEight, {"F32", "[3]", "8 bytes"});
  RefusedTensors("S21 less", {{.shape = "[1]"}}, kEight, {"[1]"});
  RefusedTensors("S22", {{.dtype = "\"F7\"", .offsets = "[0,1000000]"}}, kEight, {"[0, 1000000) of 8"});
  RefusedTensors("S22 inside", {{.dtype = "\"F7\""}}, kEight, {"unknown dtype \"F7\""});
  RefusedTensors("S27", {{.dtype = "\"F4\"", .shape = "[3]", .offsets = "[0,1]"}}, "x", {"F4"});
  RefusedTensors("rank 9", {{.shape = "[1,1,1,1,1,1,1,1,2]"}}, kEight, {"dimensions"});
  Accepted("rank 8", FakeFile(Header({{.shape = "[1,1,1,1,1,1,1,2]"}}), kEight));
  Accepted("F4", FakeFile(Header({{.dtype = "\"F4\"", .shape = "[4]", .offsets = "[0,2]"}}), "xx"));
  Accepted("S29", FakeFile(Header({{.name = "\"empty\"", .shape = "[0,5]", .offsets = "[0,0]"},
                                   {.name = "\"scalar\"", .shape = "[]", .offsets = "[0,4]"},
                                   {.name = "\"last\"", .shape = "[0]", .offsets = "[4,4]"}}),
                           "abcd"));
  Accepted("S29 nothing", FakeFile("{}", ""));
}

TEST_F(BadSafetensors, LegalButUnread) {
  const std::string path =
      Save(FakeFile(Header({{.name = "\"a\"", .dtype = "\"C64\"", .shape = "[1]"},
                            {.name = "\"b\"", .dtype = "\"F8_E8M0\"", .offsets = "[8,10]"}}),
                    kEight + "xx"));
  family_->Accepted("S23", [&] { return OpenAndRead(path); });
  const auto weights = Weights::Open(path);
  ASSERT_TRUE(weights.ok());
  ASSERT_EQ((*weights)->notes().size(), 2u);
  EXPECT_NE((*weights)->notes()[0].find("C64"), std::string::npos);
  EXPECT_EQ((*weights)->Find("a")->element, io::Element::kOther);  // so no loader takes it
}

TEST_F(BadSafetensors, Metadata) {
  for (const char* bad :
       {"[]", "[\"a\"]", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}", "null", "\"x\"", "7", "{\"a\"}"}) {
    Refused(std::string("S26 ") + bad,
            FakeFile(Header({FakeTensor{}}, "\"__metadata__\":" + std::string(bad) + ","), kEight));
  }
  Accepted("metadata", FakeFile(Header({FakeTensor{}}, R"("__metadata__":{"format":"pt","b":""},)"), kEight));
}

TEST_F(BadSafetensors, Names) {
  RefusedTensors("S32 1 MB", {{.name = '"' + Times("n", 1 << 20) + '"'}}, kEight, {"1048576 bytes"});
  RefusedTensors("S32 513", {{.name = '"' + Times("n", 513) + '"'}}, kEight);
  RefusedTensors("S32 zero", {{.name = R"("a\u0000b")"}}, kEight, {"zero byte", "a\\x00b"});
  RefusedTensors("empty name", {{.name = "\"\""}}, kEight);
  Accepted("S32 512", FakeFile(Header({{.name = '"' + Times("n", 512) + '"'}}), kEight));
  Accepted("S32 override", FakeFile(Header({{.name = "\"\xe2\x80\xae\""}}), kEight));
  Accepted("S32 ../x", FakeFile(Header({{.name = "\"../x\""}}), kEight));  // a name, never a path
  RefusedTensors("S32 override printed", {{.name = "\"\xe2\x80\xae\"", .shape = "[3]"}}, kEight,
                 {"\\xe2\\x80\\xae"});
}

TEST_F(BadSafetensors, OddAddress) {
  const std::vector<float> values = {1.5f, -2.25f, 3e38f, 1e-40f};
  std::string header = Header({{.shape = "[4]", .offsets = "[0,16]"}});
  while ((8 + header.size()) % 4 != 1) header += ' ';
  const std::string path = Save(FakeFile(header, Bytes(values)));
  family_->Accepted("S28", [&]() -> Status {
    NIBBLE_ASSIGN(const auto weights, Weights::Open(path));
    const io::TensorInfo* t = weights->Find("t");
    if (reinterpret_cast<uintptr_t>(t->data) % 4 != 1)
      return Error(Code::kIo, "the data is not at an odd address");
    std::vector<float> copy(4);
    memcpy(copy.data(), t->data, t->bytes);
    if (copy != values) return Error(Code::kIo, "other values");
    return io::CheckFinite(*t);
  });
}

TEST_F(BadSafetensors, NotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto check = [&](const std::string& id, const std::string& name, const std::string& dtype,
                         const std::string& bytes, int64_t count, const Words& words) {
    const std::string path = Save(HonestFile().Add(name, dtype, {count}, bytes).Text());
    family_->Accepted(id + " by default", [&] { return OpenAndRead(path); });
    if (words.empty()) {
      family_->Accepted(id + " checked", [&] { return OpenAndCheck(path); });
    } else {
      family_->Refused(
          id + " checked", [&] { return OpenAndCheck(path); }, words);
    }
  };
  check("S30 f32", "norm", "F32", Bytes(std::vector{1.0f, 2.0f, nan}), 3, {"\"norm\": value 2 of 3 is NaN"});
  check("S30 bf16", "embed", "BF16", Bytes(std::vector<uint16_t>{0x3f80, 0xff80}), 2,
        {"value 1 of 2 is infinite"});
  check("S30 f16", "w", "F16", Bytes(std::vector<uint16_t>{0x7c01}), 1, {"value 0 of 1 is NaN"});
  check("S30 f64", "w", "F64", Bytes(std::vector<double>{0.0, -double(inf)}), 2,
        {"value 1 of 2 is infinite"});
  check("S30 largest", "w", "F16", Bytes(std::vector<uint16_t>{0x7bff, 0xfbff, 0x8000}), 3, {});
  check("S30 integers", "w", "U8", std::string(4, '\xff'), 4, {});
  check("S31 NaN", "a.weight_scale", "F16", Bytes(std::vector<uint16_t>{0x3c00, 0x7e00}), 2,
        {"value 1 of 2 is NaN"});
  check("S31 Inf", "a.weight_scale", "F16", Bytes(std::vector<uint16_t>{0x7c00}), 1, {"infinite"});
  check("S31 negative", "a.weight_scale", "F16", Bytes(std::vector<uint16_t>{0x3c00, 0xbc00}), 2,
        {"scale 1 is -1"});
}

TEST_F(BadSafetensors, Big) {
  // Entries enough to fill the largest header, all over the same bytes.
  std::string entries;
  entries.reserve(99'000'000);
  for (int i = 0; entries.size() < 98'000'000; ++i) {
    entries +=
        (i ? ",\"" : "\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[8],"data_offsets":[0,8]})";
  }
  Refused("S16", FakeFile("{" + entries + "}", kEight), {"1000000 tensors"}, {.seconds = 5});
  entries.resize(entries.find(",\"900000\""));
  Refused("S16 0.9 M", FakeFile("{" + entries + "}", kEight), {"begins at 0, before"}, {.seconds = 5});

  std::string many = "{";
  many.reserve(95'000'000);
  const std::string pad(24, 'n');
  const int count = kSanitized ? 100'000 : 1'000'000;
  for (int i = 0; i < count; ++i) {
    const std::string n = std::to_string(i);
    many += (i ? ",\"" : "\"") + pad + n + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + n + ',' +
            std::to_string(i + 1) + "]}";
  }
  Accepted("S33", FakeFile(many + "}", std::string(static_cast<size_t>(count), 'x')),
           {.seconds = 10, .growth = size_t{400} << 20});
}

TEST_F(BadSafetensors, ChangedWhileOpen) {
  const size_t size = 1 << 20;
  const std::string bytes = HonestFile().Add("t", "U8", {int64_t(size)}, std::string(size, 'a')).Text();
  const std::string path = Save(bytes), other = Save(bytes);
  const auto open_change_read = [&](const std::function<void()>& change) -> Status {
    NIBBLE_ASSIGN(const auto weights, Weights::Open(path));
    change();
    const io::TensorInfo* t = weights->Find("t");
    uint64_t sum = 0;
    for (uint64_t i = 0; i < t->bytes; ++i) sum += static_cast<uint64_t>(t->data[i]);
    NIBBLE_RETURN_IF_ERROR(weights->CheckUnchanged());
    return sum == size * 'a' ? Status{} : Error(Code::kIo, "other bytes");
  };
  family_->Accepted("S34 control", [&] { return open_change_read([] {}); });
  family_->Accepted("S35", [&] { return open_change_read([&] { rename(other.c_str(), path.c_str()); }); });
  family_->Refused("S34", [&] { return open_change_read([&] { (void)!truncate(path.c_str(), 5000); }); },
                   {path, "when it was opened", "5000"});
  // Cut and grown again: the size is right, but a page was lost in between.
  WriteTestFile(path, bytes);
  family_->Refused("S34 and back",
                   [&]() -> Status {
                     NIBBLE_ASSIGN(const auto weights, Weights::Open(path));
                     (void)!truncate(path.c_str(), 5000);
                     volatile auto lost = weights->Find("t")->data[size - 1];
                     (void)lost;
                     (void)!truncate(path.c_str(), static_cast<off_t>(bytes.size()));
                     return weights->CheckUnchanged();
                   },
                   {path, "could not be read"});
}

TEST_F(BadSafetensors, OtherFormats) {
  Refused("S36", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
          {"this is a Git LFS pointer, run git lfs pull"});
  Refused("S37 HTML", "<!DOCTYPE html>\n<html><body>Not found</body></html>", {"web page"});
  Refused("S37 html", "<html>", {"web page"});
  Refused("S37 gzip", "\x1f\x8b\x08 and so on", {"gzip"});
  Refused("zip", "PK\x03\x04 pytorch_model", {"zip", "pickle"});
  Refused("pickle", "\x80\x02}q and so on", {"pickle"});
  Refused("GGUF", "GGUF\x03 and so on", {"GGUF"});
}

TEST_F(BadSafetensors, FlippedByte) {
  const std::string out = dir_ / "model";
  auto folder = FolderWriter::Create(out);
  ASSERT_TRUE(folder.ok());
  auto file = folder->Add("model.safetensors");
  ASSERT_TRUE(file.ok());
  const std::string bytes = HonestFile().Add("t", "U8", {64}, std::string(64, 'a')).Text();
  ASSERT_TRUE(file->Write(bytes).ok() && file->Commit().ok());
  ASSERT_TRUE(io::WriteManifest(*folder).ok());
  ASSERT_TRUE(folder->Commit().ok());
  const std::string path = out + "/model.safetensors";
  family_->Accepted("S38 control", [&] { return io::VerifyManifest(out); });
  std::string flipped = bytes;
  flipped[flipped.size() - 9] ^= 1;
  WriteTestFile(path, flipped);
  family_->Accepted("S38 unverified", [&] { return OpenAndRead(out); });
  family_->Refused("S38", [&] { return io::VerifyManifest(out); }, {path, "the manifest says"});
  WriteTestFile(path, bytes + "x");
  family_->Refused("S38 longer", [&] { return io::VerifyManifest(out); },
                   {path, std::to_string(bytes.size())});
  unlink(path.c_str());
  family_->Refused("S38 gone", [&] { return io::VerifyManifest(out); }, {path});
  WriteTestFile(out + "/nibble_manifest.json", R"({"version":1,"files":{"../x":{"bytes":1,"xxh3_128":""}}})");
  family_->Refused("S38 path", [&] { return io::VerifyManifest(out); }, {"plain file name"});
}

// The harness itself: it must see a crash, an endless loop and memory that grows, or the counts mean nothing.
Status LoopForever() {
  for (volatile bool on = true; on;) {
  }
  return {};
}

Status TakeMemory(size_t mib) {
  const std::string much(mib << 20, 'x');
  volatile char c = much[mib];
  return c == 'x' ? Status{} : Error(Code::kIo, "other bytes");
}

TEST(BadInputHarness, SeesFailures) {
  EXPECT_EQ(RunCase([]() -> Status { return {}; }).verdict, Verdict::kAccepted);
  EXPECT_EQ(RunCase([]() -> Status { return Error(Code::kIo, "no"); }).verdict, Verdict::kRefused);
  EXPECT_EQ(RunCase([]() -> Status { abort(); }).verdict, Verdict::kCrashed);
  EXPECT_EQ(RunCase([]() -> Status { _exit(0); }).verdict, Verdict::kCrashed);
  EXPECT_EQ(RunCase([]() -> Status {
              raise(SIGBUS);
              return {};
            }).verdict,
            Verdict::kCrashed);
  EXPECT_EQ(RunCase(LoopForever, {.seconds = 1, .slower = 1}).verdict, Verdict::kHung);
  EXPECT_EQ(RunCase([] { return TakeMemory(kSanitized ? 320 : 100); }).verdict, Verdict::kGrew);
  if (!kSanitized) {
    EXPECT_EQ(RunCase([] { return TakeMemory(1024); }).verdict, Verdict::kCrashed);  // RLIMIT_AS
  }
}

}  // namespace
}  // namespace nibble
