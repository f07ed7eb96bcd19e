// Memory straight from the operating system: page-aligned, touched pages only, and returned at once when released.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace pocketformer {

inline constexpr size_t kAlignment = 64;  // a cache line and a 512-bit register

inline constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  ~AlignedBuffer() { release(); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // At least `bytes`; what it held is lost when it grows. Throws std::bad_alloc and is then empty.
  void reserve(size_t bytes) {
    if (bytes <= size_) return;
    release();  // before the new mapping, so that the two never count together
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(data);
    size_ = bytes;
  }

  void release() {
    const size_t size = size_;
    size_ = 0;  // first: a child forked just after the unmapping must not believe in it
    if (size != 0) munmap(data_, size);
    data_ = nullptr;
  }

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pocketformer
