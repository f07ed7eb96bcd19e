// Rows as sums over the rows of their sequence, by a stored matrix: a sequence projected along its length (Linformer),
// or attention whose scores are learnt (the random Synthesizer).
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/row_products.h"
#include "runtime/worker.h"

namespace pocketformer {

class MixStep final : public Step {
 public:
  struct Shape {
    const float* weight;  // [heads][rows][ld]
    size_t ld, rows;
    int heads;
    bool softmax;
  };

  MixStep(int from, int to, Operand in, Operand out, Operand scores, const Shape& shape)
      : Step("mix", Split::kRows), from_(from), to_(to), in_(in), out_(out), scores_(scores), shape_(shape) {}

  void run(const Worker& w) const override {
    const size_t padding = w.ld(out_) - static_cast<size_t>(out_.width);
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      const int position = row - static_cast<int>(w.offsets(to_)[sequence]);
      for (int i = 0; i < count; i += kTile) {
        const int tile = std::min(kTile, count - i);
        for (int head = 0; head < shape_.heads; ++head) mix(w, sequence, position + i, row + i, tile, head);
      }
      for (int i = row; i < row + count; ++i) std::memset(w.at(out_, i) + out_.width, 0, padding * sizeof(float));
    });
  }

  Work work() const override {
    return {.elements = static_cast<double>(out_.width),
            .scores = 1,
            .score_multiply_adds = static_cast<double>(out_.width),
            .keys = from_};
  }

  static constexpr int kTile = 60;  // rows at a time, of whole register tiles: packing costs a multiply-add in so many

 private:
  // Of the rows [row, row + count), `position` in their sequence, one head.
  void mix(const Worker& w, int sequence, int position, int row, int count, int head) const {
    constexpr int kDeep = 128;  // rows of a panel: half of a first-level cache with what they are multiplied by
    const int length = w.length(from_, sequence), first = static_cast<int>(w.offsets(from_)[sequence]);
    const int width = out_.width / shape_.heads;
    const size_t begin = static_cast<size_t>(head) * shape_.rows + static_cast<size_t>(position);
    const float* weight = shape_.weight + begin * shape_.ld;
    if (shape_.softmax) {
      float* const scores = w.working(scores_);
      w.kernels().softmax({weight, shape_.ld, scores, shape_.ld, count, length});
      weight = scores;
    }
    alignas(kAlignment) float panel[kDeep * kLanes], sums[kTile * kLanes];
    for (int c = 0; c < width; c += kLanes) {
      const int columns = std::min(kLanes, width - c), column = head * width + c;
      for (int k = 0; k < length; k += kDeep) {
        const int deep = std::min(kDeep, length - k);
        pack_columns(w.at(in_, first + k) + column, w.ld(in_), deep, columns, panel);
        multiply(w.kernels(), {weight + k, shape_.ld, count, deep, panel, columns, sums, kLanes, k > 0});
      }
      for (int i = 0; i < count; ++i) {
        std::memcpy(w.at(out_, row + i) + column, sums + i * kLanes, static_cast<size_t>(columns) * sizeof(float));
      }
    }
  }

  int from_, to_;
  Operand in_, out_, scores_;
  Shape shape_;
};

struct Mix {
  std::string in, out, domain, weight;
  int64_t heads = 1;
  bool softmax = false;

  static constexpr const char* kName = "mix";
  static constexpr const char* kDoc =
      "`out[i] = Σ_j weight[i, j] · in[j]` over the rows j of i's sequence, in float32, 128 after 128 of them, fused; "
      "the "
      "matrix is cut to the rows that there are";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Mix::in, "rows of sequences, of heads side by side"),
        name("out", &Mix::out, "rows as wide"),
        name("domain", &Mix::domain, "of the result: rows of the same sequences, ragged or a grid"),
        name("weight", &Mix::weight,
             "tensor f32 [heads, most rows of the result, most rows of `in` up to 16s], rows of one sequence"),
        optional_integer("heads", &Mix::heads, 1, kMaxWidth, "parts of a row, each with a matrix of its own"),
        flag("softmax", &Mix::softmax, "of what is left of each row of the matrix")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const int to = l.domain("domain", domain), width = from.rows.width;
    const Domain& made = l.program().domains[static_cast<size_t>(to)];
    l.check(l.domain_of(from).has_offsets(), "in", "names '", in, "', whose rows are of no sequences");
    l.check(made.has_offsets(), "domain", "is '", domain, "', whose rows are of no sequences");
    l.check(width % heads == 0, "heads", "is ", heads, ", which does not divide the ", width, " columns of '", in, "'");
    const int64_t ld = padded(l.domain_of(from).max_rows);
    MixStep::Shape shape{l.tensors().take_floats(l.place(), weight, {heads, made.max_rows, ld}),
                         static_cast<size_t>(ld), static_cast<size_t>(made.max_rows), static_cast<int>(heads), softmax};
    l.enter_to_gather(to, from.rows);
    const size_t row = static_cast<size_t>(ld) * sizeof(float);
    const Operand scores = softmax ? l.working(to, MixStep::kTile * row) : Operand{};
    const Operand mixed = l.write(out, to, width);
    l.emit<MixStep>(from.domain, to, l.gather(from.rows), mixed, scores, shape);
  }
};

}  // namespace pocketformer
