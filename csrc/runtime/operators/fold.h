// The grid whose windows, side by side, are rows: what unfold takes apart, put together.
#pragma once

#include "runtime/operators/windows.h"
#include "runtime/worker.h"

namespace pocketformer {

class FoldStep final : public Step {
 public:
  FoldStep(Operand in, Operand out, const Windows& windows)
      : Step("fold", Split::kRepeat), in_(in), out_(out), w_(windows) {}

  void run(const Worker& w) const override {
    const int pixels = w_.from_height * w_.from_width, channels = out_.width;
    for (int row = w.begin(); row < w.end(); ++row) {
      const int image = row / pixels, y = row % pixels / w_.from_width, x = row % w_.from_width;
      const int window = (image * w_.to_height + y / w_.height) * w_.to_width + x / w_.width;
      const int place = y % w_.height * w_.width + x % w_.width;
      float* const out = w.at(out_, row);
      std::memcpy(out, w.at(in_, window) + place * channels, static_cast<size_t>(channels) * sizeof(float));
      std::memset(out + channels, 0, (w.ld(out_) - static_cast<size_t>(channels)) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  Operand in_, out_;
  Windows w_;  // of the result
};

struct Fold {
  std::string in, out, domain;
  int64_t height = 0, width = 0;

  static constexpr const char* kName = "fold";
  static constexpr const char* kDoc =
      "`out` = the grid that `unfold` makes `in` of, by windows that touch and do not overlap";
  static constexpr auto fields() {
    return std::tuple{name("in", &Fold::in, "rows of a grid, of height · width · channels columns"),
                      name("out", &Fold::out, "rows of channels"),
                      name("domain", &Fold::domain, "of the result: a grid height · width times as large"),
                      integer("height", &Fold::height, 1, 1 << 10, "lines of a window"),
                      integer("width", &Fold::width, 1, 1 << 10, "pixels of a line")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const Domain& grid = grid_of(l, in, from);
    const int made = l.grid("domain", domain);
    const Domain& to = l.program().domains[static_cast<size_t>(made)];
    l.check(to.height == grid.height * height && to.width == grid.width * width, "domain", "is '", domain, "' of ",
            to.height, " × ", to.width, "; ", grid.height, " × ", grid.width, " windows of ", height, " × ", width,
            " make another");
    l.check(from.rows.width % (height * width) == 0, "in", "names '", in, "' of ", from.rows.width,
            " columns, which are not those of ", height, " × ", width, " pixels");
    const auto narrow = [](int64_t n) { return static_cast<int>(n); };
    const Windows over{narrow(to.height), narrow(to.width), narrow(grid.height), narrow(grid.width),
                       narrow(height),    narrow(width),    narrow(height),      0};
    l.enter_to_gather(made, from.rows);
    const Operand out_rows = l.write(out, made, from.rows.width / (height * width));
    l.emit<FoldStep>(l.gather(from.rows), out_rows, over);
  }
};

}  // namespace pocketformer
