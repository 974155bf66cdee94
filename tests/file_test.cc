// SPDX-License-Identifier: Apache-2.0
// Files and folders that appear complete or not at all.
#include "base/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "base/folder_writer.h"
#include "base/mapped_file.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> Names(const std::string& dir) {
  const auto names = NamesIn(dir);
  return names.ok() ? *names : std::vector<std::string>{names.status().message()};
}

Status AddFile(const FolderWriter& folder, const std::string& name, const std::string& text) {
  NIBBLE_ASSIGN(FileWriter file, folder.Add(name));
  NIBBLE_RETURN_IF_ERROR(file.Write(text));
  return file.Commit();
}

// Runs f in a child and returns the wait status.
int InChild(const std::function<void()>& f) {
  const pid_t child = fork();
  if (child == 0) {
    f();
    _exit(0);
  }
  int how = 0;
  waitpid(child, &how, 0);
  return how;
}

TEST(FileWriter, ReplacesAtCommitOnly) {
  const TempDir dir;
  const std::string path = dir / "a";
  WriteTestFile(path, "old");
  {
    auto writer = FileWriter::Create(path);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->Write("new").ok());
    EXPECT_EQ(ReadTestFile(path), "old");
    EXPECT_EQ(Names(dir.path()).size(), 2u);
  }
  EXPECT_EQ(Names(dir.path()), std::vector<std::string>{"a"});  // dropped without a trace
  auto writer = FileWriter::Create(path);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Write("longer ").ok() && writer->Write("text").ok() && writer->Commit().ok());
  EXPECT_EQ(ReadTestFile(path), "longer text");
  EXPECT_EQ(Names(dir.path()), std::vector<std::string>{"a"});
  EXPECT_FALSE(FileWriter::Create(dir / "none/a").ok());
}

TEST(FileWriter, WritesAnywhereInReservedSpace) {
  const TempDir dir;
  auto writer = FileWriter::Create(dir / "a");
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Reserve(6).ok());
  ASSERT_TRUE(writer->WriteAt(3, std::as_bytes(std::span("def", 3))).ok());
  ASSERT_TRUE(writer->WriteAt(0, std::as_bytes(std::span("abc", 3))).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_EQ(ReadTestFile(dir / "a"), "abcdef");
}

TEST(File, ReadsAgainstItsFirstSize) {
  const TempDir dir;
  WriteTestFile(dir / "a", "0123456789");
  auto file = File::Open(dir / "a");
  ASSERT_TRUE(file.ok());
  std::byte four[4];
  EXPECT_TRUE(file->ReadAt(6, four).ok());
  EXPECT_EQ(file->ReadAt(7, four).code(), Code::kCorrupt);
  EXPECT_EQ(file->ReadAt(UINT64_MAX - 1, four).code(), Code::kCorrupt);
  EXPECT_TRUE(file->CheckSize().ok());
  ASSERT_EQ(truncate((dir / "a").c_str(), 5), 0);
  EXPECT_EQ(file->ReadAt(6, four).code(), Code::kIo);
  EXPECT_EQ(file->CheckSize().code(), Code::kIo);
  EXPECT_FALSE(ReadWholeFile(dir / "a", 4).ok());
  EXPECT_EQ(*ReadWholeFile(dir / "a", 5), "01234");
  fs::create_symlink("a", dir / "link");
  EXPECT_TRUE(File::Open(dir / "link").ok());
  EXPECT_FALSE(File::Open(dir / "link", File::Links::kRefuse).ok());
  EXPECT_FALSE(File::Open(std::string("a\0b", 3)).ok());
}

