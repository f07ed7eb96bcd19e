// Means of windows of a grid: average pooling, and the mixer of tokens that is one (Yu et al., arXiv 2111.11418).
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

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
      const Seen seen = see(grid, corner);
      const float* const own = weight_ == nullptr ? nullptr : w.at(in_, row);
      int c = 0;
      for (; c + 16 <= out_.width; c += 16) mean<Four>(seen, own, c, out, std::make_integer_sequence<int, 4>{});
      for (; c + 4 <= out_.width; c += 4) mean<Four>(seen, own, c, out, std::make_integer_sequence<int, 1>{});
      for (; c < out_.width; ++c) mean<float>(seen, own, c, out, std::make_integer_sequence<int, 1>{});
      std::memset(out + c, 0, w.row_bytes(out_) - static_cast<size_t>(c) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = static_cast<double>(w_.height * w_.width) * out_.width}; }

 private:
  // As every CPU's vectors hold: of units that are made for size g++ makes no vectors by itself.
  typedef float Four __attribute__((vector_size(16)));

  // The pixels of a window that lie in the grid.
  struct Seen {
    const float* first;
    int lines, pixels;       // of each line
    size_t line_step, step;  // floats from one to the next
  };

  Seen see(const Pixels& grid, const Windows::Corner& corner) const {
    const int top = std::max(corner.top, 0), left = std::max(corner.left, 0);
    return {.first = grid.at(w_.row(corner.image, top, left)),
            .lines = std::min(corner.top + w_.height, w_.from_height) - top,
            .pixels = std::min(corner.left + w_.width, w_.from_width) - left,
            .line_step = static_cast<size_t>(w_.from_width) * grid.ld,
            .step = grid.ld};
  }

  template <class T>
  static T get(const float* p) {
    T x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }

  // As many numbers of T from column c on as there are I: their sums in registers, pixel after pixel. With loops over
  // them g++ 12 keeps the sums in memory.
  template <class T, int... I>
  void mean(const Seen& seen, const float* own, int c, float* out, std::integer_sequence<int, I...>) const {
    constexpr int kStep = sizeof(T) / sizeof(float);
    T sum[sizeof...(I)] = {};
    const float* line = seen.first + c;
    for (int y = 0; y < seen.lines; ++y, line += seen.line_step) {
      const float* pixel = line;
      for (int x = 0; x < seen.pixels; ++x, pixel += seen.step) {
        ((sum[I] += get<T>(pixel + I * kStep)), ...);
      }
    }
    const float share = 1.0f / static_cast<float>(seen.lines * seen.pixels);
    const auto finish = [&](T y, int at) {
      y *= share;
      if (own != nullptr) {
        const T pixel = get<T>(own + at);
        y = pixel + get<T>(weight_ + at) * (y - pixel);
      }
      std::memcpy(out + at, &y, sizeof(y));
    };
    (finish(sum[I], c + I * kStep), ...);
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
