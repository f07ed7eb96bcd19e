// Which keys the queries of a block of rows see where attention is block-sparse (BigBird, arXiv 2007.14062).
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/table.h"

namespace pocketformer {

struct BlockPattern {
  static constexpr int kSpans = 3;

  int64_t size = 0;     // rows of a block, or 0: there is no such pattern
  int64_t window = 0;   // blocks seen on each side of a query's own
  int64_t globals = 0;  // first blocks, and as many last ones, that all see and that see all
  int64_t repeats = 0;  // how many times more the first ones count to the queries of other blocks than these
  int64_t dense = 0;    // a sequence of at most so many rows is seen whole instead

  bool holds(int64_t length) const { return size != 0 && length > dense; }

  // What the queries of block `block` see of a sequence of `length` rows, in ascending order; returns how many spans.
  int spans(int64_t block, int64_t length, KeySpan* to) const {
    const int64_t blocks = (length + size - 1) / size, last = std::max(blocks - globals, globals);
    int count = 0;
    const auto take = [&](int64_t begin, int64_t end, int64_t times) {
      begin = std::min(begin, blocks) * size, end = std::min(end * size, length);
      if (begin < end) to[count++] = {static_cast<int>(begin), static_cast<int>(end), static_cast<int>(times)};
    };
    if (block < globals || block >= last) {
      take(0, blocks, 1);
    } else {
      take(0, globals, 1 + repeats);
      take(std::max(block - window, globals), std::min(block + window + 1, last), 1);
      take(last, blocks, 1);
    }
    return count;
  }
};

}  // namespace pocketformer
