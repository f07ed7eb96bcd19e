// Rows that stay within a cap, smoothly.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class SoftCapStep final : public Step {
 public:
  SoftCapStep(Operand in, Operand out, float cap) : Step("softcap", Split::kRepeat), in_(in), out_(out), cap_(cap) {}

  void run(const Worker& w) const override {
    w.kernels().soft_cap({.x = w.at(in_, w.begin()),
                          .ldx = w.ld(in_),
                          .out = w.at(out_, w.begin()),
                          .ldo = w.ld(out_),
                          .rows = w.rows(),
                          .width = in_.width,
                          .cap = cap_});
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, out_;
  float cap_;
};

struct SoftCap {
  std::string in, out;
  double cap = 0;

  static constexpr const char* kName = "softcap";
  static constexpr const char* kDoc = "`out = cap · tanh(in / cap)`";
  static constexpr auto fields() {
    return std::tuple{name("in", &SoftCap::in, "rows"), name("out", &SoftCap::out, "rows of their width"),
                      number_above("cap", &SoftCap::cap, 0, "what entries stay below, in absolute value")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    l.enter(from.domain);
    const Operand to = l.write(out, from.domain, from.rows.width, from.rows);
    l.emit<SoftCapStep>(l.read(from.rows), to, static_cast<float>(cap));
  }
};

}  // namespace pocketformer
