// SPDX-License-Identifier: Apache-2.0
// The seam at which tests make calls of the system fail: a library that is loaded before a program, so that
// nothing of it is in the program. NIBBLE_FAULT=CALL:N:ERROR makes the N-th call of that name fail with that
// errno; ERROR 0 makes it do half of what was asked (read, write, send, recv). Calls of malloc count from the
// first open on: before it the libraries start. NIBBLE_FAULT_MARK names a file that appears when it fails.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> g_left{-1};  // calls until the one that fails; at most 0: none
int g_error = 0;
char g_call[32];
std::atomic<bool> g_opened{false};

__attribute__((constructor)) void Init() {
  const char* fault = std::getenv("NIBBLE_FAULT");
  long number = 0;
  if (fault == nullptr || std::sscanf(fault, "%31[a-z]:%ld:%d", g_call, &number, &g_error) != 3) return;
  g_left = number;
}

// By system calls alone: what it would call is what fails.
void Mark() {
  const char* path = std::getenv("NIBBLE_FAULT_MARK");
  if (path == nullptr) return;
  const long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd >= 0) syscall(SYS_close, fd);
}

bool Fails(const char* call) {
  if (g_left <= 0 || std::strcmp(call, g_call) != 0 || --g_left != 0) return false;
  Mark();
  errno = g_error;
  return true;
}

template <class F>
F* Next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

// Of read and write: a pipe inside a process, which wakes its threads, does not fail.
bool LeadsOut(int fd) {
  struct stat info;
  return fd <= STDERR_FILENO || (fstat(fd, &info) == 0 && S_ISREG(info.st_mode));
}

size_t Half(size_t bytes) { return std::max<size_t>(1, bytes / 2); }

}  // namespace

// Whether the whole of a message goes is told by its first part; what is left is the caller's business.
#define NIBBLE_MESSAGE(name, constness)                                    \
  ssize_t name(int fd, constness msghdr* message, int flags) {             \
    static auto* next = Next<ssize_t(int, constness msghdr*, int)>(#name); \
    if (!Fails(#name)) return next(fd, message, flags);                    \
    if (g_error != 0 || message->msg_iovlen == 0) return -1;               \
    msghdr half = *message;                                                \
    iovec part = half.msg_iov[0];                                          \
    part.iov_len = Half(part.iov_len);                                     \
    half.msg_iov = &part, half.msg_iovlen = 1;                             \
    return next(fd, &half, flags);                                         \
  }

extern "C" {

ssize_t read(int fd, void* into, size_t bytes) {
  static auto* next = Next<ssize_t(int, void*, size_t)>("read");
  if (!LeadsOut(fd) || !Fails("read")) return next(fd, into, bytes);
  return g_error != 0 ? -1 : next(fd, into, Half(bytes));
}
ssize_t pread(int fd, void* into, size_t bytes, off_t at) {
  static auto* next = Next<ssize_t(int, void*, size_t, off_t)>("pread");
  if (!Fails("pread")) return next(fd, into, bytes, at);
  return g_error != 0 ? -1 : next(fd, into, Half(bytes), at);
}
ssize_t write(int fd, const void* from, size_t bytes) {
  static auto* next = Next<ssize_t(int, const void*, size_t)>("write");
  if (!LeadsOut(fd) || !Fails("write")) return next(fd, from, bytes);
  return g_error != 0 ? -1 : next(fd, from, Half(bytes));
}
ssize_t pwrite(int fd, const void* from, size_t bytes, off_t at) {
  static auto* next = Next<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  if (!Fails("pwrite")) return next(fd, from, bytes, at);
  return g_error != 0 ? -1 : next(fd, from, Half(bytes), at);
}
ssize_t send(int fd, const void* from, size_t bytes, int flags) {
  static auto* next = Next<ssize_t(int, const void*, size_t, int)>("send");
  if (!Fails("send")) return next(fd, from, bytes, flags);
  return g_error != 0 ? -1 : next(fd, from, Half(bytes), flags);
}
ssize_t recv(int fd, void* into, size_t bytes, int flags) {
  static auto* next = Next<ssize_t(int, void*, size_t, int)>("recv");
  if (!Fails("recv")) return next(fd, into, bytes, flags);
  return g_error != 0 ? -1 : next(fd, into, Half(bytes), flags);
}
NIBBLE_MESSAGE(sendmsg, const)
NIBBLE_MESSAGE(recvmsg, )
int accept(int fd, sockaddr* address, socklen_t* bytes) {
  static auto* next = Next<int(int, sockaddr*, socklen_t*)>("accept");
  if (!Fails("accept")) return next(fd, address, bytes);
  if (g_error == ECONNABORTED) {  // the system takes such a connection out of the queue
    close(next(fd, nullptr, nullptr));
    errno = g_error;
  }
  return -1;
}
int fsync(int fd) {
  static auto* next = Next<int(int)>("fsync");
  return Fails("fsync") ? -1 : next(fd);
}
int rename(const char* from, const char* to) noexcept {
  static auto* next = Next<int(const char*, const char*)>("rename");
  return Fails("rename") ? -1 : next(from, to);
}
int ftruncate(int fd, off_t bytes) noexcept {
  static auto* next = Next<int(int, off_t)>("ftruncate");
  return Fails("ftruncate") ? -1 : next(fd, bytes);
}
int open(const char* path, int flags, ...) {
  static auto* next = Next<int(const char*, int, ...)>("open");
  va_list rest;
  va_start(rest, flags);
  g_opened = true;
  const int mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, int) : 0;
  va_end(rest);
  return Fails("open") ? -1 : next(path, flags, mode);
}
void* mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
  static auto* next = Next<void*(void*, size_t, int, int, int, off_t)>("mmap");
  return Fails("mmap") ? MAP_FAILED : next(at, bytes, protection, flags, fd, offset);
}

// dlsym allocates, so memory comes from the C library's own names.
void* __libc_malloc(size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t bytes) { return g_opened && Fails("malloc") ? nullptr : __libc_malloc(bytes); }
void* aligned_alloc(size_t align, size_t bytes) {
  return g_opened && Fails("malloc") ? nullptr : __libc_memalign(align, bytes);
}

}  // extern "C"
