// Preloaded: fails one allocation of the thread that asks for it. What counts are operator new, which in this process
// is the extension's, mappings, and blocks from a page on, which hold arrays. Left alone are Python's own small
// objects, as an interpreter without room for those cannot even raise, and the 24 bytes by which pybind11 remembers an
// object: its constructors do not survive their absence (a double free or std::terminate in 3.1.0).
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <new>

extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_calloc(size_t, size_t);

namespace {

constexpr size_t kLarge = 4096, kInstance = 24;
thread_local long countdown = -1, seen = 0;

bool fails() {
  ++seen;
  if (countdown < 0 || countdown-- > 0) return false;
  errno = ENOMEM;
  return true;
}

}  // namespace

// Allocations until one fails; negative: none does. Returns how many there were since the last call.
extern "C" long fail_allocation(long n) {
  const long count = seen;
  countdown = n;
  seen = 0;
  return count;
}

extern "C" void* malloc(size_t bytes) { return bytes >= kLarge && fails() ? nullptr : __libc_malloc(bytes); }
extern "C" void* calloc(size_t count, size_t bytes) {
  return count * bytes >= kLarge && fails() ? nullptr : __libc_calloc(count, bytes);
}
extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (fails()) return MAP_FAILED;
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
}

void* operator new(size_t bytes) {
  void* memory = bytes != kInstance && fails() ? nullptr : __libc_malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
