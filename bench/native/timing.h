// Samples of a call, and JSON.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

using Clock = std::chrono::steady_clock;

// Median seconds of a call: one that is not counted, then at least three and `seconds` in total.
template <typename Call>
double median_seconds(double seconds, Call&& call) {
  call();
  std::vector<double> times;
  for (double total = 0; total < seconds || times.size() < 3;) {
    const auto start = Clock::now();
    call();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += times.back();
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
