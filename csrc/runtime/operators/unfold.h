// Windows of a grid as rows: a convolution or a patch embedding is this and a product. The windows of a block of rows
// are scratch; they are never all in memory.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class UnfoldStep final : public Step {
 public:
  struct Shape {
    int from_height, from_width, to_height, to_width;
    int height, width, stride, padding, channels;
  };

  UnfoldStep(Operand in, Operand out, const Shape& shape)
      : Step("unfold", Split::kRepeat), in_(in), out_(out), s_(shape) {}

  void run(const Worker& w) const override {
    const size_t used = static_cast<size_t>(out_.width), whole = w.ld(out_);
    for (int row = w.begin(); row < w.end(); ++row) {
      const int windows = s_.to_height * s_.to_width, image = row / windows, at = row % windows;
      const int top = at / s_.to_width * s_.stride - s_.padding, left = at % s_.to_width * s_.stride - s_.padding;
      float* out = w.at(out_, row);
      for (int y = top; y < top + s_.height; ++y, out += s_.width * s_.channels) {
        copy_line(w, image, y, left, out);
      }
      std::memset(w.at(out_, row) + used, 0, (whole - used) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  // The pixels [left, left + width) of line y; zeros outside of the grid.
  void copy_line(const Worker& w, int image, int y, int left, float* out) const {
    const size_t channels = static_cast<size_t>(s_.channels);
    const int first = std::clamp(-left, 0, s_.width), last = std::clamp(s_.from_width - left, first, s_.width);
    if (y < 0 || y >= s_.from_height) {
      std::memset(out, 0, static_cast<size_t>(s_.width) * channels * sizeof(float));
      return;
    }
    std::memset(out, 0, static_cast<size_t>(first) * channels * sizeof(float));
    const int row = (image * s_.from_height + y) * s_.from_width + left;
    if (w.ld(in_) == channels && first < last) {
      std::memcpy(out + static_cast<size_t>(first) * channels, w.at(in_, row + first),
                  static_cast<size_t>(last - first) * channels * sizeof(float));
    } else {
      for (int x = first; x < last; ++x) {
        std::memcpy(out + static_cast<size_t>(x) * channels, w.at(in_, row + x), channels * sizeof(float));
      }
    }
    std::memset(out + static_cast<size_t>(last) * channels, 0,
                static_cast<size_t>(s_.width - last) * channels * sizeof(float));
  }

  Operand in_, out_;
  Shape s_;
};

struct Unfold {
  std::string in, out, domain;
  int64_t height = 0, width = 0, stride = 1, padding = 0;

  static constexpr const char* kName = "unfold";
  static constexpr const char* kDoc = "`out` = windows of the grid `in`, line by line, pixel by pixel, channels last";
  static constexpr auto fields() {
    return std::tuple{name("in", &Unfold::in, "rows of a grid"),
                      name("out", &Unfold::out, "height · width · channels columns"),
                      name("domain", &Unfold::domain, "of the windows: a grid made from that of `in`"),
                      integer("height", &Unfold::height, 1, 1 << 10, "lines of a window"),
                      integer("width", &Unfold::width, 1, 1 << 10, "pixels of a line"),
                      optional_integer("stride", &Unfold::stride, 1, 1 << 10, "from window to window"),
                      optional_integer("padding", &Unfold::padding, 0, 1 << 10, "pixels of zeros around the grid")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const Domain& grid = l.domain_of(from);
    l.check(grid.kind == DomainKind::kGrid, "in", "names '", in, "', whose rows are no grid");
    const int made = l.made_domain("domain", domain, from, DomainKind::kGrid);
    const Domain& windows = l.program().domains[static_cast<size_t>(made)];
    const int64_t down = grid.height + 2 * padding - height, across = grid.width + 2 * padding - width;
    l.check(down >= 0 && across >= 0 && windows.height == down / stride + 1 && windows.width == across / stride + 1,
            "domain", "is '", domain, "' of ", windows.height, " × ", windows.width,
            "; it has another size than the windows of ", grid.height, " × ", grid.width);
    const UnfoldStep::Shape shape{.from_height = static_cast<int>(grid.height),
                                  .from_width = static_cast<int>(grid.width),
                                  .to_height = static_cast<int>(windows.height),
                                  .to_width = static_cast<int>(windows.width),
                                  .height = static_cast<int>(height),
                                  .width = static_cast<int>(width),
                                  .stride = static_cast<int>(stride),
                                  .padding = static_cast<int>(padding),
                                  .channels = from.rows.width};
    l.begin_stage(made);
    const Operand to = l.write(out, made, height * width * from.rows.width);
    l.emit<UnfoldStep>(l.gather(from.rows), to, shape);
  }
};

}  // namespace pocketformer
