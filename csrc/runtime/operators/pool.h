// One row for each sequence.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class PoolStep final : public Step {
 public:
  PoolStep(int domain, Operand in, Operand out, PoolKind kind)
      : Step("pool", Split::kRepeat), domain_(domain), in_(in), out_(out), kind_(kind) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      w.kernels().pool({.x = w.at(in_, static_cast<int>(w.offsets(domain_)[sequence])),
                        .ldx = w.ld(in_),
                        .rows = w.length(domain_, sequence),
                        .width = in_.width,
                        .kind = kind_,
                        .out = w.at(out_, sequence)});
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int domain_;
  Operand in_, out_;
  PoolKind kind_;
};

struct Pool {
  std::string in, out, domain;
  PoolKind kind{};

  static constexpr const char* kName = "pool";
  static constexpr const char* kDoc =
      "`out` = mean, first (`cls`) or largest (`max`) of each sequence's rows, by column";
  static constexpr Choice<PoolKind> kKinds[] = {
      {"mean", PoolKind::kMean}, {"cls", PoolKind::kCls}, {"max", PoolKind::kMax}};
  static constexpr auto fields() {
    return std::tuple{name("in", &Pool::in, "rows of sequences"), name("out", &Pool::out, "a row a sequence"),
                      name("domain", &Pool::domain, "of the result: `one` of that of `in`"),
                      choice("kind", &Pool::kind, kKinds, "`mean`, `cls` or `max`")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kOne);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<PoolStep>(from.domain, l.gather(from.rows), to, kind);
  }
};

}  // namespace pocketformer
