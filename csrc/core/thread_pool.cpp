#include "core/thread_pool.h"

#include <signal.h>

#include <algorithm>
#include <new>

#include "core/cpu_quota.h"
#include "core/futex.h"

namespace pocketformer {
namespace {

constexpr uint32_t kIdle = 0, kWork = 1, kAsleep = 2;
constexpr size_t kStackBytes = 1 << 20;  // kernels keep tiles on the stack; musl's default of 128 KiB is too small

}  // namespace

void Barrier::release() {
  // Sequentially consistent on both sides: either the sleeper sees the new phase or it is seen here.
  phase_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) futex_wake_all(phase_);
}

void Barrier::await(uint32_t phase) {
  const auto passed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  if (spin_until(may_spin_, passed)) return;
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (!passed()) futex_wait(phase_, phase);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

// Never destroyed: sleeping threads may outlive static destructors.
ThreadPool& ThreadPool::instance() {
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

ThreadPool::ThreadPool() : cpus_(available_cpus()) {
  for (Worker& worker : workers_) worker.signal.store(kIdle, std::memory_order_relaxed);
  pthread_atfork(nullptr, nullptr, after_fork_in_child);
}

// The child has no workers, and whoever held the pool is not there either.
void ThreadPool::after_fork_in_child() {
  ThreadPool& pool = instance();
  for (Worker& worker : pool.workers_) worker.signal.store(kIdle, std::memory_order_relaxed);
  pool.started_ = 0;
  pool.remaining_.store(0, std::memory_order_relaxed);
  pool.generation_.fetch_add(1, std::memory_order_relaxed);
  pool.busy_.store(false, std::memory_order_release);
}

void ThreadPool::run(int threads, Job job, void* context) {
  threads = std::min(threads, kMaxThreads);
  if (threads <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
    Barrier alone(1, false);
    job(context, 0, 1, alone);
    return;
  }
  threads = 1 + start(threads - 1);
  const bool may_spin = threads <= cpus_;
  Barrier barrier(threads, may_spin);
  job_ = job;
  context_ = context;
  barrier_ = &barrier;
  threads_ = threads;
  remaining_.store(static_cast<uint32_t>(threads - 1), std::memory_order_relaxed);
  for (int i = 0; i < threads - 1; ++i) {
    if (workers_[i].signal.exchange(kWork, std::memory_order_acq_rel) == kAsleep) futex_wake_all(workers_[i].signal);
  }
  job(context, 0, threads, barrier);
  const auto finished = [&] { return remaining_.load(std::memory_order_acquire) == 0; };
  if (!spin_until(may_spin, finished)) {
    for (uint32_t left; (left = remaining_.load(std::memory_order_acquire)) != 0;) futex_wait(remaining_, left);
  }
  busy_.store(false, std::memory_order_release);
}

// Starts threads until there are `workers`; returns how many of those asked for exist.
int ThreadPool::start(int workers) {
  if (started_ >= workers) return workers;
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);  // signals stay with the program's own threads
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  for (pthread_t thread; started_ < workers; ++started_) {
    void* const index = reinterpret_cast<void*>(static_cast<intptr_t>(started_));
    if (pthread_create(&thread, &attributes, main, index) != 0) break;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  return std::min(started_, workers);
}

void* ThreadPool::main(void* argument) {
  instance().work(static_cast<int>(reinterpret_cast<intptr_t>(argument)));
  return nullptr;
}

void ThreadPool::work(int index) {
  std::atomic<uint32_t>& signal = workers_[index].signal;
  for (bool may_spin = true;;) {
    const auto called = [&] { return signal.load(std::memory_order_acquire) == kWork; };
    if (!spin_until(may_spin, called)) {
      uint32_t idle = kIdle;
      signal.compare_exchange_strong(idle, kAsleep, std::memory_order_acq_rel);
      while (!called()) futex_wait(signal, kAsleep);
    }
    signal.store(kIdle, std::memory_order_relaxed);
    may_spin = threads_ <= cpus_;
    job_(context_, index + 1, threads_, *barrier_);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) futex_wake_all(remaining_);
  }
}

}  // namespace pocketformer
