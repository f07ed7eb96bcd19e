// Rows scaled to length 1.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class NormalizeStep final : public Step {
 public:
  NormalizeStep(Operand in, Operand out) : Step("normalize", Split::kRepeat), in_(in), out_(out) {}

  void run(const Worker& w) const override {
    w.kernels().l2_normalize({.x = w.at(in_, w.begin()),
                              .ldx = w.ld(in_),
                              .out = w.at(out_, w.begin()),
                              .ldo = w.ld(out_),
                              .rows = w.rows(),
                              .width = in_.width});
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, out_;
};

struct Normalize {
  std::string in, out;

  static constexpr const char* kName = "normalize";
  static constexpr const char* kDoc = "`out = in / max(‖in‖₂, 10⁻¹²)`";
  static constexpr auto fields() {
    return std::tuple{name("in", &Normalize::in, "rows"), name("out", &Normalize::out, "rows of length 1")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    l.enter(from.domain);
    const Operand to = l.write(out, from.domain, from.rows.width, from.rows);
    l.emit<NormalizeStep>(l.read(from.rows), to);
  }
};

}  // namespace pocketformer
