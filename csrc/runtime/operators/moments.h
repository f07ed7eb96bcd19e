// The norm of a whole sequence: its mean and deviation over all rows and columns, then each row by them (a group norm
// of one group, Wu and He, arXiv 1803.08494).
#pragma once

#include <cmath>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class MomentsStep final : public Step {
 public:
  MomentsStep(int domain, Operand in, Operand out, float eps, int64_t rows)
      : Step("moments", Split::kRepeat), domain_(domain), in_(in), out_(out), eps_(eps), rows_(rows) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      const int first = static_cast<int>(w.offsets(domain_)[sequence]), rows = w.length(domain_, sequence);
      const double entries = static_cast<double>(rows) * in_.width;
      double sum = 0, squares = 0;
      for (int i = 0; i < rows; ++i) sum += total(w.at(in_, first + i), [](float x) { return x; });
      const float mean = static_cast<float>(sum / entries);
      for (int i = 0; i < rows; ++i) {
        squares += total(w.at(in_, first + i), [mean](float x) { return (x - mean) * (x - mean); });
      }
      float* const out = w.at(out_, sequence);
      std::memset(out, 0, w.row_bytes(out_));
      out[0] = mean;
      out[1] = 1.0f / std::sqrt(static_cast<float>(squares / entries) + eps_);
    }
  }

  Work work() const override { return {.elements = 2.0 * in_.width * static_cast<double>(rows_)}; }

 private:
  // Sixteen lanes and a tree: the same bits with any compiler and on any machine.
  template <class Fn>
  float total(const float* x, Fn fn) const {
    float lanes[kLanes] = {};
    int c = 0;
    for (; c + kLanes <= in_.width; c += kLanes) {
      for (int i = 0; i < kLanes; ++i) lanes[i] += fn(x[c + i]);
    }
    for (int i = 0; c + i < in_.width; ++i) lanes[i] += fn(x[c + i]);
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }

  int domain_;
  Operand in_, out_;
  float eps_;
  int64_t rows_;  // at most
};

struct Moments {
  std::string in, out, domain;
  double eps = 0;

  static constexpr const char* kName = "moments";
  static constexpr const char* kDoc =
      "`out` = the mean of all entries of a sequence's rows, and one over their deviation: the root of the variance "
      "and `eps`";
  static constexpr auto fields() {
    return std::tuple{name("in", &Moments::in, "rows of sequences"),
                      name("out", &Moments::out, "a row of two columns a sequence"),
                      name("domain", &Moments::domain, "of the result: `one` row a sequence"),
                      number_above("eps", &Moments::eps, 0, "added to the variance")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    l.check(l.domain_of(from).has_offsets(), "in", "names '", in, "', whose rows are of no sequence");
    l.check(!l.domain_of(from).halting, "in", "names '", in, "', whose sequences may be empty");
    const int one = l.sequences("domain", domain, from.domain);
    l.begin_stage(one);
    const Operand to = l.write(out, one, 2);
    l.emit<MomentsStep>(from.domain, l.gather(from.rows), to, static_cast<float>(eps), l.domain_of(from).max_rows);
  }
};

class StandardizeStep final : public Step {
 public:
  StandardizeStep(int domain, Operand in, Operand moments, Operand out, const float* weight, const float* bias)
      : Step("standardize", Split::kRepeat),
        domain_(domain),
        in_(in),
        moments_(moments),
        out_(out),
        weight_(weight),
        bias_(bias) {}

  void run(const Worker& w) const override {
    w.for_each_piece(domain_, [&](int sequence, int row, int count) {
      const float mean = w.at(moments_, sequence)[0], factor = w.at(moments_, sequence)[1];
      for (int i = row; i < row + count; ++i) {
        const float* const in = w.at(in_, i);
        float* const out = w.at(out_, i);
        for (int c = 0; c < in_.width; ++c) out[c] = (in[c] - mean) * factor * weight_[c] + bias_[c];
        std::memset(out + in_.width, 0, w.row_bytes(out_) - static_cast<size_t>(in_.width) * sizeof(float));
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int domain_;
  Operand in_, moments_, out_;
  const float *weight_, *bias_;
};

struct Standardize {
  std::string in, out, moments, weight, bias;

  static constexpr const char* kName = "standardize";
  static constexpr const char* kDoc = "`out = (in − mean) · factor · weight + bias`, with the moments of the sequence";
  static constexpr auto fields() {
    return std::tuple{name("in", &Standardize::in, "rows of sequences"),
                      name("out", &Standardize::out, "rows of their width"),
                      name("moments", &Standardize::moments, "two columns, the mean and the factor, a row a sequence"),
                      name("weight", &Standardize::weight, "tensor f32 [columns up to 16s]"),
                      name("bias", &Standardize::bias, "tensor f32 [columns up to 16s]")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in), by = l.floats("moments", moments);
    l.check(l.domain_of(from).has_offsets(), "in", "names '", in, "', whose rows are of no sequence");
    l.row_of_sequence("moments", moments, by, from.domain);
    l.check(by.rows.width == 2, "moments", "names '", moments, "' of ", by.rows.width, " columns; they must be 2");
    const float *const w = l.vector(weight, from.rows.width), *const b = l.vector(bias, from.rows.width);
    l.enter_to_gather(from.domain, by.rows);
    const Operand read = l.read(from.rows), known = l.gather(by.rows);
    const Operand to = l.write(out, from.domain, from.rows.width);
    l.emit<StandardizeStep>(from.domain, read, known, to, w, b);
  }
};

}  // namespace pocketformer
