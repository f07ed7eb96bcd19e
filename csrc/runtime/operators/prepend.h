// The same rows before those of every sequence: a class token, registers.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class PrependStep final : public Step {
 public:
  PrependStep(int from, int to, Operand in, Operand out, const float* rows, int count)
      : Step("prepend", Split::kRepeat), from_(from), to_(to), in_(in), out_(out), rows_(rows), count_(count) {}

  void run(const Worker& w) const override {
    const size_t ld = w.ld(out_);
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      for (int i = row; i < row + count; ++i) {
        const int position = w.position(to_, sequence, i);
        const int source = static_cast<int>(w.offsets(from_)[sequence]) + position - count_;
        const float* from = position < count_ ? rows_ + static_cast<size_t>(position) * ld : w.at(in_, source);
        std::memcpy(w.at(out_, i), from, ld * sizeof(float));
      }
    });
  }

 private:
  int from_, to_;
  Operand in_, out_;
  const float* rows_;
  int count_;
};

struct Prepend {
  std::string in, out, domain, rows;

  static constexpr const char* kName = "prepend";
  static constexpr const char* kDoc = "`out` = `rows`, then `in`, in each sequence";
  static constexpr auto fields() {
    return std::tuple{name("in", &Prepend::in, "rows of sequences"), name("out", &Prepend::out, "the longer sequences"),
                      name("domain", &Prepend::domain, "of the result: ragged, of that of `in`, with `prepended` rows"),
                      name("rows", &Prepend::rows, "tensor f32 [prepended, columns up to 16s]")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kRagged);
    const Domain& longer = l.program().domains[static_cast<size_t>(made)];
    const int64_t count = longer.prepended;
    l.check(longer.merged == 0 && longer.summarized == 0, "domain", "is '", domain,
            "', which has fewer rows, or rows of blocks");
    const float* first = l.tensors().take_floats(l.place(), rows, {count, padded(from.rows.width)});
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<PrependStep>(from.domain, made, l.gather(from.rows), to, first, static_cast<int>(count));
  }
};

}  // namespace pocketformer
