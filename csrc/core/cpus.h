// The CPUs this process may use, how strong they are, and how many threads a call gets that names no number.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pocketformer {

struct Cpu {
  int id;
  int core;         // the lowest id among the hardware threads of its core
  double strength;  // relative to the others; 1 where the machine tells nothing
  bool chosen;      // a thread is started for it
};

struct Cpus {
  std::vector<Cpu> list;  // online and in the affinity mask, by id
  const char* measure;    // what strength is made of: "capacity", "frequency" or "none"
  int quota;              // CPUs that the control groups grant; 0 without a limit
  int threads;            // chosen CPUs, limited by the quota
};

// `root` is prepended to the /proc and /sys paths; an empty `allowed` takes the affinity mask.
//
// A job is divided evenly, so `n` threads are as fast as `n` times their weakest CPU. Of each core one hardware thread
// is taken (the others would share its vector units), and of the cores that are at least half as strong as the
// strongest those, strongest first, that make this product largest: the big cluster of a big.LITTLE pair, all cores of
// like ones.
Cpus read_cpus(const std::string& root = "", std::vector<int> allowed = {});

// Bytes of the largest data cache of the first CPU that this process may use; 0 where the machine does not tell.
size_t largest_cache(const std::string& root = "");

// POCKETFORMER_THREADS or read_cpus().threads. Throws std::invalid_argument when the variable is no number of threads.
int default_threads();

}  // namespace pocketformer
