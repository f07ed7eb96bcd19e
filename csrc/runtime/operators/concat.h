// Two values side by side.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class ConcatStep final : public Step {
 public:
  ConcatStep(Operand in, Operand with, Operand out) : Step("concat", Split::kRepeat), in_(in), with_(with), out_(out) {}

  void run(const Worker& w) const override {
    const size_t left = static_cast<size_t>(in_.width), right = static_cast<size_t>(with_.width);
    for (int row = w.begin(); row < w.end(); ++row) {
      float* const out = w.at(out_, row);
      std::memcpy(out, w.at(in_, row), left * sizeof(float));
      std::memcpy(out + left, w.at(with_, row), right * sizeof(float));
      std::memset(out + left + right, 0, w.row_bytes(out_) - (left + right) * sizeof(float));
    }
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  Operand in_, with_, out_;
};

struct Concat {
  std::string in, with, out;

  static constexpr const char* kName = "concat";
  static constexpr const char* kDoc = "`out = [in, with]`: the columns of `in`, then those of `with`";
  static constexpr auto fields() {
    return std::tuple{name("in", &Concat::in, "rows"), name("with", &Concat::with, "rows of the same domain"),
                      name("out", &Concat::out, "both")};
  }

  void lower(Lowering& l) const {
    const Value left = l.floats("in", in), right = l.floats("with", with);
    l.check(left.domain == right.domain, "with", "names '", with, "', of another domain than '", in, "'");
    l.enter(left.domain);
    const Operand a = l.read(left.rows), b = l.read(right.rows);
    const Operand to = l.write(out, left.domain, static_cast<int64_t>(a.width) + b.width);
    l.emit<ConcatStep>(a, b, to);
  }
};

}  // namespace pocketformer
