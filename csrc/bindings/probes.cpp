// What this machine can do at most, for measurements to be quoted as a share of it.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <vector>

#include "bindings/bindings.h"
#include "core/aligned_buffer.h"
#include "core/dispatch.h"
#include "core/errors.h"
#include "core/thread_pool.h"
#include "runtime/session.h"

namespace pocketformer::bindings {
namespace {

namespace py = pybind11;
using Clock = std::chrono::steady_clock;

// Slices of `work(thread, threads)`, which returns its units, on all threads at once: the most units that they reached
// together in a nanosecond of one slice. Neighbours disturb, so the best slice counts; the threads start each slice
// together and the slowest ends it, so that cores which share their units do not take turns.
template <typename Work>
class Slices {
 public:
  Slices(int threads, int64_t milliseconds, Work work)
      : work_(work),
        end_(Clock::now() + std::chrono::milliseconds(milliseconds)),
        units_(static_cast<size_t>(threads)) {
    require(milliseconds >= 1 && milliseconds <= 60'000, "milliseconds is ", milliseconds, "; it must be 1 to 60000");
  }

  double best() {
    const auto threads = static_cast<int>(units_.size());
    ThreadPool::instance().run(threads, job, this);
    if (interrupted_) {
      const py::gil_scoped_acquire gil;
      throw py::error_already_set();
    }
    if (took_part_ != threads) {
      throw std::runtime_error(concat("only ", took_part_, " of ", threads,
                                      " threads were free to measure; run the probe while nothing else runs"));
    }
    return best_;
  }

 private:
  static void job(void* context, int thread, int threads, Barrier& barrier) {
    auto& self = *static_cast<Slices*>(context);
    for (bool more = true; more;) {
      barrier.wait([&] {
        self.took_part_ = threads;
        self.start_ = self.now();
      });
      self.units_[static_cast<size_t>(thread)] = static_cast<double>(self.work_(thread, threads));
      if (thread == 0) self.poll();
      barrier.wait([&] {
        const double spent = self.now() - self.start_;
        double units = 0;
        for (const double part : self.units_) units += part;
        self.best_ = std::max(self.best_, units / spent);
        self.more_ = !self.interrupted_ && Clock::now() < self.end_;
      });
      more = self.more_;
    }
  }

  void poll() {
    const auto time = Clock::now();
    if (time < next_poll_) return;
    next_poll_ = time + kInterruptPeriod;
    interrupted_ = signalled();
  }

  // Nanoseconds; of a single thread those that it had a core, as for the benchmarks that are compared with this.
  double now() const {
    timespec t{};
    clock_gettime(units_.size() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return 1e9 * static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec);
  }

  static constexpr std::chrono::milliseconds kInterruptPeriod{50};

  Work work_;
  double start_ = 0;
  Clock::time_point end_;
  std::vector<double> units_;
  double best_ = 0;
  Clock::time_point next_poll_ = Clock::now() + kInterruptPeriod;
  bool more_ = true, interrupted_ = false;
  int took_part_ = 0;
};

constexpr int64_t kRounds = 20'000;  // a slice of some 150 µs with AVX-512

double probe_int8(const std::string& isa, int64_t milliseconds, int64_t threads, bool bounded_pairs) {
  const KernelTable& table = kernels(isa);
  const auto probe = bounded_pairs ? table.probe_bounded : table.probe_dot4;
  const GilReleased no_gil;
  return Slices(checked_threads(threads), milliseconds, [&](int, int) { return probe(kRounds); }).best();
}

double probe_f32(const std::string& isa, int64_t milliseconds, int64_t threads) {
  const KernelTable& table = kernels(isa);
  const GilReleased no_gil;
  return Slices(checked_threads(threads), milliseconds, [&](int, int) { return table.probe_fma(kRounds); }).best();
}

double probe_bandwidth(int64_t milliseconds, int64_t bytes, int64_t threads) {
  constexpr int64_t kUnit = 4096, kSlice = 4 << 20;
  require(bytes >= kUnit && bytes <= int64_t{1} << 36, "bytes is ", bytes, "; it must be ", kUnit, " to 2^36");
  const KernelTable& table = kernels();
  const GilReleased no_gil;
  AlignedBuffer buffer;
  buffer.reserve(static_cast<size_t>(bytes));
  std::memset(buffer.data(), 1, static_cast<size_t>(bytes));  // or every page would be the one page of zeros
  const int64_t units = bytes / kUnit, passes = std::max<int64_t>(1, kSlice / bytes);
  const auto read = [&](int thread, int parts) {
    const int64_t begin = units * thread / parts, end = units * (thread + 1) / parts;
    for (int64_t i = 0; i < passes; ++i) {
      table.probe_read(buffer.data() + begin * kUnit, static_cast<size_t>((end - begin) * kUnit));
    }
    return (end - begin) * kUnit * passes;
  };
  return Slices(checked_threads(threads), milliseconds, read).best();
}

}  // namespace

void bind_probes(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  m.def("probe_int8", &probe_int8, p("isa") = "", p("milliseconds") = 50, p("threads") = 1, py::kw_only(),
        p("bounded_pairs") = false);
  m.def("probe_f32", &probe_f32, p("isa") = "", p("milliseconds") = 50, p("threads") = 1);
  m.def("probe_bandwidth", &probe_bandwidth, p("milliseconds") = 500, p("bytes") = 256 << 20, p("threads") = 1);
}

}  // namespace pocketformer::bindings
