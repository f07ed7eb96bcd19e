// The rows that the caller names.
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class SelectStep final : public Step {
 public:
  SelectStep(int domain, Operand in, Operand out)
      : Step("select", Split::kRepeat), domain_(domain), in_(in), out_(out) {}

  void run(const Worker& w) const override {
    const int64_t* const selected = w.selected(domain_);
    const size_t bytes = w.row_bytes(out_);
    for (int row = w.begin(); row < w.end(); ++row) {
      std::memcpy(w.at(out_, row), w.at(in_, static_cast<int>(selected[row])), bytes);
    }
  }

 private:
  int domain_;
  Operand in_, out_;
};

struct Select {
  std::string in, out, domain;

  static constexpr const char* kName = "select";
  static constexpr const char* kDoc = "`out = in[rows]` for the rows that the caller names";
  static constexpr auto fields() {
    return std::tuple{name("in", &Select::in, "rows"), name("out", &Select::out, "the rows that are named"),
                      name("domain", &Select::domain, "of the result: `selected` of that of `in`")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kSelected);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<SelectStep>(made, l.gather(from.rows), to);
  }
};

}  // namespace pocketformer
