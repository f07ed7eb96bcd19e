// Tokens that have said enough leave (A-ViT, Yin et al., arXiv 2112.07658): after a layer each adds a share to its sum,
// and leaves where that is full. How many rows remain is known as the run goes: the thread that ends a stage last
// writes where the sequences of the next one begin.
#pragma once

#include <cmath>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

// A row for each sequence: how many of its tokens stay, what its first one counts, the sums of those that stay, and
// where each of these is. The first token is the result: where it stops, nothing that the others do is of use, and all
// leave.
class HaltStep final : public Step {
 public:
  struct Gate {
    float scale, center, threshold;
    bool last;
  };
  static constexpr int kSums = 2;  // the column that they begin at

  HaltStep(int domain, Operand in, Operand after, Operand out, int tokens, const Gate& gate)
      : Step("halt", Split::kRepeat), domain_(domain), in_(in), after_(after), out_(out), tokens_(tokens), g_(gate) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      const float* const before = after_ ? w.at(after_, sequence) + kSums : nullptr;
      float* const row = w.at(out_, sequence);
      float *const sums = row + kSums, *const places = sums + tokens_;
      const int first = static_cast<int>(w.offsets(domain_)[sequence]), length = w.length(domain_, sequence);
      int count = 0;
      row[1] = 0;
      for (int i = 0; i < length; ++i) {
        const float sum = before == nullptr ? 0.0f : before[i];
        const float added = g_.last ? 1.0f : share_of(w, w.at(in_, first + i)[0]);
        const bool stops = !(sum + added < g_.threshold);
        if (i == 0) row[1] = stops ? 1.0f - sum : added;
        if (i == 0 && stops) break;
        if (stops) continue;
        sums[count] = sum + added;
        places[count++] = static_cast<float>(i);
      }
      row[0] = static_cast<float>(count);
    }
  }

  Work work() const override { return {.elements = 2.0 * kLanes * tokens_}; }

 private:
  // The logistic function of a token's first channel, as the softmax of 0 and it: the same bits on any machine.
  float share_of(const Worker& w, float x) const {
    float pair[2] = {0.0f, g_.scale * x - g_.center};
    w.kernels().softmax({.x = pair, .ldx = 2, .out = pair, .ldo = 2, .rows = 1, .width = 2});
    return pair[1];
  }

  int domain_;
  Operand in_, after_, out_;
  int tokens_;  // at most
  Gate g_;
};

struct Halt {
  std::string in, out, domain, after;
  double scale = 0, center = 0, threshold = 0;
  bool last = false;

  static constexpr const char* kName = "halt";
  static constexpr const char* kDoc =
      "`out` = which tokens of a sequence stay: to the sum of each, 0 at first, is added 1/(1 + exp(center − scale · "
      "its "
      "first column)), and it stays where that is below `threshold`; where the first one does not, none does";
  static constexpr auto fields() {
    return std::tuple{name("in", &Halt::in, "rows of tokens"),
                      name("out", &Halt::out, "a row a sequence, for `keep` and `contribute` alone"),
                      name("domain", &Halt::domain, "of the result: `one` row a sequence"),
                      optional_name("after", &Halt::after, "the `halt` by which these tokens stayed; none: all did"),
                      number_above("scale", &Halt::scale, 0, "of the first column"),
                      number_from("center", &Halt::center, -1e6, "what is taken off that"),
                      number_above("threshold", &Halt::threshold, 0, "of the sums"),
                      flag("last", &Halt::last, "all tokens stop: 1 is added")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const Domain& of = l.domain_of(from);
    l.check(of.has_offsets(), "in", "names '", in, "', whose rows are of no sequence");
    const int one = l.sequences("domain", domain, from.domain);
    const Value before = after.empty() ? Value{} : l.halts("after", after, of.of);
    l.check(after.empty() == !of.halting && (after.empty() || of.settled_by == before.rows.buffer), "after", "is '",
            after, "', which is not the `halt` by which the rows of '", of.name, "' stayed");
    const int64_t width = HaltStep::kSums + 2 * of.max_rows;
    l.check(width <= kMaxWidth, "in", "names '", in, "' of ", of.max_rows, " tokens a sequence, which are too many");
    l.begin_stage(one);
    Value to{l.scratch(one, static_cast<int>(width), static_cast<int>(padded(width)), sizeof(float)), one, {}};
    to.halted = from.domain;
    l.define(out, to);
    const HaltStep::Gate gate{.scale = static_cast<float>(scale),
                              .center = static_cast<float>(center),
                              .threshold = static_cast<float>(threshold),
                              .last = last};
    const Operand rows = l.gather(from.rows, true), earlier = l.read(before.rows);
    l.emit<HaltStep>(from.domain, rows, earlier, to.rows, static_cast<int>(of.max_rows), gate);
  }
};

class KeepStep final : public Step {
 public:
  KeepStep(int from, int to, Operand in, Operand halts, Operand out, int tokens)
      : Step("keep", Split::kRepeat), from_(from), to_(to), in_(in), halts_(halts), out_(out), tokens_(tokens) {}

