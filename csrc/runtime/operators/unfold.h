// Windows of a grid as rows: a convolution or a patch embedding is this and a product. The windows of a block of rows
// are scratch; they are never all in memory.
#pragma once

#include <algorithm>

#include "runtime/operators/windows.h"
#include "runtime/worker.h"

namespace pocketformer {

class UnfoldStep final : public Step {
 public:
  UnfoldStep(Operand in, Operand out, const Windows& windows)
      : Step("unfold", Split::kRepeat), in_(in), out_(out), w_(windows) {}

  void run(const Worker& w) const override {
    const size_t used = static_cast<size_t>(out_.width), whole = w.ld(out_);
    Windows::Corner corner = w_.corner(w.begin());
    for (int row = w.begin(); row < w.end(); ++row, corner = w_.after(corner)) {
      const auto [image, top, left] = corner;
      float* out = w.at(out_, row);
      for (int y = top; y < top + w_.height; ++y, out += w_.width * in_.width) copy_line(w, image, y, left, out);
      std::memset(w.at(out_, row) + used, 0, (whole - used) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  // The pixels [left, left + width) of line y; zeros outside of the grid.
  void copy_line(const Worker& w, int image, int y, int left, float* out) const {
    const size_t channels = static_cast<size_t>(in_.width);
    const int first = std::clamp(-left, 0, w_.width), last = std::clamp(w_.from_width - left, first, w_.width);
    if (y < 0 || y >= w_.from_height) {
      std::memset(out, 0, static_cast<size_t>(w_.width) * channels * sizeof(float));
      return;
    }
    std::memset(out, 0, static_cast<size_t>(first) * channels * sizeof(float));
    const int row = w_.row(image, y, left);
    if (w.ld(in_) == channels && first < last) {
      std::memcpy(out + static_cast<size_t>(first) * channels, w.at(in_, row + first),
                  static_cast<size_t>(last - first) * channels * sizeof(float));
    } else {
      for (int x = first; x < last; ++x) {
        std::memcpy(out + static_cast<size_t>(x) * channels, w.at(in_, row + x), channels * sizeof(float));
      }
    }
    std::memset(out + static_cast<size_t>(last) * channels, 0,
                static_cast<size_t>(w_.width - last) * channels * sizeof(float));
  }

  Operand in_, out_;
  Windows w_;
};

struct Unfold {
  std::string in, out, domain;
  int64_t height = 0, width = 0, stride = 1, padding = 0;

  static constexpr const char* kName = "unfold";
  static constexpr const char* kDoc = "`out` = windows of the grid `in`, line by line, pixel by pixel, channels last";
  static constexpr auto fields() {
    return std::tuple{name("in", &Unfold::in, "rows of a grid"),
                      name("out", &Unfold::out, "height · width · channels columns"),
                      name("domain", &Unfold::domain, "of the windows: a grid, which may be that of `in`"),
                      integer("height", &Unfold::height, 1, 1 << 10, "lines of a window"),
                      integer("width", &Unfold::width, 1, 1 << 10, "pixels of a line"),
                      optional_integer("stride", &Unfold::stride, 1, 1 << 10, "from window to window"),
                      optional_integer("padding", &Unfold::padding, 0, 1 << 10, "pixels of zeros around the grid")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const Windows over = windows(l, in, from, domain, height, width, stride, padding);
    const int made = l.grid("domain", domain);
    l.enter_to_gather(made, from.rows);
    const Operand to = l.write(out, made, height * width * from.rows.width);
    l.emit<UnfoldStep>(l.gather(from.rows), to, over);
  }
};

}  // namespace pocketformer
