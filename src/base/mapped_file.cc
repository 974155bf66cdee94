// SPDX-License-Identifier: Apache-2.0
// Floor 0. Mapped files and the SIGBUS handler that keeps a cut file from ending the process.
#include "base/mapped_file.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

namespace nibble {
namespace {

// Live mappings, found by the signal handler without locks. begin is set last and cleared first.
struct Slot {
  std::atomic<uintptr_t> begin{0};  // 0: free, 1: being filled
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> lost{false};
};
constexpr size_t kSlots = 4096;  // shards of a model are hundreds at most
std::array<Slot, kSlots> slots;
struct sigaction previous_handler;
uintptr_t page_bytes = 4096;

Slot* FindSlot(uintptr_t address) {
  for (Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    if (begin > 1 && begin <= address && address < slot.end.load(std::memory_order_relaxed)) return &slot;
  }
  return nullptr;
}

// Async-signal-safe: atomics and two system calls.
void OnBusError(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const bool from_memory = info->si_code > 0;  // not sent by kill() or raise(): si_addr is an address
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (Slot* slot = from_memory ? FindSlot(address) : nullptr) {
    void* page = static_cast<std::byte*>(info->si_addr) - address % page_bytes;
    const void* zeros = mmap(page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros != MAP_FAILED) {
      slot->lost.store(true, std::memory_order_release);
      errno = saved_errno;
      return;
    }
  }
  if ((previous_handler.sa_flags & SA_SIGINFO) && previous_handler.sa_sigaction) {
    previous_handler.sa_sigaction(signal, info, context);
  } else {
    sigaction(SIGBUS, &previous_handler, nullptr);  // a fault comes again by itself and meets the old handler
    if (!from_memory) raise(signal);
  }
  errno = saved_errno;
}

void InstallHandler() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous_handler);
}

Slot* TakeSlot() {
  for (Slot& slot : slots) {
    uintptr_t expected = 0;
    if (slot.begin.compare_exchange_strong(expected, 1)) return &slot;
  }
  return nullptr;
}

}  // namespace

struct MappedFile::Impl {
  explicit Impl(File f) : file(std::move(f)) {}
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (slot) slot->begin.store(0, std::memory_order_release);
    if (data) munmap(data, file.size());
  }

  File file;
  void* data = nullptr;
  Slot* slot = nullptr;
};

Result<MappedFile> MappedFile::Map(File file) {
  static std::once_flag once;
  std::call_once(once, InstallHandler);
  auto impl = std::make_unique<Impl>(std::move(file));
  const File& f = impl->file;
  if (f.size() == 0) return MappedFile(std::move(impl));  // mmap refuses length 0
  if (f.size() > PTRDIFF_MAX)
    return Error(Code::kCorrupt, "{}: {} bytes do not fit in memory", f.path(), f.size());
  Slot* slot = TakeSlot();
  if (!slot) return Error(Code::kOutOfMemory, "{}: more than {} files are mapped", f.path(), kSlots);
  void* data = mmap(nullptr, f.size(), PROT_READ, MAP_PRIVATE, f.fd(), 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    slot->begin.store(0, std::memory_order_release);
    return Error(error == ENOMEM ? Code::kOutOfMemory : Code::kIo, "{}: cannot map {} bytes: {}", f.path(),
                 f.size(), strerror(error));
  }
  impl->data = data;
  impl->slot = slot;
  slot->lost.store(false, std::memory_order_relaxed);
  slot->end.store(reinterpret_cast<uintptr_t>(data) + f.size(), std::memory_order_relaxed);
  slot->begin.store(reinterpret_cast<uintptr_t>(data), std::memory_order_release);
  return MappedFile(std::move(impl));
}

MappedFile::MappedFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MappedFile::MappedFile(MappedFile&&) noexcept = default;
MappedFile& MappedFile::operator=(MappedFile&&) noexcept = default;
MappedFile::~MappedFile() = default;

const std::string& MappedFile::path() const { return impl_->file.path(); }

std::span<const std::byte> MappedFile::bytes() const {
  return {static_cast<const std::byte*>(impl_->data), impl_->data ? impl_->file.size() : 0};
}

Status MappedFile::CheckUnchanged() const {
  NIBBLE_RETURN_IF_ERROR(impl_->file.CheckSize());
  if (impl_->slot && impl_->slot->lost.load(std::memory_order_acquire)) {
    return Error(Code::kIo, "{}: a part of the file could not be read after it was opened", path());
  }
  return {};
}

void MappedFile::Release(std::span<const std::byte> range) const {
  const auto address = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t begin = (page_bytes - address % page_bytes) % page_bytes;  // of the first whole page
  const uintptr_t tail = (address + range.size()) % page_bytes;
  if (begin + tail >= range.size()) return;
  madvise(const_cast<std::byte*>(range.data()) + begin, range.size() - begin - tail, MADV_DONTNEED);
}

void MappedFile::WillNeed() const {
  if (!impl_->data) return;
  // Refusals cost speed alone.
  (void)madvise(impl_->data, impl_->file.size(), MADV_HUGEPAGE);
  (void)madvise(impl_->data, impl_->file.size(), MADV_WILLNEED);
}

void MappedFile::StopCovering() {
  if (Slot* slot = std::exchange(impl_->slot, nullptr)) slot->begin.store(0, std::memory_order_release);
}

}  // namespace nibble
