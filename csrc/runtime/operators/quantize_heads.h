// Rows of heads to int8 with a scale for each head: queries, as int8 attention takes them.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class QuantizeHeadsStep final : public Step {
 public:
  QuantizeHeadsStep(Operand in, Operand q, Operand scale, int head_dim, int rotate)
      : Step("quantize_heads", Split::kRows), in_(in), q_(q), scale_(scale), head_dim_(head_dim), rotate_(rotate) {}

  void run(const Worker& w) const override {
    w.kernels().quantize_heads({.x = w.at(in_, w.begin()),
                                .ldx = w.ld(in_),
                                .rows = w.rows(),
                                .heads = scale_.width,
                                .head_dim = head_dim_,
                                .head_stride = static_cast<int>(padded(head_dim_)),
                                .rotate = rotate_,
                                .q = w.at<int8_t>(q_, w.begin()),
                                .scale = w.at(scale_, w.begin())});
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, q_, scale_;
  int head_dim_, rotate_;
};

struct QuantizeHeads {
  std::string in, out;
  int64_t head_dim = 0, rotate = 0;

  static constexpr const char* kName = "quantize_heads";
  static constexpr const char* kDoc = "`out = rne(rotate(in) / scale)` with a scale for each row and head";
  static constexpr auto fields() {
    return std::tuple{name("in", &QuantizeHeads::in, "rows of heads side by side"),
                      name("out", &QuantizeHeads::out, "int8 heads, for `attention` alone"),
                      integer("head_dim", &QuantizeHeads::head_dim, 1, kMaxHeadDim, "columns of a head"),
                      optional_integer("rotate", &QuantizeHeads::rotate, 0, 128, "Hadamard block; that of the state")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const int dim = static_cast<int>(head_dim), heads = from.rows.width / dim;
    l.check(heads * dim == from.rows.width, "head_dim", "is ", head_dim, ", which does not divide the ",
            from.rows.width, " columns of '", in, "'");
    l.check((rotate & (rotate - 1)) == 0 && (rotate == 0 || head_dim % rotate == 0), "rotate", "is ", rotate,
            "; it must be 0 or a power of two that divides head_dim");
    l.enter(from.domain);
    const int row = heads * static_cast<int>(padded(head_dim));
    Value to{l.scratch(from.domain, row, row, 1), from.domain, {}, dim, static_cast<int>(rotate)};
    to.scale = l.scratch(from.domain, heads, heads, sizeof(float));
    l.define(out, to);
    l.emit<QuantizeHeadsStep>(l.read(from.rows), to.rows, to.scale, dim, static_cast<int>(rotate));
  }
};

}  // namespace pocketformer
