// A convolution of each channel by itself, in fp32: nine numbers a channel are too few to share a scale.
#pragma once

#include <algorithm>

#include "runtime/operators/linear.h"
#include "runtime/operators/windows.h"
#include "runtime/operators/zero_row.h"
#include "runtime/worker.h"

namespace pocketformer {

class DepthwiseStep final : public Step {
 public:
  static constexpr int kMaxTaps = 64;

  DepthwiseStep(Operand in, Operand out, const Windows& windows, const float* weight, const float* bias,
                Activation activation)
      : Step("depthwise", Split::kRepeat),
        in_(in),
        out_(out),
        w_(windows),
        weight_(weight),
        bias_(bias),
        activation_(activation),
        outside_(in.width) {}

  void run(const Worker& w) const override {
    constexpr int kRows = DepthwiseArgs::kRows;
    const float* x[kMaxTaps * kRows];
    const Pixels grid(w, in_);
    Windows::Corner corner = w_.corner(w.begin());
    for (int row = w.begin(); row < w.end(); row += kRows) {
      const int rows = std::min(kRows, w.end() - row);
      for (int i = 0; i < kRows; ++i) {
        find_taps(grid, corner, x + i);
        if (i + 1 < rows) corner = w_.after(corner);
      }
      corner = w_.after(corner);
      if (row + kRows < w.end()) fetch(grid, corner);
      w.kernels().depthwise({.x = x,
                             .weight = weight_,
                             .bias = bias_,
                             .out = w.at(out_, row),
                             .ldo = w.ld(out_),
                             .taps = w_.height * w_.width,
                             .columns = static_cast<int>(padded(in_.width)),
                             .rows = rows});
    }
    if (activation_ == Activation::kNone) return;
    float* const out = w.at(out_, w.begin());  // every activation of 0 is 0, and so is the padding's
    w.kernels().activate({out, out, static_cast<size_t>(w.rows()) * w.ld(out_), activation_});
  }

  Work work() const override {
    const double taps = w_.height * w_.width, width = out_.width;
    return {.multiply_adds = taps * width,
            .weight_bytes = static_cast<size_t>(taps) * static_cast<size_t>(padded(in_.width)) * sizeof(float),
            .elements = width,
            .activated = activation_ == Activation::kNone ? 0.0 : width};
  }

 private:
  // x[tap · kRows] ← the pixels under the window that begins at `corner`.
  void find_taps(const Pixels& grid, const Windows::Corner& corner, const float** x) const {
    for (int i = corner.top; i < corner.top + w_.height; ++i) {
      const float* const line = i >= 0 && i < w_.from_height ? grid.at(w_.row(corner.image, i, 0)) : nullptr;
      for (int j = corner.left; j < corner.left + w_.width; ++j, x += DepthwiseArgs::kRows) {
        const bool held = line != nullptr && j >= 0 && j < w_.from_width;
        *x = held ? line + static_cast<size_t>(j) * grid.ld : outside_.data();
      }
    }
  }

  // The pixels that the windows from `corner` on are the first to see, which a large map has in a far cache: the
  // processor does not foresee them, since a window's pixels lie in many places.
  void fetch(const Pixels& grid, const Windows::Corner& corner) const {
    const int bottom = std::min(corner.top + w_.height, w_.from_height);
    const int first = std::max(corner.left, 0);
    const int last = std::min(corner.left + w_.width + (DepthwiseArgs::kRows - 1) * w_.stride, w_.from_width);
    for (int i = std::max(bottom - w_.stride, 0); i < bottom; ++i) {
      const float* const begin = grid.at(w_.row(corner.image, i, first));
      const float* const end = begin + static_cast<size_t>(std::max(last - first, 0)) * grid.ld;
      for (const float* p = begin; p < end; p += kAlignment / sizeof(float)) __builtin_prefetch(p);
    }
  }

  Operand in_, out_;
  Windows w_;
  const float* weight_;
  const float* bias_;
  Activation activation_;
  ZeroRow outside_;
};

struct Depthwise {
  std::string in, out, domain, weight, bias;
  int64_t height = 0, width = 0, stride = 1, padding = 0;
  Activation activation = Activation::kNone;

  static constexpr const char* kName = "depthwise";
  static constexpr const char* kDoc =
      "`out = activation(Σ pixel · weight + bias)` over the pixels of windows of the grid `in`, each channel by "
      "itself; in float32, pixel after pixel, fused";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Depthwise::in, "rows of a grid"),
        name("out", &Depthwise::out, "likewise, of as many columns"),
        name("domain", &Depthwise::domain, "of the windows: a grid, which may be that of `in`"),
        name("weight", &Depthwise::weight, "tensor f32 [height · width, columns up to 16s], line by line"),
        optional_name("bias", &Depthwise::bias, "tensor f32, one entry a channel"),
        optional_choice("activation", &Depthwise::activation, Linear::kActivations, "of each number"),
        integer("height", &Depthwise::height, 1, 8, "lines of a window"),
        integer("width", &Depthwise::width, 1, 8, "pixels of a line"),
        optional_integer("stride", &Depthwise::stride, 1, 1 << 10, "from window to window"),
        optional_integer("padding", &Depthwise::padding, 0, 1 << 10, "pixels of zeros around the grid")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const Windows over = windows(l, in, from, domain, height, width, stride, padding);
    const int made = l.grid("domain", domain);
    const int64_t columns = from.rows.width;
    const float* taps = l.tensors().take_floats(l.place(), weight, {height * width, padded(columns)});
    const float* shift = l.optional_vector(bias, columns);
    if (!l.in_band(from.rows)) l.enter_to_gather(made, from.rows);
    const Operand to = l.write(out, made, columns);
    l.emit<DepthwiseStep>(l.gather(from.rows), to, over, taps, shift, activation);
  }
};

}  // namespace pocketformer
