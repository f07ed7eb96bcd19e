// Spin for microseconds, then sleep: the only waiting there is. An idle pool costs no CPU; a busy one wakes without a
// system call. (std::condition_variable and std::atomic::wait would raise the floor of libstdc++.)
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

namespace pocketformer {

// Longer than a barrier between threads of equal work, shorter than anything a user sees in a process monitor.
inline constexpr std::chrono::microseconds kSpin{50};

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

inline void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

inline void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `done()`; false when it is still not so after kSpin. More threads than CPUs must not spin: they would
// hold the CPU that the awaited thread needs.
template <typename Done>
bool spin_until(bool may_spin, Done done) {
  if (done()) return true;
  if (!may_spin) return false;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause_cpu();
    }
    sched_yield();  // on a busy machine the awaited thread may have been put on this very CPU
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace pocketformer
