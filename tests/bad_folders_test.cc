// SPDX-License-Identifier: Apache-2.0
// Bad shard indexes and model folders, the rows X01 to X10 of the table of bad inputs.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "io/weights.h"
#include "tests/support/bad_files.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using io::Weights;

Status Open(const std::string& dir) {
  NIBBLE_ASSIGN(const auto weights, Weights::Open(dir));
  for (const io::TensorInfo& t : weights->tensors()) {
    if (weights->Find(t.name) != &t) return Error(Code::kIo, "{} is not found", t.name);
  }
  return weights->CheckUnchanged();
}

std::string Shard(const std::string& tensor) { return HonestFile().Add(tensor, "U8", {4}, "abcd").Text(); }

std::string Index(const std::vector<std::pair<std::string, std::string>>& map,
                  const std::string& total = "8") {
  std::string text = "{\"metadata\":{\"total_size\":" + total + "},\"weight_map\":{";
  for (size_t i = 0; i < map.size(); ++i) {
    text += (i ? ",\"" : "\"") + map[i].first + "\":\"" + map[i].second + "\"";
  }
  return text + "}}";
}

constexpr char kIndexName[] = "/model.safetensors.index.json";

class BadFolders : public testing::Test {
 protected:
  static void SetUpTestSuite() { family_ = new Family("X (index and folder)"); }
  static void TearDownTestSuite() { delete std::exchange(family_, nullptr); }

  // A new folder with shards 1.safetensors (tensor a) and 2.safetensors (tensor b).
  std::string Folder(const std::string& index) {
    const std::string dir = dir_ / ("m" + std::to_string(folders_++));
    fs::create_directory(dir);
    WriteTestFile(dir + "/1.safetensors", Shard("a"));
    WriteTestFile(dir + "/2.safetensors", Shard("b"));
    if (!index.empty()) WriteTestFile(dir + kIndexName, index);
    return dir;
  }
  void Refused(const std::string& id, const std::string& dir, const std::vector<std::string>& words = {}) {
    family_->Refused(
        id, [&] { return Open(dir); }, words);
  }
  void Accepted(const std::string& id, const std::string& dir) {
    family_->Accepted(id, [&] { return Open(dir); });
  }

  static Family* family_;
  TempDir dir_;
  int folders_ = 0;
  const std::string good_ = Index({{"a", "1.safetensors"}, {"b", "2.safetensors"}});
};
Family* BadFolders::family_ = nullptr;

TEST_F(BadFolders, GoodOne) {
  const std::string dir = Folder(good_);
  Accepted("control", dir);
  const auto weights = Weights::Open(dir);
  ASSERT_TRUE(weights.ok());
  ASSERT_EQ((*weights)->tensors().size(), 2u);
  EXPECT_EQ((*weights)->files().size(), 2u);
  EXPECT_TRUE((*weights)->notes().empty());
  EXPECT_EQ((*weights)->Find("b")->file, 1);
  EXPECT_EQ(static_cast<char>((*weights)->Find("b")->data[3]), 'd');
  EXPECT_EQ((*weights)->Find("c"), nullptr);
  EXPECT_EQ((*weights)->total_bytes(),
            fs::file_size(dir + "/1.safetensors") + fs::file_size(dir + "/2.safetensors"));
}

TEST_F(BadFolders, NamesOfShards) {
  for (const char* bad : {"../../../etc/passwd", "../m0/1.safetensors", "/etc/passwd", "/tmp/1.safetensors",
                          "C:\\\\1.safetensors", "file:///tmp/1.safetensors", "sub/1.safetensors",
                          ".safetensors", "", "1.safetensors/", "1.bin", "1.safetensors\\u0000",
                          "\\u202e1.safetensors", "1 .safetensors", "~1.safetensors"}) {
    const std::string dir = Folder(Index({{"a", "1.safetensors"}, {"b", bad}}));
    Refused(std::string("X01/X02 ") + bad, dir, {dir + kIndexName, "weight_map.b", "not a file name"});
  }
}

