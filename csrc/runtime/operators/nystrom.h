// What is between the two outer softmaxes of Nyström attention: rows times the pseudo-inverse of the softmax of
// landmarks with landmarks (Xiong et al., "Nyströmformer", arXiv 2102.03902).
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/row_products.h"
#include "runtime/worker.h"

namespace pocketformer {

class NystromStep final : public Step {
 public:
  struct Shape {
    int rows, heads, iterations;
    float scale;
  };

  NystromStep(int domain, Operand q, Operand k, Operand in, Operand out, Operand memory, const Shape& shape)
      : Step("nystrom", Split::kHeads),
        domain_(domain),
        q_(q),
        k_(k),
        in_(in),
        out_(out),
        memory_(memory),
        shape_(shape) {}

  void run(const Worker& w) const override {
    const Span heads = w.mine(shape_.heads);
    if (heads.empty()) return;
    Square s(w.working(memory_), shape_.rows);
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      const int row = static_cast<int>(w.offsets(domain_)[sequence]);
      float most = 0;  // of every head: threads agree about it, whichever heads are theirs
      for (int head = 0; head < shape_.heads; ++head) {
        take_scores(w, row, head, s);
        most = std::max(most, largest_column(s));
      }
      for (int head = heads.begin; head < heads.end; ++head) {
        take_scores(w, row, head, s);
        invert(w.kernels(), 1.0f / most, s);
        const int width = in_.width / shape_.heads, column = head * width;
        pack_columns(w.at(in_, row) + column, w.ld(in_), shape_.rows, width, s.panels);
        multiply(w.kernels(), {s.inverse, s.ld, shape_.rows, shape_.rows, s.panels, width, s.result,
                               static_cast<size_t>(padded(width))});
        for (int i = 0; i < shape_.rows; ++i) {
          std::memcpy(w.at(out_, row + i) + column, s.result + i * padded(width),
                      static_cast<size_t>(width) * sizeof(float));
        }
      }
      if (heads.end != shape_.heads) continue;
      const size_t padding = w.ld(out_) - static_cast<size_t>(out_.width);
      for (int i = 0; i < shape_.rows; ++i) std::memset(w.at(out_, row + i) + out_.width, 0, padding * sizeof(float));
    }
  }

  Work work() const override {
    const double n = shape_.rows, width = q_.width / shape_.heads;
    const double products = n * (2 * width + 4.0 * shape_.iterations * n) + n * in_.width / shape_.heads;
    return {.multiply_adds = products * shape_.heads, .elements = n * n * shape_.heads, .rows = domain_};
  }

  static size_t memory(int rows, int q_width, int width) {
    const size_t n = static_cast<size_t>(rows), ld = static_cast<size_t>(padded(rows));
    const size_t widest = static_cast<size_t>(padded(std::max(q_width, width)));
    return 5 * n * ld + ld * std::max(ld, widest) + n * static_cast<size_t>(padded(width));
  }

 private:
  // Matrices [rows][ld].
  struct Square {
    Square(float* memory, int rows) : n(rows), ld(static_cast<size_t>(padded(rows))) {
      const size_t each = static_cast<size_t>(rows) * ld;
      for (float** part : {&scores, &inverse, &product, &left, &next}) *part = memory, memory += each;
      result = memory;  // of the rows, then what is packed
    }
    int n;
    size_t ld;
    float *scores, *inverse, *product, *left, *next, *result, *panels = nullptr;
  };

  void take_scores(const Worker& w, int row, int head, Square& s) const {
    const int width = q_.width / shape_.heads, column = head * width;
    s.panels = s.result + static_cast<size_t>(s.n) * static_cast<size_t>(padded(in_.width / shape_.heads));
    pack_rows(w.at(k_, row) + column, w.ld(k_), s.n, width, s.panels);
    multiply(w.kernels(), {w.at(q_, row) + column, w.ld(q_), s.n, width, s.panels, s.n, s.scores, s.ld});
    for (size_t i = 0; i < static_cast<size_t>(s.n) * s.ld; ++i) s.scores[i] *= shape_.scale;
    w.kernels().softmax({s.scores, s.ld, s.scores, s.ld, s.n, s.n});
  }

  static float largest_column(const Square& s) {
    float most = 0;
    for (int j = 0; j < s.n; ++j) {
      float sum = 0;
      for (int i = 0; i < s.n; ++i) sum += s.scores[static_cast<size_t>(i) * s.ld + j];
      most = std::max(most, sum);
    }
    return most;
  }

