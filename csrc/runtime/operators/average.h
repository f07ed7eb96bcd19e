// Means of windows of a grid: average pooling, and the mixer of tokens that is one (Yu et al., arXiv 2111.11418).
#pragma once

#include "runtime/operators/windows.h"
#include "runtime/worker.h"

namespace pocketformer {

class AverageStep final : public Step {
 public:
  AverageStep(Operand in, Operand out, const Windows& windows, const float* weight)
      : Step("average", Split::kRepeat), in_(in), out_(out), w_(windows), weight_(weight) {}

  void run(const Worker& w) const override {
    const Pixels grid(w, in_);
    Windows::Corner corner = w_.corner(w.begin());
    for (int row = w.begin(); row < w.end(); ++row, corner = w_.after(corner)) {
      float* const out = w.at(out_, row);
      std::memset(out, 0, w.row_bytes(out_));
      const int count = add(grid, corner, out);
      const float share = 1.0f / static_cast<float>(count);
      each([&](int c, auto as) { put(out + c, get(out + c, as) * share); });
      if (weight_ == nullptr) continue;
      const float* const own = w.at(in_, row);
      each([&](int c, auto as) {
        const auto pixel = get(own + c, as);
        put(out + c, pixel + get(weight_ + c, as) * (get(out + c, as) - pixel));
      });
    }
  }

  Work work() const override { return {.elements = static_cast<double>(w_.height * w_.width) * out_.width}; }

 private:
  typedef float Four __attribute__((vector_size(16)));

  // fn(column, its type) for all columns, four at a time, as every CPU's vectors hold: of units that are made for size
  // g++ makes no vectors by itself.
  template <class Fn>
  void each(Fn fn) const {
    int c = 0;
    for (; c + 4 <= out_.width; c += 4) fn(c, Four{});
    for (; c < out_.width; ++c) fn(c, 0.0f);
  }
  template <class T>
  static T get(const float* p, T x) {
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  template <class T>
  static void put(float* p, T x) {
    std::memcpy(p, &x, sizeof(x));
  }

  // Adds the pixels of a window, and says how many there are.
  int add(const Pixels& grid, const Windows::Corner& corner, float* out) const {
    int count = 0;
    for (int y = corner.top; y < corner.top + w_.height; ++y) {
      for (int x = corner.left; x < corner.left + w_.width; ++x) {
        if (!w_.holds(y, x)) continue;
        const float* const pixel = grid.at(w_.row(corner.image, y, x));
        each([&](int c, auto as) { put(out + c, get(out + c, as) + get(pixel + c, as)); });
        ++count;
      }
    }
    return count;
  }

  Operand in_, out_;
  Windows w_;
  const float* weight_;
};

struct Average {
  std::string in, out, domain, weight;
  int64_t height = 0, width = 0, stride = 1, padding = 0;

  static constexpr const char* kName = "average";
  static constexpr const char* kDoc =
      "`out` = the means of windows of the grid `in`, of the pixels that lie within it; with a `weight`, "
      "`out = in + weight · (mean − in)`";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Average::in, "rows of a grid"),
        name("out", &Average::out, "rows of their width"),
        name("domain", &Average::domain, "of the windows: a grid, which may be that of `in`"),
        integer("height", &Average::height, 1, 1 << 10, "lines of a window"),
        integer("width", &Average::width, 1, 1 << 10, "pixels of a line"),
        optional_integer("stride", &Average::stride, 1, 1 << 10, "from window to window"),
        optional_integer("padding", &Average::padding, 0, 1 << 10, "pixels around the grid, less than a window"),
        optional_name("weight", &Average::weight, "tensor f32 [columns up to 16s], where `domain` is that of `in`")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    l.check(padding < height && padding < width, "padding", "is ", padding, "; windows of ", height, " × ", width,
            " would lie outside of the grid");
    const Windows over = windows(l, in, from, domain, height, width, stride, padding);
    const int made = l.grid("domain", domain);
    l.check(weight.empty() || made == from.domain, "weight", "is '", weight, "', but '", domain,
            "' is another grid than that of '", in, "'");
    const float* const factors = l.optional_vector(weight, from.rows.width);
    l.enter_to_gather(made, from.rows);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<AverageStep>(l.gather(from.rows), to, over, factors);
  }
};

}  // namespace pocketformer