  void run(const Worker& w) const override {
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      const float* const places = w.at(halts_, sequence) + HaltStep::kSums + tokens_;
      const int begin = static_cast<int>(w.offsets(from_)[sequence]);
      for (int i = row; i < row + count; ++i) {
        const int place = static_cast<int>(places[w.position(to_, sequence, i)]);
        std::memcpy(w.at(out_, i), w.at(in_, begin + place), w.row_bytes(out_));
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int from_, to_;
  Operand in_, halts_, out_;
  int tokens_;
};

struct Keep {
  std::string in, out, domain, halts;

  static constexpr const char* kName = "keep";
  static constexpr const char* kDoc = "`out` = the tokens that stay, in their order";
  static constexpr auto fields() {
    return std::tuple{name("in", &Keep::in, "rows of tokens"), name("out", &Keep::out, "those that stay"),
                      name("domain", &Keep::domain, "of the result: `halting`, of that of `in`"),
                      name("halts", &Keep::halts, "the `halt` that looked at these tokens")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kRagged);
    const Value found = l.halts("halts", halts, from.domain);
    l.settle("domain", made, found);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    const Operand rows = l.gather(from.rows, true), stay = l.gather(found.rows);
    l.emit<KeepStep>(from.domain, made, rows, stay, to, static_cast<int>(l.domain_of(from).max_rows));
  }
};

class ContributeStep final : public Step {
 public:
  ContributeStep(int domain, Operand in, Operand halts, Operand with, Operand out)
      : Step("contribute", Split::kRepeat), domain_(domain), in_(in), halts_(halts), with_(with), out_(out) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      float* const out = w.at(out_, sequence);
      if (with_) {
        std::memcpy(out, w.at(with_, sequence), w.row_bytes(out_));
      } else {
        std::memset(out, 0, w.row_bytes(out_));
      }
      if (w.length(domain_, sequence) == 0) continue;
      const float share = w.at(halts_, sequence)[1];
      const float* const in = w.at(in_, static_cast<int>(w.offsets(domain_)[sequence]));
      for (int c = 0; c < in_.width; ++c) out[c] += share * in[c];
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int domain_;
  Operand in_, halts_, with_, out_;
};

struct Contribute {
  std::string in, out, domain, halts, with;

  static constexpr const char* kName = "contribute";
  static constexpr const char* kDoc =
      "`out = with + share · first`: what the first token of each sequence adds after a layer, by its share, or what "
      "is "
      "left of 1 where it stops; nothing where it has left";
  static constexpr auto fields() {
    return std::tuple{name("in", &Contribute::in, "rows of tokens"), name("out", &Contribute::out, "a row a sequence"),
                      name("domain", &Contribute::domain, "of the result: `one` row a sequence"),
                      name("halts", &Contribute::halts, "the `halt` that looked at these tokens"),
                      optional_name("with", &Contribute::with, "what it added after earlier layers; none: zeros")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int one = l.sequences("domain", domain, from.domain);
    const Value found = l.halts("halts", halts, from.domain);
    const Value before = with.empty() ? Value{} : l.dense("with", with);
    if (!with.empty()) l.row_of_sequence("with", with, before, from.domain);
    l.check(with.empty() || before.rows.width == from.rows.width, "with", "names '", with, "' of ", before.rows.width,
            " columns; '", in, "' has ", from.rows.width);
    l.enter_to_gather(one, from.rows);
    const Operand rows = l.gather(from.rows, true), shares = l.read(found.rows), earlier = l.read(before.rows);
    const Operand to = l.write(out, one, from.rows.width);
    l.emit<ContributeStep>(from.domain, rows, shares, earlier, to);
  }
};

}  // namespace pocketformer
