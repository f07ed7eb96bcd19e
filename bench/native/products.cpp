// int8 products: ours and oneDNN's in turn, beside the peak probed in the same moments. One JSON object a line.
//   products THREADS ROUNDS SECONDS MxNxK...
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "core/aligned_buffer.h"
#include "core/cpus.h"
#include "core/dispatch.h"
#include "core/thread_pool.h"
#include "runtime/planner.h"
#include "timing.h"
#ifdef POCKETFORMER_ONEDNN
#include "onednn.h"
#endif

namespace pocketformer {
namespace {

// One layer's product as the runtime calls it: rows in blocks, or with few rows a share of the panels for each thread.
class Product {
 public:
  Product(int m, int n, int k, int threads)
      : m_(m), n_(n), k_(k), threads_(threads), block_(block(m, n, k, threads)), lda_(round_up(k, 64)) {
    const size_t panels = round_up(n, kLanes) / kLanes, groups = (static_cast<size_t>(k) + 3) / 4;
    a_.reserve(static_cast<size_t>(m) * lda_);
    weight_.reserve(panels * groups * 64);
    for (size_t i = 0; i < static_cast<size_t>(m) * lda_; ++i) a_.data()[i] = static_cast<std::byte>(i * 31 % 255 + 1);
    for (size_t i = 0; i < panels * groups * 64; ++i)
      weight_.data()[i] = static_cast<std::byte>(static_cast<int8_t>(static_cast<int>(i * 7919 % 255) - 127));
    scales_.reserve((static_cast<size_t>(m) + 2 * panels * kLanes) * sizeof(float));
    std::memset(scales_.data(), 0, scales_.size());
    out_.reserve(static_cast<size_t>(m) * panels * kLanes * sizeof(float));
  }

  void operator()() { ThreadPool::instance().run(threads_, job, this); }

 private:
  static int block(size_t m, size_t n, size_t k, size_t threads) {
    return static_cast<int>(block_rows(m, threads, 2 * n * k <= largest_cache()));
  }

  static void job(void* context, int thread, int threads, Barrier& barrier) {
    const auto& self = *static_cast<const Product*>(context);
    const int panels = (self.n_ + kLanes - 1) / kLanes, blocks = (self.m_ + self.block_ - 1) / self.block_;
    if (blocks >= threads) {
      for (int b = blocks * thread / threads; b < blocks * (thread + 1) / threads; ++b) {
        self.rows(b * self.block_, std::min(self.m_, (b + 1) * self.block_), 0, panels);
      }
    } else {
      const int pairs = (panels + 1) / 2;
      self.rows(0, self.m_, std::min(panels, pairs * thread / threads * 2),
                std::min(panels, pairs * (thread + 1) / threads * 2));
    }
    barrier.wait([] {});
  }

  void rows(int begin, int end, int panel_begin, int panel_end) const {
    const auto* scales = reinterpret_cast<const float*>(scales_.data());
    const size_t ldo = round_up(static_cast<size_t>(n_), kLanes);
    table_.gemm[static_cast<int>(Format::kI8)](
        {.x = reinterpret_cast<const uint8_t*>(a_.data()) + static_cast<size_t>(begin) * lda_,
         .ldx = lda_,
         .x_scale = scales + 2 * ldo,
         .weight = {.format = Format::kI8,
                    .panels = weight_.data(),
                    .scale = scales,
                    .colsum = reinterpret_cast<const int32_t*>(scales + ldo),
                    .n = n_,
                    .k = k_},
         .out = reinterpret_cast<float*>(out_.data()) + static_cast<size_t>(begin) * ldo,
         .ldo = ldo,
         .m = end - begin,
         .panel_begin = panel_begin,
         .panel_end = panel_end});
  }

  const KernelTable& table_ = kernels();
  const int m_, n_, k_, threads_, block_;
  const size_t lda_;
  AlignedBuffer a_, weight_, scales_;
  mutable AlignedBuffer out_;
};

// Multiply-adds a second of the bare instruction on all threads at once, in a slice of a fraction of a millisecond.
double peak(int threads) {
  struct Probe {
    std::vector<double> units;
  } probe{std::vector<double>(static_cast<size_t>(threads))};
  const auto job = [](void* context, int thread, int, Barrier& barrier) {
    static_cast<Probe*>(context)->units[static_cast<size_t>(thread)] =
        static_cast<double>(kernels().probe_dot4(20'000));
    barrier.wait([] {});
  };
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    const auto start = Clock::now();
    ThreadPool::instance().run(threads, job, &probe);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    double units = 0;
    for (const double part : probe.units) units += part;
    best = std::max(best, units / seconds);
  }
  return best;
}

void measure(int m, int n, int k, int threads, int rounds, double seconds) {
  Product ours(m, n, k, threads);
  std::vector<double> peaks, times, theirs;
#ifdef POCKETFORMER_ONEDNN
  OneDnnProduct onednn(m, n, k);
#endif
  for (int round = 0; round < rounds; ++round) {
    peaks.push_back(peak(threads));
    times.push_back(median_seconds(seconds, threads, ours));
#ifdef POCKETFORMER_ONEDNN
    theirs.push_back(median_seconds(seconds, threads, onednn));
    // Its threads spin on; ours would share a core with one.
    if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(100));
#endif
  }
  std::printf("{\"m\": %d, \"n\": %d, \"k\": %d, \"threads\": %d, \"isa\": \"%s\"", m, n, k, threads, kernels().isa);
  print_list("peak", peaks);
  print_list("pocketformer", times);
#ifdef POCKETFORMER_ONEDNN
  print_list("onednn", theirs);
  std::printf(", \"onednn_implementation\": \"%s\"", onednn.implementation().c_str());
#endif
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace pocketformer

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s THREADS ROUNDS SECONDS MxNxK...\n", argv[0]);
    return 2;
  }
  for (int i = 4; i < argc; ++i) {
    int m, n, k;
    if (std::sscanf(argv[i], "%dx%dx%d", &m, &n, &k) != 3 || std::min({m, n, k}) < 1) {
      std::fprintf(stderr, "%s is not a shape; write MxNxK\n", argv[i]);
      return 2;
    }
    pocketformer::measure(m, n, k, std::atoi(argv[1]), std::atoi(argv[2]), std::atof(argv[3]));
  }
}
