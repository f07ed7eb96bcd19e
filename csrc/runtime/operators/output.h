// The result reaches the caller's array: the last product writes there itself, anything else is copied.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class OutputStep final : public Step {
 public:
  explicit OutputStep(Operand in) : Step("output", Split::kRows), in_(in) {}

  void run(const Worker& w) const override {
    const size_t columns = static_cast<size_t>(in_.width);
    for (int row = w.begin(); row < w.end(); ++row) {
      std::memcpy(w.out() + static_cast<size_t>(row) * columns, w.at(in_, row), columns * sizeof(float));
    }
  }

 private:
  Operand in_;
};

inline void lower_output(Lowering& l, const Value& result) {
  if (l.write_to_caller(result)) return;
  l.enter(result.domain);
  l.emit<OutputStep>(l.read(result.rows));
}

}  // namespace pocketformer
