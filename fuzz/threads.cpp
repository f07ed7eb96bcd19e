// Concurrent sessions over one program, callers that contend for the pool, pools that start, idle, and fork: for the
// thread sanitizer.
//
// The sanitizer does not know the futex system call, and need not: futexes here only put threads to sleep and wake
// them. What orders memory is the atomics around them, which it sees. In the child of a fork it may miss races, as it
// knows nothing of threads that are gone; there the results count.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/dispatch.h"
#include "model.h"

using namespace pocketformer;

extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0:halt_on_error=1";
}

namespace {

using Compiled = std::shared_ptr<const Program>;

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::_Exit(1);
}

// Each of `callers` threads has a session of its own; together they want more threads than the pool has.
void concurrent(const Model& model, const Compiled& program, const std::vector<float>& expected, int callers,
                int rounds) {
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      Session session(program, {caller % 2 == 0 ? Mode::kRows : Mode::kColumns, caller % 3 == 0 ? 5 : 0});
      for (int round = 0; round < rounds; ++round) {
        if (round % 7 == 6) session.trim();
        check(model.run(session, 1 + (caller + round) % 4) == expected, "every caller gets the same bits");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void one_session(const Model& model, const Compiled& program) {
  Session session(program, {});
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        try {
          model.run(session, 2);
        } catch (const std::runtime_error&) {  // another thread is in it
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void forked(const Model& model, const Compiled& program, const std::vector<float>& expected, bool busy) {
  std::atomic<bool> stop{false};
  std::thread other([&] {
    Session session(program, {});
    while (busy && !stop.load()) model.run(session, 3);
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      Session session(program, {});
      for (int round = 0; round < 3; ++round) {
        if (model.run(session, 3) != expected) std::_Exit(1);
      }
      std::_Exit(0);
    }
    int status = 0;
    check(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a forked child gets the same bits");
    Session session(program, {});
    check(model.run(session, 2) == expected, "the parent of a child goes on");
  }
  stop.store(true);
  other.join();
}

}  // namespace

int main() {
  for (const bool int8 : {true, false}) {
    const Model model(int8);
    const Compiled program = model.compile(kernels());
    Session session(program, {});
    const std::vector<float> expected = model.run(session, 1);
    forked(model, program, expected, false);  // before the pool has started
    for (int threads = 1; threads <= 8; ++threads) check(model.run(session, threads) == expected, "any threads");
    concurrent(model, program, expected, 4, 60);
    one_session(model, program);
    forked(model, program, expected, true);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // asleep, then woken
    concurrent(model, program, expected, 2, 20);
  }
  std::puts("done");
}
