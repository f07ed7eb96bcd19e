// Sums of a sequence's rows by how they score, and one row for all rows of a sequence: the linear attention of
// MobileViTv2 (Mehta and Rastegari, arXiv 2206.02680).
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class SoftPoolStep final : public Step {
 public:
  SoftPoolStep(int domain, Operand in, Operand scores, Operand shares, Operand out)
      : Step("soft_pool", Split::kRepeat), domain_(domain), in_(in), scores_(scores), shares_(shares), out_(out) {}

  void run(const Worker& w) const override {
    const int parts = scores_.width, width = in_.width / parts;
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      const int first = static_cast<int>(w.offsets(domain_)[sequence]), rows = w.length(domain_, sequence);
      float* const shares = w.at(shares_, sequence);
      float* const result = w.at(out_, sequence);
      std::memset(result, 0, w.row_bytes(out_));
      for (int part = 0; part < parts; ++part) {
        for (int i = 0; i < rows; ++i) shares[i] = w.at(scores_, first + i)[part];
        const size_t ld = static_cast<size_t>(shares_.width);
        w.kernels().softmax({.x = shares, .ldx = ld, .out = shares, .ldo = ld, .rows = 1, .width = rows});
        float* const out = result + part * width;
        for (int i = 0; i < rows; ++i) {
          const float* const in = w.at(in_, first + i) + part * width;
          const float share = shares[i];
          for (int c = 0; c < width; ++c) out[c] += share * in[c];
        }
      }
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width + scores_.width) * shares_.width}; }

 private:
  int domain_;
  Operand in_, scores_, shares_, out_;
};

struct SoftPool {
  std::string in, scores, out, domain;

  static constexpr const char* kName = "soft_pool";
  static constexpr const char* kDoc =
      "`out` = the sum of each sequence's rows, a row counted as often as the softmax of its `scores` over the rows "
      "says; as many scores, as many parts of the columns, each by its own";
  static constexpr auto fields() {
    return std::tuple{name("in", &SoftPool::in, "rows of parts side by side"),
                      name("scores", &SoftPool::scores, "a column for each part, of the same domain"),
                      name("out", &SoftPool::out, "a row a sequence"),
                      name("domain", &SoftPool::domain, "of the result: `one` row a sequence")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in), by = l.floats("scores", scores);
    const Domain& of = l.domain_of(from);
    l.check(of.has_offsets(), "in", "names '", in, "', whose rows are of no sequence");
    l.check(!of.halting, "in", "names '", in, "', whose sequences may be empty");
    l.check(by.domain == from.domain, "scores", "names '", scores, "', of another domain than '", in, "'");
    l.check(from.rows.width % by.rows.width == 0, "scores", "names '", scores, "' of ", by.rows.width,
            " columns, which do not divide the ", from.rows.width, " of '", in, "'");
    const int one = l.sequences("domain", domain, from.domain);
    l.check(of.max_rows <= kMaxWidth, "in", "names '", in, "', whose sequences may have ", of.max_rows,
            " rows; at most ", kMaxWidth, " are possible");
    l.begin_stage(one);
    const int most = static_cast<int>(padded(of.max_rows));
    const Operand shares = l.scratch(one, most, most, sizeof(float));
    const Operand to = l.write(out, one, from.rows.width);
    const Operand rows = l.gather(from.rows), scored = l.gather(by.rows);
    l.emit<SoftPoolStep>(from.domain, rows, scored, shares, to);
  }
};

class SpreadStep final : public Step {
 public:
  SpreadStep(int domain, Operand in, Operand out)
      : Step("spread", Split::kRepeat), domain_(domain), in_(in), out_(out) {}

  void run(const Worker& w) const override {
    const size_t used = static_cast<size_t>(in_.width) * sizeof(float), whole = w.row_bytes(out_);
    w.for_each_piece(domain_, [&](int sequence, int row, int count) {
      for (int i = row; i < row + count; ++i) {
        std::memcpy(w.at(out_, i), w.at(in_, sequence), used);
        std::memset(w.at(out_, i) + in_.width, 0, whole - used);
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int domain_;
  Operand in_, out_;
};

struct Spread {
  std::string in, out, domain;

  static constexpr const char* kName = "spread";
  static constexpr const char* kDoc = "`out` = for each row that of its sequence";
  static constexpr auto fields() {
    return std::tuple{name("in", &Spread::in, "a row a sequence"), name("out", &Spread::out, "rows of sequences"),
                      name("domain", &Spread::domain, "of the result: ragged, or a grid, of the same sequences")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const int to = l.domain("domain", domain);
    l.check(l.program().domains[static_cast<size_t>(to)].has_offsets(), "domain", "is '", domain,
            "', whose rows are of no sequence");
    l.row_of_sequence("in", in, from, to);
    l.enter_to_gather(to, from.rows);
    const Operand read = l.gather(from.rows);
    const Operand rows = l.write(out, to, from.rows.width);
    l.emit<SpreadStep>(to, read, rows);
  }
};

}  // namespace pocketformer
