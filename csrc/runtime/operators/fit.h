// Sequences at another length: rows behind the last, or only the first ones.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class FitStep final : public Step {
 public:
  FitStep(int from, int to, Operand in, Operand out, const float* fill)
      : Step("fit", Split::kRepeat), from_(from), to_(to), in_(in), out_(out), fill_(fill) {}

  void run(const Worker& w) const override {
    const size_t used = static_cast<size_t>(out_.width), ld = w.ld(out_);
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      const int shift = static_cast<int>(w.offsets(from_)[sequence] - w.offsets(to_)[sequence]);
      const int end = static_cast<int>(w.offsets(from_)[sequence + 1]);
      for (int i = row; i < row + count; ++i) {
        float* const out = w.at(out_, i);
        const float* const from = i + shift < end ? w.at(in_, i + shift) : fill_;
        if (from != nullptr) std::memcpy(out, from, used * sizeof(float));
        std::memset(out + (from == nullptr ? 0 : used), 0, (ld - (from == nullptr ? 0 : used)) * sizeof(float));
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  int from_, to_;
  Operand in_, out_;
  const float* fill_;
};

struct Fit {
  std::string in, out, domain, fill;

  static constexpr const char* kName = "fit";
  static constexpr const char* kDoc =
      "`out` = the first rows of `in` in each sequence, as many as `domain` has, and `fill` behind the last";
  static constexpr auto fields() {
    return std::tuple{name("in", &Fit::in, "rows of sequences"), name("out", &Fit::out, "longer or shorter ones"),
                      name("domain", &Fit::domain, "of the result: rows of the same sequences, ragged or a grid"),
                      optional_name("fill", &Fit::fill, "tensor f32, one entry a column; null: zeros")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const int to = l.domain("domain", domain);
    l.check(l.domain_of(from).has_offsets(), "in", "names '", in, "', whose rows are of no sequences");
    l.check(l.program().domains[static_cast<size_t>(to)].has_offsets(), "domain", "is '", domain,
            "', whose rows are of no sequences");
    const float* const last = l.optional_vector(fill, from.rows.width);
    l.enter_to_gather(to, from.rows);
    const Operand rows = l.write(out, to, from.rows.width);
    l.emit<FitStep>(from.domain, to, l.gather(from.rows), rows, last);
  }
};

}  // namespace pocketformer
