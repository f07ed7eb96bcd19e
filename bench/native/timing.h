// Samples of a call, and JSON.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <vector>

using Clock = std::chrono::steady_clock;

// Seconds on this thread's own clock, which stands while a neighbour has the core, or on the wall's.
inline double now(bool thread_clock) {
  timespec t{};
  clock_gettime(thread_clock ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Median seconds of a call: one that is not counted, then at least three and `seconds` in total. Short calls are timed
// several together, because reading a clock takes up to 2 µs.
template <typename Call>
double median_seconds(double seconds, int threads, Call&& call) {
  call();
  const double begin = now(false);
  call();
  const int together = std::max(1, static_cast<int>(200e-6 / (now(false) - begin)));
  std::vector<double> times;
  for (double total = 0; total < seconds || times.size() < 3;) {
    const double start = now(threads == 1);
    for (int i = 0; i < together; ++i) call();
    const double spent = now(threads == 1) - start;
    times.push_back(spent / together);
    total += spent;
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

inline void print_list(const char* name, const std::vector<double>& values) {
  std::printf(", \"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.9g", i == 0 ? "" : ", ", values[i]);
  std::printf("]");
}
