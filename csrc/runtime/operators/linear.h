// Products: rows times a weight, and what follows in registers. Rows of a rounded weight's input are rounded first,
// once for all products that share them.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class QuantizeStep final : public Step {
 public:
  QuantizeStep(Operand in, const Quantized& to) : Step("quantize", Split::kRepeat), in_(in), to_(to) {}

  void run(const Worker& w) const override {
    QuantizeArgs args{.x = w.at(in_, w.begin()),
                      .ldx = w.ld(in_),
                      .q = w.at<uint8_t>(to_.q, w.begin()),
                      .ldq = w.ld(to_.q),
                      .scale = w.at(to_.scale, w.begin()),
                      .rows = w.rows(),
                      .k = in_.width,
                      .rotate = to_.rotate,
                      .is_signed = to_.plain,
                      .group = to_.group};
    if (to_.sum) args.sum = w.at<int32_t>(to_.sum, w.begin()), args.ld_sum = w.ld(to_.sum);
    if (to_.scale.width > 1) args.ld_scale = w.ld(to_.scale);
    w.kernels().quantize_rows(args);
  }

  Work work() const override {
    const double width = in_.width;
    return {.elements = width, .rotated = to_.rotate > 1 ? width : 0};
  }

 private:
  Operand in_;
  Quantized to_;
};

class LinearStep final : public Step {
 public:
  LinearStep(const WeightView& weight, const float* bias, Activation activation, Operand x, const Quantized* quantized,
             Operand multiply, Operand residual, Operand out, double zeros)
      : Step("linear", Split::kPanels),
        weight_(weight),
        bias_(bias),
        activation_(activation),
        x_(x),
        scale_(quantized == nullptr ? Operand{} : quantized->scale),
        sum_(quantized == nullptr ? Operand{} : quantized->sum),
        multiply_(multiply),
        residual_(residual),
        out_(out),
        zeros_(zeros) {}

  void run(const Worker& w) const override {
    const Span panels = w.mine((weight_.n + kLanes - 1) / kLanes);
    if (panels.empty()) return;
    const int row = w.begin();
    GemmArgs args{.x = is_float(weight_.format) ? static_cast<const void*>(w.at(x_, row)) : w.at<uint8_t>(x_, row),
                  .ldx = w.ld(x_),
                  .weight = weight_,
                  .out = w.at(out_, row),
                  .ldo = w.ld(out_),
                  .m = w.rows(),
                  .panel_begin = panels.begin,
                  .panel_end = panels.end};
    if (scale_) args.x_scale = w.at(scale_, row);
    if (weight_.inputs != 0) args.ld_scale = w.ld(scale_);
    if (sum_) args.x_sum = w.at<int32_t>(sum_, row), args.ld_sum = w.ld(sum_);
    args.epilogue = {.bias = bias_, .activation = activation_};
    if (multiply_) args.epilogue.multiply = w.at(multiply_, row), args.epilogue.ld_multiply = w.ld(multiply_);
    if (residual_) args.epilogue.residual = w.at(residual_, row), args.epilogue.ld_residual = w.ld(residual_);
    args.skip = zeros_ != 0;
    args.epilogue.precise = is_float(weight_.format) || multiply_;
    w.kernels().gemm[kernel_of(weight_)](args);
  }

  Work work() const override {
    const double macs = static_cast<double>(weight_.n) * weight_.k;
    const size_t numbers = static_cast<size_t>(padded(weight_.n)) * static_cast<size_t>(weight_.k);
    const size_t bytes = numbers * static_cast<size_t>(WeightSpec::bits(weight_.format)) / 8;
    return {.multiply_adds = macs,
            .int8 = !is_float(weight_.format),
            .bounded_pairs = weight_.bounded_pairs,
            .weight_bytes = bytes,
            .zeros = zeros_,
            .elements = static_cast<double>(weight_.n),
            .activated = activation_ == Activation::kNone ? 0.0 : static_cast<double>(weight_.n)};
  }

  const Operand& out() const { return out_; }

 private:
  WeightView weight_;
  const float* bias_;
  Activation activation_;
  Operand x_, scale_, sum_, multiply_, residual_, out_;
  double zeros_;
};

struct Linear {
  std::string in, out, weight, bias, multiply, residual;
  Activation activation = Activation::kNone;
  double zeros = 0;

