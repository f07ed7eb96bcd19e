// Layer norm and RMS norm of each row.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class NormStep final : public Step {
 public:
  NormStep(Operand in, Operand out, const float* weight, const float* bias, float eps, NormKind kind)
      : Step("norm", Split::kRepeat), in_(in), out_(out), weight_(weight), bias_(bias), eps_(eps), kind_(kind) {}

  void run(const Worker& w) const override {
    w.kernels().norm({.x = w.at(in_, w.begin()),
                      .ldx = w.ld(in_),
                      .weight = weight_,
                      .bias = bias_,
                      .out = w.at(out_, w.begin()),
                      .ldo = w.ld(out_),
                      .rows = w.rows(),
                      .width = in_.width,
                      .eps = eps_,
                      .kind = kind_});
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, out_;
  const float* weight_;
  const float* bias_;
  float eps_;
  NormKind kind_;
};

struct Norm {
  std::string in, out, weight, bias;
  NormKind kind{};
  double eps = 0;

  static constexpr const char* kName = "norm";
  static constexpr const char* kDoc = "`out = (in − mean) / √(variance + eps) · weight + bias`; `rms` without the mean";
  static constexpr Choice<NormKind> kKinds[] = {{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}};
  static constexpr auto fields() {
    return std::tuple{name("in", &Norm::in, "rows"),
                      name("out", &Norm::out, "the normalised rows"),
                      name("weight", &Norm::weight, "tensor f32, one entry a column"),
                      optional_name("bias", &Norm::bias, "tensor f32, likewise"),
                      choice("kind", &Norm::kind, kKinds, "`layer` or `rms`"),
                      number_above("eps", &Norm::eps, 0, "added to the variance")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    l.enter(from.domain);
    const float* scale = l.vector(weight, from.rows.width);
    const float* shift = l.optional_vector(bias, from.rows.width);
    const Operand to = l.write(out, from.domain, from.rows.width, from.rows);
    l.emit<NormStep>(l.read(from.rows), to, scale, shift, static_cast<float>(eps), kind);
  }
};

}  // namespace pocketformer
