// A row for each block of a sequence before its own: the transient global tokens of LongT5 (Guo et al., arXiv
// 2112.07916).
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class SummarizeStep final : public Step {
 public:
  SummarizeStep(int from, int to, Operand in, Operand out, const float* weight, float eps)
      : Step("summarize", Split::kRepeat), from_(from), to_(to), in_(in), out_(out), weight_(weight), eps_(eps) {}

  void run(const Worker& w) const override {
    const int size = static_cast<int>(w.program().domains[static_cast<size_t>(to_)].summarized);
    const int columns = static_cast<int>(w.ld(out_));
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      const int first = static_cast<int>(w.offsets(from_)[sequence]), length = w.length(from_, sequence);
      const int blocks = length / size;
      for (int i = row; i < row + count; ++i) {
        const int position = w.position(to_, sequence, i);
        float* const out = w.at(out_, i);
        if (position >= blocks) {
          std::memcpy(out, w.at(in_, first + position - blocks), w.row_bytes(out_));
          continue;
        }
        // The last block has the rows behind it too.
        const int begin = position * size, end = position + 1 == blocks ? length : begin + size;
        std::memset(out, 0, w.row_bytes(out_));
        for (int r = first + begin; r < first + end; ++r) {
          const float* const in = w.at(in_, r);
          for (int c = 0; c < columns; ++c) out[c] += in[c];
        }
        w.kernels().norm({.x = out,
                          .ldx = w.ld(out_),
                          .weight = weight_,
                          .bias = nullptr,
                          .out = out,
                          .ldo = w.ld(out_),
                          .rows = 1,
                          .width = out_.width,
                          .eps = eps_,
                          .kind = NormKind::kRms});
      }
    });
  }

  Work work() const override { return {.elements = 2.0 * out_.width}; }

 private:
  int from_, to_;
  Operand in_, out_;
  const float* weight_;
  float eps_;
};

struct Summarize {
  std::string in, out, domain, weight;
  double eps = 0;

  static constexpr const char* kName = "summarize";
  static constexpr const char* kDoc =
      "`out` = for each whole block of a sequence's rows the RMS norm of their sum, then `in`; the last block has the "
      "rows behind it too";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Summarize::in, "rows of sequences"), name("out", &Summarize::out, "the longer sequences"),
        name("domain", &Summarize::domain, "of the result: ragged, of that of `in`, with `summarized` rows a block"),
        name("weight", &Summarize::weight, "tensor f32, one entry a column: of the norm"),
        number_above("eps", &Summarize::eps, 0, "added to the mean square")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kRagged);
    l.check(l.program().domains[static_cast<size_t>(made)].summarized != 0, "domain", "is '", domain,
            "', which has no row for a block");
    const float* const factors = l.vector(weight, from.rows.width);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    l.emit<SummarizeStep>(from.domain, made, l.gather(from.rows), to, factors, static_cast<float>(eps));
  }
};

}  // namespace pocketformer