  static constexpr const char* kName = "linear";
  static constexpr const char* kDoc = "`out = activation(in · weightᵀ + bias) · multiply + residual`";
  static constexpr Choice<Activation> kActivations[] = {
      {"none", Activation::kNone}, {"gelu", Activation::kGelu}, {"gelu_tanh", Activation::kGeluTanh},
      {"relu", Activation::kRelu}, {"silu", Activation::kSilu}, {"tanh", Activation::kTanh}};
  static constexpr auto fields() {
    return std::tuple{name("in", &Linear::in, "rows of k columns"),
                      name("out", &Linear::out, "rows of n columns"),
                      name("weight", &Linear::weight, "a weight n × k, in panels"),
                      optional_name("bias", &Linear::bias, "tensor f32, one entry a channel"),
                      optional_choice("activation", &Linear::activation, kActivations, "of each number"),
                      optional_name("multiply", &Linear::multiply, "rows of n columns; a gate"),
                      optional_name("residual", &Linear::residual, "rows of n columns, added last"),
                      optional_from("zeros", &Linear::zeros, 0,
                                    "above 0, groups of four inputs that are all zero are passed over; the share that "
                                    "was measured, below 1, changes no bit")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const Weight& stored = l.weight("weight", weight);
    const WeightView& view = stored.view;
    l.check(stored.layout == Layout::kPanels, "weight", "names '", weight, "', a table stored by rows");
    l.check(view.k == from.rows.width, "weight", "names '", weight, "' of ", view.k, " inputs, but '", in, "' is ",
            from.rows.width, " wide");
    const Value* const gate = multiply.empty() ? nullptr : &alike(l, "multiply", multiply, from.domain, view.n);
    const Value* const added = residual.empty() ? nullptr : &alike(l, "residual", residual, from.domain, view.n);
    const Operand times = gate == nullptr ? Operand{} : gate->rows, plus = added == nullptr ? Operand{} : added->rows;
    const float* shift = l.optional_vector(bias, view.n);
    if (zeros != 0) check_zeros(l, from, view);
    l.enter(from.domain);
    const bool rounded = !is_float(view.format);
    const Quantized quantized = rounded ? quantize(l, from, view, zeros != 0) : Quantized{};
    const Operand x = rounded ? quantized.q : from.rows;
    // In the residual's place, where the product is not stored before the residual is read.
    const bool in_place = activation == Activation::kNone && !times && plus.buffer != x.buffer;
    const Operand to = l.write(out, from.domain, view.n, in_place ? plus : Operand{});
    l.read(x), l.read(quantized.scale), l.read(quantized.sum);
    l.emit<LinearStep>(view, shift, activation, x, rounded ? &quantized : nullptr, l.read(times), l.read(plus), to,
                       zeros);
    if (activation == Activation::kRelu && !times && !plus) l.never_negative(out);
  }

 private:
  static const Value& alike(const Lowering& l, const char* field, const std::string& name, int domain, int n) {
    const Value& other = l.dense(field, name);
    l.same_shape(field, name, other, domain, n);
    return other;
  }

  void check_zeros(const Lowering& l, const Value& from, const WeightView& weight) const {
    l.check(zeros < 1, "zeros", "is ", zeros, "; it must be below 1");
    l.check(weight.format == Format::kI8 && weight.group == 0 && weight.rotate == 0 && weight.k <= kSkippedK, "zeros",
            "is ", zeros, ", but '", this->weight, "' is not int8 with a scale a channel, unrotated, of at most ",
            kSkippedK, " inputs");
    l.check(!from.negative, "zeros", "is ", zeros, ", but '", in, "' is not what relu has made");
  }

  static Quantized quantize(Lowering& l, const Value& from, const WeightView& weight, bool skip) {
    const bool plain = skip || weight.format == Format::kI4 || weight.group != 0, by_group = weight.inputs != 0;
    const int group = by_group ? weight.inputs : weight.group, k = from.rows.width;
    for (const Quantized& known : l.quantized()) {
      if (known.from == from.rows.buffer && known.column == from.rows.column && known.rotate == weight.rotate &&
          known.plain == plain && known.group == group && known.by_group == by_group && (skip || !plain || known.sum)) {
        return known;
      }
    }
    Quantized made{};
    made.from = from.rows.buffer, made.column = from.rows.column;
    made.rotate = weight.rotate, made.group = group, made.plain = plain, made.by_group = by_group;
    const int groups = group == 0 ? 1 : k / group, scales = by_group ? groups : 1;
    made.q = l.scratch(from.domain, k, static_cast<int>(round_up(static_cast<size_t>(k), kAlignment)), 1);
    made.scale = l.scratch(from.domain, scales, scales, sizeof(float));
    if (plain && !skip) made.sum = l.scratch(from.domain, groups, groups, sizeof(int32_t));
    l.emit<QuantizeStep>(l.read(from.rows), made);
    l.quantized().push_back(made);
    return made;
  }
};

}  // namespace pocketformer
