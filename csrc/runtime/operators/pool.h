// One row for each sequence, or for each of its parts.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class PoolStep final : public Step {
 public:
  PoolStep(int domain, Operand in, Operand out, PoolKind kind, int parts, int begin, int skip)
      : Step("pool", Split::kRepeat),
        domain_(domain),
        in_(in),
        out_(out),
        kind_(kind),
        parts_(parts),
        begin_(begin),
        skip_(skip) {}

  void run(const Worker& w) const override {
    const int32_t* const skip = skip_ == kNone ? nullptr : w.indices(skip_);
    for (int row = w.begin(); row < w.end(); ++row) {
      const int sequence = row / parts_;
      if (parts_ > 1) {
        pool_part(w, row, sequence);
        continue;
      }
      const int length = w.length(domain_, sequence);
      const int first = skip == nullptr ? begin_ : std::min(begin_ + static_cast<int>(skip[sequence]), length - 1);
      w.kernels().pool({.x = w.at(in_, static_cast<int>(w.offsets(domain_)[sequence]) + first),
                        .ldx = w.ld(in_),
                        .rows = length - first,
                        .width = in_.width,
                        .first = first,
                        .kind = kind_,
                        .out = w.at(out_, sequence)});
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  // As even a share of the rows as there is; of fewer rows than parts some belong to several.
  void pool_part(const Worker& w, int row, int sequence) const {
    const Span rows = share(w.length(domain_, sequence), row % parts_, parts_);
    w.kernels().pool({.x = w.at(in_, static_cast<int>(w.offsets(domain_)[sequence]) + rows.begin),
                      .ldx = w.ld(in_),
                      .rows = std::max(rows.end - rows.begin, 1),
                      .width = in_.width,
                      .first = 0,
                      .kind = kind_,
                      .out = w.at(out_, row)});
  }

  int domain_;
  Operand in_, out_;
  PoolKind kind_;
  int parts_;
  int begin_;
  int skip_;  // an input of indices, or kNone
};

struct Pool {
  std::string in, out, domain, skip;
  PoolKind kind{};
  int64_t begin = 0;

  static constexpr const char* kName = "pool";
  static constexpr const char* kDoc =
      "`out` = of each sequence's rows, by column, the mean, the first (`cls`), the largest (`max`), the last, the sum "
      "over the root of their number (`mean_sqrt`), or the mean where row r counts r + 1 times (`weighted_mean`); "
      "where the result is a grid of n rows a "
      "sequence, of each of n parts: that of part i are the rows from ⌊i · rows / n⌋ up to ⌊(i + 1) · rows / n⌋, at "
      "least one";
  static constexpr Choice<PoolKind> kKinds[] = {{"mean", PoolKind::kMean},
                                                {"cls", PoolKind::kCls},
                                                {"max", PoolKind::kMax},
                                                {"last", PoolKind::kLast},
                                                {"mean_sqrt", PoolKind::kMeanSqrt},
                                                {"weighted_mean", PoolKind::kWeightedMean}};
  static constexpr auto fields() {
    return std::tuple{name("in", &Pool::in, "rows of sequences"),
                      name("out", &Pool::out, "a row a sequence"),
                      name("domain", &Pool::domain, "of the result: `one` of that of `in`, or a grid of it"),
                      choice("kind", &Pool::kind, kKinds, "as above"),
                      optional_integer("begin", &Pool::begin, 0, kMaxRows, "rows of each sequence that are left out"),
                      optional_name("skip", &Pool::skip,
                                    "an input of indices over `domain`: how many more first rows of each sequence are "
                                    "left out; the last one never is")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const Domain& named = l.program().domains[static_cast<size_t>(l.domain("domain", domain))];
    const bool parts = named.kind == DomainKind::kGrid && l.domain_of(from).has_offsets();
    const int made = l.made_domain("domain", domain, from, parts ? DomainKind::kGrid : DomainKind::kOne);
    l.check(!parts || (begin == 0 && skip.empty()), "begin", "or 'skip' is given, but the result is of parts");
    const Domain& of = l.domain_of(from);
    l.check(begin < of.least_rows, "begin", "is ", begin, ", but '", of.name, "' may have sequences of ", of.least_rows,
            " rows");
    const int skipped = skip.empty() ? kNone : l.sequence_input("skip", skip, from);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<PoolStep>(from.domain, l.gather(from.rows), to, kind, parts ? static_cast<int>(named.max_rows) : 1,
                     static_cast<int>(begin), skipped);
  }
};

}  // namespace pocketformer