TEST(MappedFile, EmptyAndReleased) {
  const TempDir dir;
  WriteTestFile(dir / "empty", "");
  auto empty = MappedFile::Map(*File::Open(dir / "empty"));
  ASSERT_TRUE(empty.ok());
  EXPECT_TRUE(empty->bytes().empty());
  EXPECT_TRUE(empty->CheckUnchanged().ok());
  const std::string text(100'000, 'x');
  WriteTestFile(dir / "a", text);
  auto mapped = MappedFile::Map(*File::Open(dir / "a"));
  ASSERT_TRUE(mapped.ok());
  mapped->Release(mapped->bytes());
  mapped->Release(mapped->bytes().subspan(1, 10));
  EXPECT_EQ(memcmp(mapped->bytes().data(), text.data(), text.size()), 0);  // read again
}

TEST(FolderWriter, AppearsAtCommit) {
  const TempDir dir;
  const std::string target = dir / "out";
  auto folder = FolderWriter::Create(target + "/");
  ASSERT_TRUE(folder.ok()) << folder.status().message();
  ASSERT_TRUE(AddFile(*folder, "a", "text").ok());
  EXPECT_FALSE(fs::exists(target));
  ASSERT_TRUE(folder->Commit().ok());
  EXPECT_EQ(ReadTestFile(target + "/a"), "text");
  EXPECT_EQ(Names(target), std::vector<std::string>{"a"});
  EXPECT_EQ(Names(dir.path()), std::vector<std::string>{"out"});
  EXPECT_EQ(fs::status(target).permissions() & fs::perms::owner_all, fs::perms::owner_all);
}

TEST(FolderWriter, RefusesWhatIsInTheWay) {
  const TempDir dir;
  fs::create_directory(dir / "full");
  WriteTestFile(dir / "full/mine", "keep");
  EXPECT_EQ(FolderWriter::Create(dir / "full").status().code(), Code::kInvalidArgument);
  EXPECT_NE(FolderWriter::Create(dir / "full").status().message().find("mine"), std::string::npos);
  EXPECT_EQ(FolderWriter::Create(dir / "full/mine").status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(FolderWriter::Create(dir / "none/out").ok());
  for (const char* name : {"", "/", ".", "..", "//"}) EXPECT_FALSE(FolderWriter::Create(name).ok()) << name;
  fs::create_directory(dir / "empty");
  auto folder = FolderWriter::Create(dir / "empty");
  ASSERT_TRUE(folder.ok());
  ASSERT_TRUE(folder->Commit().ok());
  // Something appears at the target while the folder is written: it stays.
  auto late = FolderWriter::Create(dir / "late");
  ASSERT_TRUE(late.ok());
  fs::create_directory(dir / "late");
  WriteTestFile(dir / "late/theirs", "keep");
  EXPECT_FALSE(late->Commit().ok());
  EXPECT_EQ(ReadTestFile(dir / "late/theirs"), "keep");
}

TEST(FolderWriter, DroppedFolderLeavesNothing) {
  const TempDir dir;
  {
    auto folder = FolderWriter::Create(dir / "out");
    ASSERT_TRUE(folder.ok());
    ASSERT_TRUE(AddFile(*folder, "a", "text").ok());
    auto unfinished = folder->Add("b");
    ASSERT_TRUE(unfinished.ok() && unfinished->Write("half").ok());
  }
  EXPECT_TRUE(Names(dir.path()).empty());
}

TEST(FolderWriter, KilledRunIsCleanedByTheNext) {
  const TempDir dir;
  const std::string target = dir / "out";
  const int how = InChild([&] {
    auto folder = FolderWriter::Create(target);
    (void)AddFile(*folder, "a", "text").ok();
    auto unfinished = folder->Add("b");
    kill(getpid(), SIGKILL);
  });
  ASSERT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
  EXPECT_FALSE(fs::exists(target));
  ASSERT_EQ(Names(dir.path()).size(), 1u);  // the temporary folder
  // Names that only look alike are somebody's own.
  fs::create_directory(dir / "out.tmp-x");
  fs::create_directory(dir / "out.tmp-1-2-3");
  fs::create_directory(dir / "outer.tmp-1-2");

  auto live = FolderWriter::Create(target);
  ASSERT_TRUE(live.ok());
  EXPECT_EQ(Names(dir.path()).size(), 4u);  // the dead one is gone
  // A second run in another process does not touch the live one.
  EXPECT_EQ(InChild([&] { (void)FolderWriter::Create(target).ok(); }), 0);
  EXPECT_TRUE(fs::exists(live->temporary()));
  ASSERT_TRUE(live->Commit().ok());
  EXPECT_TRUE(fs::exists(target));
}

TEST(FolderWriter, FullDiskLeavesNothing) {
  const TempDir dir;
  const int how = InChild([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit small = {1000, 1000};
    setrlimit(RLIMIT_FSIZE, &small);
    auto folder = FolderWriter::Create(dir / "out");
    const Status status = AddFile(*folder, "a", std::string(2000, 'x'));
    if (status.code() != Code::kIo || status.message().find("cannot write") == std::string::npos) _exit(1);
    auto file = folder->Add("b");
    if (file->Reserve(2000).code() != Code::kIo) _exit(2);
  });
  // The child left by _exit, without destructors, as a killed run does.
  EXPECT_EQ(how, 0);
  EXPECT_FALSE(fs::exists(dir / "out"));
}

}  // namespace
}  // namespace nibble
