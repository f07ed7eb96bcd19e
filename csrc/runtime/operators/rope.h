// Rotary position embedding of rows of heads side by side (arXiv 2104.09864).
#pragma once

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

class RopeStep final : public Step {
 public:
  RopeStep(int domain, Operand in, Operand positions, Operand out, int head_dim, int rotated, const float* frequency,
           float factor)
      : Step("rope", Split::kRepeat),
        domain_(domain),
        in_(in),
        positions_(positions),
        out_(out),
        head_dim_(head_dim),
        rotated_(rotated),
        frequency_(frequency),
        factor_(factor) {}

  void run(const Worker& w) const override {
    int32_t* const positions = w.at<int32_t>(positions_, w.begin());
    w.for_each_piece(domain_, [&](int sequence, int row, int count) {
      const int first = w.position(domain_, sequence, row);
      for (int i = 0; i < count; ++i) positions[row - w.begin() + i] = first + i;
    });
    w.kernels().rope({.x = w.at(in_, w.begin()),
                      .ldx = w.ld(in_),
                      .rows = w.rows(),
                      .heads = out_.width / head_dim_,
                      .head_dim = head_dim_,
                      .rotated_dims = rotated_,
                      .frequency = frequency_,
                      .factor = factor_,
                      .position = positions,
                      .out = w.at(out_, w.begin()),
                      .ldo = w.ld(out_)});
  }

  Work work() const override { return {.elements = static_cast<double>(out_.width)}; }

 private:
  int domain_;
  Operand in_, positions_, out_;
  int head_dim_, rotated_;
  const float* frequency_;
  float factor_;
};

struct Rope {
  std::string in, out, frequencies;
  int64_t head_dim = 0, rotated = 0;
  double factor = 1;

  static constexpr const char* kName = "rope";
  static constexpr const char* kDoc =
      "`out` = `in` with channels i and i + rotated/2 of each head turned by the row's position times frequency i";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Rope::in, "rows of heads side by side"),
        name("out", &Rope::out, "likewise"),
        integer("head_dim", &Rope::head_dim, 1, kMaxHeadDim, "columns of a head"),
        integer("rotated", &Rope::rotated, 2, kMaxHeadDim, "columns of a head that turn; even"),
        name("frequencies", &Rope::frequencies,
             "tensor f32 [rotated/2 up to 16s], whatever scaling of long contexts in them; at most 1"),
        number_above("factor", &Rope::factor, 0, "multiplies sine and cosine: YaRN's attention factor, or 1")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    l.check(from.rows.width % head_dim == 0, "head_dim", "is ", head_dim, ", which does not divide the ",
            from.rows.width, " columns of '", in, "'");
    l.check(rotated % 2 == 0 && rotated <= head_dim, "rotated", "is ", rotated,
            "; it must be even and at most head_dim, ", head_dim);
    l.check(l.domain_of(from).has_offsets() && l.domain_of(from).max_rows <= kMaxPosition, "in", "names '", in,
            "'; its rows must have positions, at most ", kMaxPosition);
    const float* frequency = l.vector(frequencies, rotated / 2);
    for (int64_t i = 0; frequency != nullptr && i < rotated / 2; ++i) {
      l.check(frequency[i] >= 0 && frequency[i] <= 1, "frequencies", "holds ", frequency[i], "; they lie in 0…1");
    }
    l.enter(from.domain);
    const Operand positions = l.scratch(from.domain, 1, 1, sizeof(int32_t));
    const Operand to = l.write(out, from.domain, from.rows.width);
    l.emit<RopeStep>(from.domain, l.read(from.rows), positions, to, static_cast<int>(head_dim),
                     static_cast<int>(rotated), frequency, static_cast<float>(factor));
  }

 private:
  static constexpr int64_t kMaxPosition = 1 << 17;  // beyond, the kernel's reduction of angles loses bits
};

}  // namespace pocketformer