TEST_F(BadFolders, Links) {
  const std::string outside = dir_ / "outside.safetensors";
  WriteTestFile(outside, Shard("b"));
  std::string dir = Folder(good_);
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink(outside, dir + "/2.safetensors");
  Refused("X03 absolute", dir, {"leads out of the model folder"});
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("../outside.safetensors", dir + "/2.safetensors");
  Refused("X03 relative", dir, {"leads out of the model folder"});
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("1.safetensors", dir + "/2.safetensors");
  Refused("X03 to the other shard", dir, {"\"a\" lies in"});
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("2.safetensors", dir + "/2.safetensors");
  Refused("X03 to itself", dir);
  const std::string link = dir_ / "link";
  fs::create_directory_symlink(Folder(good_), link);
  Accepted("X03 the folder itself is a link", link);
  dir = Folder("");
  fs::create_symlink(outside, dir + "/model.safetensors");
  Refused("X03 single file", dir, {"leads out of the model folder"});
}

TEST_F(BadFolders, HuggingFaceCache) {
  const std::string root = dir_ / "models--org--name", blobs = root + "/blobs",
                    dir = root + "/snapshots/0123abcd";
  fs::create_directories(blobs);
  fs::create_directories(dir);
  const std::string sha(64, 'a'), sha1(40, '7');
  WriteTestFile(blobs + "/" + sha, Shard("a"));
  WriteTestFile(blobs + "/" + sha1, Shard("b"));
  WriteTestFile(dir + kIndexName, good_);
  fs::create_symlink("../../blobs/" + sha, dir + "/1.safetensors");
  fs::create_symlink("../../blobs/" + sha1, dir + "/2.safetensors");
  Accepted("X03 cache", dir);
  WriteTestFile(blobs + "/notes", Shard("b"));
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("../../blobs/notes", dir + "/2.safetensors");
  Refused("X03 cache, not a hash", dir, {"leads out"});
  fs::create_directories(dir_ / "models--org--other/blobs");
  fs::copy_file(blobs + "/" + sha1, dir_ / ("models--org--other/blobs/" + sha1));
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("../../../models--org--other/blobs/" + sha1, dir + "/2.safetensors");
  Refused("X03 cache, another model's", dir, {"leads out"});
}

TEST_F(BadFolders, Shards) {
  std::string dir = Folder(Index({{"a", "1.safetensors"}, {"b", "3.safetensors"}, {"c", "4.safetensors"}}));
  Refused("X04", dir, {"2 of 3 files", "3.safetensors, 4.safetensors"});
  dir = Folder(Index({{"a", "1.safetensors"}, {"b", "1.safetensors"}}));
  Refused("X05", dir, {"1 tensor(s)", "names: b"});
  dir = Folder(Index({{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"c", "2.safetensors"}}));
  Refused("X05 nowhere", dir, {"names: c"});
  dir = Folder(good_);
  WriteTestFile(dir + "/2.safetensors",
                HonestFile().Add("a", "U8", {4}, "wxyz").Add("b", "U8", {1}, "x").Text());
  Refused("X06", dir, {"\"a\"", "2.safetensors"});
  dir = Folder(Index({{"a", "2.safetensors"}, {"b", "1.safetensors"}}));
  Refused("X06 swapped", dir, {"\"a\" lies in 1.safetensors, the index says 2.safetensors"});
  dir = Folder(Index({{"a", "1.safetensors"}}));
  WriteTestFile(dir + "/1.safetensors",
                HonestFile().Add("a", "U8", {4}, "wxyz").Add("b", "U8", {1}, "x").Text());
  Accepted("extra tensor", dir);
  const auto weights = Weights::Open(dir);
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ((*weights)->Find("b"), nullptr);
  ASSERT_FALSE((*weights)->notes().empty());
  EXPECT_NE((*weights)->notes()[0].find("not used: b"), std::string::npos) << (*weights)->notes()[0];

  dir = Folder(good_);
  std::string cut = Shard("b");
  cut.pop_back();
  WriteTestFile(dir + "/2.safetensors", cut);
  Refused("cut shard", dir, {"2.safetensors", "of 3 data bytes"});
}

