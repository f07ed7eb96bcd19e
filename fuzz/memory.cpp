// Fails each allocation in turn: making a program, a session, and a run each end with std::bad_alloc or well, leave
// nothing behind, and the same call works as soon as there is memory again.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "core/dispatch.h"
#include "model.h"

using namespace pocketformer;

namespace {

long countdown = -1;  // allocations until one fails; negative: none does
long live = 0;        // blocks and mappings in existence
bool only_one = true, failed = false;

bool fails() {
  if (countdown < 0 || countdown-- > 0) return false;
  if (!only_one) countdown = 0;
  return failed = true;
}

void* take_or_null(size_t bytes) {
  void* memory = fails() ? nullptr : std::malloc(bytes);
  if (memory != nullptr) ++live;
  return memory;
}

void* take(size_t bytes) {
  void* memory = take_or_null(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void give_back(void* memory) {
  if (memory != nullptr) --live;
  std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return take_or_null(bytes); }  // std::stable_sort
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete[](void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, size_t) noexcept { give_back(memory); }
void operator delete[](void* memory, size_t) noexcept { give_back(memory); }

extern "C" void* __real_mmap(void*, size_t, int, int, int, off_t);
extern "C" int __real_munmap(void*, size_t);
extern "C" int __real_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);

extern "C" void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (fails()) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  ++live;
  return __real_mmap(at, bytes, protection, flags, file, offset);
}
extern "C" int __wrap_munmap(void* memory, size_t bytes) {
  --live;
  return __real_munmap(memory, bytes);
}
extern "C" int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*main)(void*),
                                     void* argument) {
  return fails() ? EAGAIN : __real_pthread_create(thread, attributes, main, argument);
}

namespace {

void check(bool condition, const char* what, long at) {
  if (condition) return;
  std::fprintf(stderr, "failed at allocation %ld: %s\n", at, what);
  std::_Exit(1);
}

// Runs `attempt` with the first, second, … allocation failing, until none is reached; returns how many there are.
template <typename Attempt>
long every_allocation(const char* what, Attempt attempt) {
  for (long at = 0;; ++at) {
    const long before = live;
    failed = false;
    countdown = at;
    bool refused = false;
    try {
      attempt();
    } catch (const std::bad_alloc&) {
      refused = true;
    }
    countdown = -1;
    check(live == before, "memory is given back", at);
    check(failed || !refused, "memory is refused without reason", at);
    if (failed) continue;
    std::printf("%s: %ld allocations\n", what, at);
    return at;
  }
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const bool int8 : {true, false}) {
    for (const bool one : {true, false}) {  // one failure, or no memory from there on
      only_one = one;
      const Model model(int8);
      const auto program = model.compile(kernels());
      Session fresh(program, {});
      const std::vector<float> expected = model.run(fresh, 1);
      long total = every_allocation("program", [&] { model.compile(kernels()); });
      total += every_allocation("first run", [&] {
        Session session(program, {});
        check(model.run(session, 1) == expected, "the result", 0);
      });
      total += every_allocation("profiled run with threads", [&] {
        Session session(program, {});
        session.set_profile(true);
        check(model.run(session, 3) == expected, "the result with fewer threads", 0);
        session.phases();
      });
      fresh.trim();
      total += every_allocation("run after a failed one", [&] {
        check(model.run(fresh, 2) == expected, "the result", 0);
        fresh.trim();
      });
      check(total > 100, "the hooks count", total);
      const std::vector<float> again = model.run(fresh, 2);
      check(again == expected, "the session works again", 0);
      fresh.trim();
    }
  }
  std::puts("done");
}
