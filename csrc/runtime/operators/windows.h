// Windows that move over a grid, and the grid of their results: what convolutions, patches and pools of pixels share.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

// The rows of a grid, found once for all windows.
struct Pixels {
  Pixels(const Worker& w, const Operand& of) : first(w.at(of, 0)), ld(w.ld(of)), ring(w.ring(of)) {}
  const float* at(int row) const { return first + static_cast<size_t>(ring == 0 ? row : row % ring) * ld; }

  const float* first;
  size_t ld;
  int ring;
};

// The grid of `from`.
inline const Domain& grid_of(const Lowering& l, const std::string& name, const Value& from) {
  const Domain& grid = l.domain_of(from);
  l.check(grid.kind == DomainKind::kGrid, "in", "names '", name, "', whose rows are no grid");
  return grid;
}

// Checks that the grid `domain` is as large as the windows of `from`.
inline Windows windows(const Lowering& l, const std::string& in, const Value& from, const std::string& domain,
                       int64_t height, int64_t width, int64_t stride, int64_t padding) {
  const Domain& grid = grid_of(l, in, from);
  const Domain& made = l.program().domains[static_cast<size_t>(l.grid("domain", domain))];
  const int64_t down = grid.height + 2 * padding - height, across = grid.width + 2 * padding - width;
  l.check(down >= 0 && across >= 0 && made.height == down / stride + 1 && made.width == across / stride + 1, "domain",
          "is '", domain, "' of ", made.height, " × ", made.width, "; it has another size than the windows of ",
          grid.height, " × ", grid.width);
  const auto narrow = [](int64_t n) { return static_cast<int>(n); };
  return {narrow(grid.height), narrow(grid.width), narrow(made.height), narrow(made.width),
          narrow(height),      narrow(width),      narrow(stride),      narrow(padding)};
}

}  // namespace pocketformer
