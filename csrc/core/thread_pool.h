// One pool of threads per process, started when first needed. It never queues: a caller that finds it busy does the
// whole job on its own thread, so concurrent callers give throughput and a single one gives latency.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace pocketformer {

inline constexpr int kMaxThreads = 256;

// Where the threads of one job meet. Reusable at once.
class Barrier {
 public:
  Barrier(int threads, bool may_spin) : threads_(static_cast<uint32_t>(threads)), may_spin_(may_spin) {}

  // `last()` runs on the last thread to arrive, before any thread goes on.
  template <typename Last>
  void wait(Last last) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      last();
      arrived_.store(0, std::memory_order_relaxed);
      release();
    } else {
      await(phase);
    }
  }

 private:
  void release();
  void await(uint32_t phase);

  const uint32_t threads_;
  const bool may_spin_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<uint32_t> sleepers_{0};
};

class ThreadPool {
 public:
  // A job sees which of how many threads it is, and must not throw.
  using Job = void (*)(void* context, int thread, int threads, Barrier& barrier);

  static ThreadPool& instance();

  // Runs `job` on up to `threads` threads, the caller's among them, and returns when all are done. Fewer threads take
  // part when the pool is busy or the system refuses more.
  void run(int threads, Job job, void* context);

  // Changes in a forked child; state that names an owner uses it to see that the owner did not survive the fork.
  uint32_t generation() const { return generation_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Worker {
    std::atomic<uint32_t> signal;
  };

  ThreadPool();
  static void* main(void* argument);
  static void after_fork_in_child();
  void work(int index);
  int start(int workers);

  std::atomic<bool> busy_{false};
  std::atomic<uint32_t> generation_{1};
  int started_ = 0;
  int cpus_ = 0;
  Job job_ = nullptr;
  void* context_ = nullptr;
  Barrier* barrier_ = nullptr;
  int threads_ = 0;
  alignas(64) std::atomic<uint32_t> remaining_{0};
  Worker workers_[kMaxThreads];
};

}  // namespace pocketformer
