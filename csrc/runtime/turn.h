// One user at a time of what must not be shared. The owner is named by the pool's generation, so that a child forked
// in the middle of another thread's call does not wait for a thread it does not have.
#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "core/thread_pool.h"

namespace pocketformer {

class Turn {
 public:
  // Throws std::runtime_error with `refusal` when somebody has it.
  Turn(std::atomic<uint32_t>& owner, const char* refusal) : owner_(owner) {
    if (!take(owner)) throw std::runtime_error(refusal);
  }
  ~Turn() { give_back(owner_); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  static bool take(std::atomic<uint32_t>& owner) {
    const uint32_t mine = ThreadPool::instance().generation();
    return owner.exchange(mine, std::memory_order_acquire) != mine;
  }
  static void give_back(std::atomic<uint32_t>& owner) { owner.store(0, std::memory_order_release); }

 private:
  std::atomic<uint32_t>& owner_;
};

}  // namespace pocketformer