TEST_F(BadFolders, SpecialFiles) {
  std::string dir = Folder(good_);
  fs::remove(dir + "/2.safetensors");
  ASSERT_EQ(mkfifo((dir + "/2.safetensors").c_str(), 0600), 0);
  Refused("X07 FIFO", dir, {"found a FIFO"});
  Refused("X07 FIFO alone", dir + "/2.safetensors", {"found a FIFO"});
  fs::remove(dir + "/2.safetensors");
  fs::create_directory(dir + "/2.safetensors");
  Refused("X07 folder", dir, {"found a folder"});
  fs::remove(dir + "/2.safetensors");
  fs::create_symlink("/dev/zero", dir + "/2.safetensors");
  Refused("X07 /dev/zero", dir, {"leads out"});
  Refused("X07 /dev/zero alone", "/dev/zero", {"found a device"});
  dir = Folder("");
  ASSERT_EQ(mkfifo((dir + kIndexName).c_str(), 0600), 0);
  Refused("X07 index", dir, {"found a FIFO"});
  Refused("nothing there", dir_ / "none", {"none"});
}

TEST_F(BadFolders, TotalSize) {
  for (const char* total :
       {"-1", "1e30", "9", "7", "\"8\"", "null", "[]", "{}", "0", "18446744073709551615"}) {
    const std::string dir = Folder(Index({{"a", "1.safetensors"}, {"b", "2.safetensors"}}, total));
    Accepted(std::string("X08 ") + total, dir);
    const auto weights = Weights::Open(dir);
    ASSERT_TRUE(weights.ok());
    EXPECT_EQ((*weights)->notes().size(), 1u) << total;
  }
}

TEST_F(BadFolders, NoWeights) {
  const auto folder_with = [&](const std::vector<std::string>& names) {
    const std::string dir = dir_ / ("n" + std::to_string(folders_++));
    fs::create_directory(dir);
    for (const std::string& name : names) WriteTestFile(dir + "/" + name, "x");
    return dir;
  };
  Refused("X09", folder_with({"pytorch_model.bin", "config.json"}),
          {"pickle files are not read", "pytorch_model.bin"});
  Refused("X09 pth", folder_with({"consolidated.00.pth"}), {"pickle files are not read"});
  Refused("X10", folder_with({"model-00007-of-00099.safetensors"}),
          {"found only model-00007-of-00099.safetensors"});
  std::vector<std::pair<std::string, std::string>> map;
  for (int i = 1; i <= 99; ++i) map.push_back({"t" + std::to_string(i), std::to_string(i) + ".safetensors"});
  const std::string dir = Folder(Index(map));
  fs::remove(dir + "/2.safetensors");
  Refused("X10 with an index", dir, {"98 of 99 files", "99.safetensors"});
  Refused("GGUF", folder_with({"model.gguf"}), {"model.gguf"});
  Refused("empty", folder_with({}), {"no weights"});
}

TEST_F(BadFolders, Index) {
  for (const char* bad :
       {"", "{}", "[]", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"2.safetensors\"}}", "{\"weight_map\":null}",
        "{\"weight_map\":{\"a\":[[[[[[[[[[]]]]]]]]]]}}", "{\"weight_map\":{\"a\":\"1.safetensors\"}",
        "\xef\xbb\xbf{}"}) {
    const std::string dir = Folder(" ");
    WriteTestFile(dir + kIndexName, bad);
    Refused(std::string("index ") + bad, dir, {dir + kIndexName});
  }
  const std::string dir = Folder(good_);
  ASSERT_EQ(truncate((dir + kIndexName).c_str(), off_t{1} << 30), 0);  // sparse
  Refused("index of 1 GiB", dir, {"1073741824 bytes"});
}

}  // namespace
}  // namespace nibble
