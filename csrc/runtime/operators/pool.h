// One row for each sequence.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class PoolStep final : public Step {
 public:
  PoolStep(int domain, Operand in, Operand out, PoolKind kind, int begin)
      : Step("pool", Split::kRepeat), domain_(domain), in_(in), out_(out), kind_(kind), begin_(begin) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      w.kernels().pool({.x = w.at(in_, static_cast<int>(w.offsets(domain_)[sequence]) + begin_),
                        .ldx = w.ld(in_),
                        .rows = w.length(domain_, sequence) - begin_,
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
  int begin_;
};

struct Pool {
  std::string in, out, domain;
  PoolKind kind{};
  int64_t begin = 0;

  static constexpr const char* kName = "pool";
  static constexpr const char* kDoc =
      "`out` = mean, first (`cls`) or largest (`max`) of each sequence's rows, by column";
  static constexpr Choice<PoolKind> kKinds[] = {
      {"mean", PoolKind::kMean}, {"cls", PoolKind::kCls}, {"max", PoolKind::kMax}};
  static constexpr auto fields() {
    return std::tuple{name("in", &Pool::in, "rows of sequences"), name("out", &Pool::out, "a row a sequence"),
                      name("domain", &Pool::domain, "of the result: `one` of that of `in`"),
                      choice("kind", &Pool::kind, kKinds, "`mean`, `cls` or `max`"),
                      optional_integer("begin", &Pool::begin, 0, kMaxRows, "rows of each sequence that are left out")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kOne);
    const Domain& of = l.domain_of(from);
    const int64_t shortest = of.kind == DomainKind::kGrid ? of.max_rows : of.prepended + 1;
    l.check(begin < shortest, "begin", "is ", begin, ", but '", of.name, "' may have sequences of ", shortest, " rows");
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<PoolStep>(from.domain, l.gather(from.rows), to, kind, static_cast<int>(begin));
  }
};

}  // namespace pocketformer
