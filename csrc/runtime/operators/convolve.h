// A convolution of each channel by itself along its sequence, in fp32.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/operators/zero_row.h"
#include "runtime/worker.h"

namespace pocketformer {

class ConvolveStep final : public Step {
 public:
  static constexpr int kMaxTaps = 255;

  ConvolveStep(int domain, Operand in, Operand residual, Operand out, const float* weight, int taps)
      : Step("convolve", Split::kRows),
        domain_(domain),
        in_(in),
        residual_(residual),
        out_(out),
        weight_(weight),
        taps_(taps),
        outside_(in.width) {}

  void run(const Worker& w) const override {
    constexpr int kRows = DepthwiseArgs::kRows;
    const float* x[kMaxTaps * kRows];
    w.for_each_piece(domain_, [&](int sequence, int row, int count) {
      const int first = static_cast<int>(w.offsets(domain_)[sequence]), last = first + w.length(domain_, sequence);
      for (int i = row; i < row + count; i += kRows) {
        const int rows = std::min(kRows, row + count - i);
        for (int tap = 0; tap < taps_ * kRows; ++tap) {
          const int at = i + std::min(tap % kRows, rows - 1) + tap / kRows - taps_ / 2;
          x[tap] = at < first || at >= last ? outside_.data() : w.at(in_, at);
        }
        w.kernels().depthwise({.x = x,
                               .weight = weight_,
                               .bias = nullptr,
                               .out = w.at(out_, i),
                               .ldo = w.ld(out_),
                               .taps = taps_,
                               .columns = static_cast<int>(padded(in_.width)),
                               .rows = rows});
      }
    });
    for (int row = w.begin(); residual_ && row < w.end(); ++row) {
      const float* const added = w.at(residual_, row);
      float* const out = w.at(out_, row);
      for (int c = 0; c < out_.width; ++c) out[c] += added[c];
    }
  }

  Work work() const override {
    const double width = out_.width;
    return {.multiply_adds = taps_ * width,
            .weight_bytes = static_cast<size_t>(taps_) * static_cast<size_t>(padded(in_.width)) * sizeof(float),
            .elements = width};
  }

 private:
  int domain_;
  Operand in_, residual_, out_;
  const float* weight_;
  int taps_;
  ZeroRow outside_;
};

struct Convolve {
  std::string in, out, weight, residual;
  int64_t taps = 0;

  static constexpr const char* kName = "convolve";
  static constexpr const char* kDoc =
      "`out[i] = Σ_t in[i + t − (taps − 1) / 2] · weight[t] + residual[i]` within each sequence, each channel by "
      "itself and "
      "zeros beyond the ends; in float32, tap after tap, fused";
  static constexpr auto fields() {
    return std::tuple{name("in", &Convolve::in, "rows of sequences"),
                      name("out", &Convolve::out, "likewise, of as many columns"),
                      name("weight", &Convolve::weight, "tensor f32 [taps, columns up to 16s]"),
                      integer("taps", &Convolve::taps, 1, ConvolveStep::kMaxTaps, "rows under a window; odd"),
                      optional_name("residual", &Convolve::residual, "rows that are added last")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int width = from.rows.width;
    l.check(l.domain_of(from).has_offsets(), "in", "names '", in, "', whose rows are of no sequences");
    l.check(taps % 2 == 1, "taps", "is ", taps, "; it must be odd");
    Operand added{};
    if (!residual.empty()) {
      const Value other = l.floats("residual", residual);
      l.same_shape("residual", residual, other, from.domain, width);
      added = other.rows;
    }
    const float* const stored = l.tensors().take_floats(l.place(), weight, {taps, padded(width)});
    l.enter_to_gather(from.domain, from.rows);
    const Operand read = l.read(added), gathered = l.gather(from.rows);
    const Operand to = l.write(out, from.domain, width);
    l.emit<ConvolveStep>(from.domain, gathered, read, to, stored, static_cast<int>(taps));
  }
};

}  // namespace pocketformer