  // z ← z (13 − a z (15 − a z (7 − a z))) / 4, from aᵀ · start.
  void invert(const KernelTable& kernels, float start, Square& s) const {
    std::fill_n(s.inverse, static_cast<size_t>(s.n) * s.ld, 0.0f);
    for (int i = 0; i < s.n; ++i) {
      for (int j = 0; j < s.n; ++j) {
        s.inverse[static_cast<size_t>(j) * s.ld + i] = start * s.scores[static_cast<size_t>(i) * s.ld + j];
      }
    }
    for (int step = 0; step < shape_.iterations; ++step) {
      times(kernels, s, s.scores, s.inverse, s.product);
      subtract(s, 7, s.product, s.left);
      for (const float unit : {15.0f, 13.0f}) {
        times(kernels, s, s.product, s.left, s.next);
        subtract(s, unit, s.next, s.left);
      }
      times(kernels, s, s.inverse, s.left, s.next);
      for (size_t i = 0; i < static_cast<size_t>(s.n) * s.ld; ++i) s.inverse[i] = 0.25f * s.next[i];
    }
  }

  static void times(const KernelTable& kernels, const Square& s, const float* a, const float* b, float* out) {
    pack_columns(b, s.ld, s.n, s.n, s.panels);
    multiply(kernels, {a, s.ld, s.n, s.n, s.panels, s.n, out, s.ld});
  }

  // out = unit · I − x
  static void subtract(const Square& s, float unit, const float* x, float* out) {
    for (size_t i = 0; i < static_cast<size_t>(s.n) * s.ld; ++i) out[i] = 0.0f - x[i];
    for (int i = 0; i < s.n; ++i) {
      const size_t at = static_cast<size_t>(i) * s.ld + i;
      out[at] = unit - x[at];
    }
  }

  int domain_;
  Operand q_, k_, in_, out_, memory_;
  Shape shape_;
};

struct Nystrom {
  std::string q, k, in, out, sequences;
  int64_t heads = 0, iterations = 0;
  double scale = 0;

  static constexpr const char* kName = "nystrom";
  static constexpr const char* kDoc =
      "`out = Z · in` for each sequence and head, where Z is near the pseudo-inverse of A = softmax(q · kᵀ · scale): "
      "after "
      "`iterations` of `Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z))) / 4`, which begin with Aᵀ over the largest sum of "
      "a "
      "column of A in any head of the sequence; in float32";
  static constexpr auto fields() {
    return std::tuple{
        name("q", &Nystrom::q, "rows of a grid, of heads side by side"),
        name("k", &Nystrom::k, "likewise, as wide"),
        name("in", &Nystrom::in, "rows of as many heads, of any width"),
        name("out", &Nystrom::out, "rows like those of `in`"),
        name("sequences", &Nystrom::sequences, "a domain: `one` of that of `q`; threads share its rows and heads"),
        integer("heads", &Nystrom::heads, 1, kMaxWidth, "parts of a row"),
        integer("iterations", &Nystrom::iterations, 0, 64, "as above"),
        number_above("scale", &Nystrom::scale, 0, "of q · k")};
  }

  void lower(Lowering& l) const {
    const Value queries = l.floats("q", q), keys = l.floats("k", k), values = l.floats("in", in);
    const Domain& grid = l.domain_of(queries);
    l.check(grid.kind == DomainKind::kGrid, "q", "names '", q, "', whose rows are no grid");
    l.check(keys.domain == queries.domain && keys.rows.width == queries.rows.width, "k", "names '", k,
            "', which is not of the domain and the width of '", q, "'");
    l.check(values.domain == queries.domain, "in", "names '", in, "', which is not of the domain of '", q, "'");
    l.check(queries.rows.width % heads == 0 && values.rows.width % heads == 0, "heads", "is ", heads,
            ", which does not divide the ", queries.rows.width, " columns of '", q, "' and the ", values.rows.width,
            " of '", in, "'");
    l.check(grid.max_rows <= kMostRows, "q", "names '", q, "' of ", grid.max_rows, " rows a sequence; at most ",
            kMostRows, " are inverted");
    const int one = l.made_domain("sequences", sequences, queries, DomainKind::kOne);
    const NystromStep::Shape shape{static_cast<int>(grid.max_rows), static_cast<int>(heads),
                                   static_cast<int>(iterations), static_cast<float>(scale)};
    const size_t floats =
        NystromStep::memory(shape.rows, queries.rows.width / shape.heads, values.rows.width / shape.heads);
    l.begin_stage(one);
    const Operand from_q = l.gather(queries.rows), from_k = l.gather(keys.rows), from = l.gather(values.rows);
    const Operand memory = l.working(one, floats * sizeof(float));
    const Operand to = l.write_apart(out, queries.domain, values.rows.width);
    l.emit<NystromStep>(queries.domain, from_q, from_k, from, to, memory, shape);
  }

 private:
  static constexpr int64_t kMostRows = 1 << 10;
};

}  // namespace pocketformer
