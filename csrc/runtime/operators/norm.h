// Layer norm and RMS norm of each row, or of each head in a row.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class NormStep final : public Step {
 public:
  struct Shape {
    const float* weight;
    const float* bias;
    float eps;
    NormKind kind;
    int heads;
  };

  NormStep(Operand in, Operand residual, Operand out, const Shape& shape)
      : Step("norm", Split::kRepeat), in_(in), residual_(residual), out_(out), shape_(shape) {}

  void run(const Worker& w) const override {
    NormArgs args{.x = w.at(in_, w.begin()),
                  .ldx = w.ld(in_),
                  .weight = shape_.weight,
                  .bias = shape_.bias,
                  .out = w.at(out_, w.begin()),
                  .ldo = w.ld(out_),
                  .rows = w.rows(),
                  .width = in_.width,
                  .eps = shape_.eps,
                  .kind = shape_.kind};
    if (shape_.heads == 1) {
      w.kernels().norm(args);
    } else {
      args.rows = shape_.heads, args.width = in_.width / shape_.heads;
      args.ldx = args.ldo = static_cast<size_t>(args.width);
      for (int row = w.begin(); row < w.end(); ++row) {
        args.x = w.at(in_, row), args.out = w.at(out_, row);
        w.kernels().norm(args);
      }
    }
    for (int row = w.begin(); residual_ && row < w.end(); ++row) {
      const float* const added = w.at(residual_, row);
      float* const out = w.at(out_, row);
      for (int i = 0; i < in_.width; ++i) out[i] += added[i];
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, residual_, out_;
  Shape shape_;
};

struct Norm {
  std::string in, out, weight, bias, residual;
  NormKind kind{};
  double eps = 0;
  int64_t heads = 1;

  static constexpr const char* kName = "norm";
  static constexpr const char* kDoc =
      "`out = (in − mean) / √(variance + eps) · weight + bias + residual`; `rms` without the mean";
  static constexpr Choice<NormKind> kKinds[] = {{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}};
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Norm::in, "rows"),
        name("out", &Norm::out, "the normalised rows"),
        name("weight", &Norm::weight, "tensor f32, one entry a column, of a head where there are several"),
        optional_name("bias", &Norm::bias, "tensor f32, likewise"),
        choice("kind", &Norm::kind, kKinds, "`layer` or `rms`"),
        number_above("eps", &Norm::eps, 0, "added to the variance"),
        optional_integer("heads", &Norm::heads, 1, kMaxWidth,
                         "parts of a row that are normalised each by itself; of whole 16s if several"),
        optional_name("residual", &Norm::residual, "rows that are added last")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int width = from.rows.width, parts = static_cast<int>(heads);
    l.check(parts == 1 || width % (parts * kLanes) == 0, "heads", "is ", heads, "; the ", width, " columns of '", in,
            "' do not make so many heads of whole ", kLanes, "s");
    Operand added{};
    if (!residual.empty()) {
      const Value other = l.dense("residual", residual);
      l.same_shape("residual", residual, other, from.domain, width);
      added = other.rows;
    }
    l.enter(from.domain);
    NormStep::Shape shape{.weight = l.vector(weight, width / parts),
                          .bias = l.optional_vector(bias, width / parts),
                          .eps = static_cast<float>(eps),
                          .kind = kind,
                          .heads = parts};
    // In its input's place, which the rest of a row still needs where it is the residual too.
    const Operand to = l.write(out, from.domain, width, added.buffer == from.rows.buffer ? Operand{} : from.rows);
    l.emit<NormStep>(l.read(from.rows), l.read(added), to, shape);
  }
};

}  // namespace pocketformer
