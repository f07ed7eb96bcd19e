// A grid at another size, between the four nearest pixels of each.
#pragma once

#include <algorithm>

#include "runtime/operators/windows.h"
#include "runtime/worker.h"

namespace pocketformer {

class ResizeStep final : public Step {
 public:
  struct Size {
    int height, width;
  };

  ResizeStep(Operand in, Operand out, Size from, Size to)
      : Step("resize", Split::kRepeat), in_(in), out_(out), from_(from), to_(to) {}

  void run(const Worker& w) const override {
    const int pixels = to_.height * to_.width;
    for (int row = w.begin(); row < w.end(); ++row) {
      const int first = row / pixels * from_.height * from_.width, at = row % pixels;
      const Between y(at / to_.width, from_.height, to_.height), x(at % to_.width, from_.width, to_.width);
      const auto pixel = [&](int line, int column) { return w.at(in_, first + line * from_.width + column); };
      const float *const a = pixel(y.low, x.low), *const b = pixel(y.low, x.high);
      const float *const c = pixel(y.high, x.low), *const d = pixel(y.high, x.high);
      float* const out = w.at(out_, row);
      for (int i = 0; i < out_.width; ++i) {
        const float upper = (1 - x.share) * a[i] + x.share * b[i], lower = (1 - x.share) * c[i] + x.share * d[i];
        out[i] = (1 - y.share) * upper + y.share * lower;
      }
      const size_t used = static_cast<size_t>(out_.width);
      std::memset(out + used, 0, (w.ld(out_) - used) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = 4.0 * out_.width}; }

 private:
  // The pixels on both sides of one of the result, whose middles lie at half integers, and how near the second is.
  struct Between {
    Between(int at, int from, int to) {
      const float place = (static_cast<float>(at) + 0.5f) * (static_cast<float>(from) / static_cast<float>(to)) - 0.5f;
      const float inside = std::max(place, 0.0f);
      low = std::min(static_cast<int>(inside), from - 1);
      high = std::min(low + 1, from - 1);
      share = inside - static_cast<float>(low);
    }
    int low, high;
    float share;
  };

  Operand in_, out_;
  Size from_, to_;
};

struct Resize {
  std::string in, out, domain;

  static constexpr const char* kName = "resize";
  static constexpr const char* kDoc =
      "`out` = the grid `in` at another size, bilinear: pixels' middles lie at half integers, and beyond the "
      "border the border counts again";
  static constexpr auto fields() {
    return std::tuple{name("in", &Resize::in, "rows of a grid"), name("out", &Resize::out, "rows of another"),
                      name("domain", &Resize::domain, "of the result: a grid")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const Domain& grid = grid_of(l, in, from);
    const int made = l.grid("domain", domain);
    const Domain& to = l.program().domains[static_cast<size_t>(made)];
    const auto size = [](const Domain& d) {
      return ResizeStep::Size{static_cast<int>(d.height), static_cast<int>(d.width)};
    };
    l.enter_to_gather(made, from.rows);
    const Operand out_rows = l.write(out, made, from.rows.width);
    l.emit<ResizeStep>(l.gather(from.rows), out_rows, size(grid), size(to));
  }
};

}  // namespace pocketformer
