// Where windows lie that move over a grid.
#pragma once

namespace pocketformer {

// Pixels of `height` × `width`, every `stride`, over a grid with `padding` pixels around it.
struct Windows {
  int from_height, from_width, to_height, to_width;
  int height, width, stride, padding;

  // Where the window of row `row` of the results begins; negative within the padding.
  struct Corner {
    int image, top, left;
  };
  Corner corner(int row) const {
    const int windows = to_height * to_width, at = row % windows;
    return {row / windows, at / to_width * stride - padding, at % to_width * stride - padding};
  }
  // Where the window of the next row begins: without the divisions.
  Corner after(Corner c) const {
    c.left += stride;
    if (c.left < to_width * stride - padding) return c;
    c.left = -padding, c.top += stride;
    if (c.top < to_height * stride - padding) return c;
    return {c.image + 1, -padding, -padding};
  }
  // Row of the grid of a pixel within it.
  int row(int image, int y, int x) const { return (image * from_height + y) * from_width + x; }
};

}  // namespace pocketformer
