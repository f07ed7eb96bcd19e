// Tokens that say much the same become one (token merging, Bolya et al., arXiv 2210.09461): every second token finds
// the one among the others that its keys are most like, the most alike pairs merge, and a token knows how many it is.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

// Four numbers at once, as every compiler and machine has them.
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
inline const Four& four(const float* x) { return *reinterpret_cast<const Four*>(x); }

class HeadMeanStep final : public Step {
 public:
  HeadMeanStep(Operand in, Operand out) : Step("head_mean", Split::kRepeat), in_(in), out_(out) {}

  void run(const Worker& w) const override {
    const int heads = in_.width / out_.width;
    for (int row = w.begin(); row < w.end(); ++row) {
      const float* in = w.at(in_, row);
      float* out = w.at(out_, row);
      std::memset(out, 0, w.row_bytes(out_));
      for (int h = 0; h < heads; ++h, in += out_.width) {
        for (int d = 0; d < out_.width; ++d) out[d] += in[d];
      }
      for (int d = 0; d < out_.width; ++d) out[d] /= static_cast<float>(heads);
    }
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  Operand in_, out_;
};

struct HeadMean {
  std::string in, out;
  int64_t heads = 0;

  static constexpr const char* kName = "head_mean";
  static constexpr const char* kDoc = "`out` = the mean of the heads of `in`";
  static constexpr auto fields() {
    return std::tuple{name("in", &HeadMean::in, "rows of heads side by side"),
                      name("out", &HeadMean::out, "rows of a head's columns"),
                      integer("heads", &HeadMean::heads, 1, kMaxWidth, "parts of a row")};
  }

  void lower(Lowering& l) const {
    const Value from = l.floats("in", in);
    const int64_t width = from.rows.width / heads;
    l.check(width * heads == from.rows.width, "heads", "is ", heads, ", which does not divide the ", from.rows.width,
            " columns of '", in, "'");
    l.enter(from.domain);
    const Operand to = l.write(out, from.domain, width);
    l.emit<HeadMeanStep>(l.read(from.rows), to);
  }
};

// A row for each sequence of `tokens` tokens, of which `left` remain: the place of each token among those that remain,
// then, of each of these, how many tokens it is, and the logarithm of that.
class MatchStep final : public Step {
 public:
  struct Shape {
    int from, tokens, kept, merged;
    const float* logarithms;
  };

  // `sizes`: the column of `after` where the tokens' sizes begin, kNone where each counts once.
  MatchStep(Operand in, Operand after, int sizes, Operand out, const Shape& shape)
      : Step("match", Split::kRepeat), in_(in), after_(after), sizes_(sizes), out_(out), s_(shape) {}

  void run(const Worker& w) const override {
    for (int sequence = w.begin(); sequence < w.end(); ++sequence) {
      const int left = s_.tokens - s_.merged;
      float* const places = w.at(out_, sequence);
      float* const sizes = places + s_.tokens;
      float* const logarithms = sizes + left;
      find(w, static_cast<int>(w.offsets(s_.from)[sequence]), sizes, logarithms);
      place(places, sizes, logarithms);
      const float* const before = sizes_ == kNone ? nullptr : w.at(after_, sequence) + sizes_;
      std::fill(sizes, sizes + left, 0.0f);
      for (int i = 0; i < s_.tokens; ++i) sizes[static_cast<int>(places[i])] += before == nullptr ? 1.0f : before[i];
      for (int i = 0; i < left; ++i) logarithms[i] = s_.logarithms[static_cast<int>(sizes[i]) - 1];
    }
  }

  Work work() const override {
    const double pairs = 0.25 * s_.tokens * s_.tokens;
    return {.multiply_adds = pairs * in_.width, .elements = static_cast<double>(out_.width)};
  }

 private:
  int first_source() const { return s_.kept + s_.kept % 2; }      // even tokens may go
  int first_target() const { return s_.kept + 1 - s_.kept % 2; }  // into odd ones
  static int sources(int tokens, int first) { return (tokens - first + 1) / 2; }

  // Of each source, in order, the most alike target, the first of equals, and how alike it is.
  void find(const Worker& w, int row, float* targets, float* scores) const {
    for (int i = first_source(), n = 0; i < s_.tokens; i += 2, ++n) {
      const float* const source = w.at(in_, row + i);
      int best = first_target();
      float most = -2.0f;  // less than any cosine
      for (int j = best; j < s_.tokens; j += 2) {
        const float score = dot(source, w.at(in_, row + j), static_cast<size_t>(padded(in_.width)));
        if (score > most) best = j, most = score;
      }
      targets[n] = static_cast<float>(best);
      scores[n] = most;
    }
  }

  // Sixteen lanes and a tree: the same bits with any compiler and on any machine. `width` is a multiple of 16, with
  // zeros after the last channel.
  static float dot(const float* a, const float* b, size_t width) {
    Four sum[4] = {};
    for (size_t k = 0; k < width; k += 16) {
      for (size_t lane = 0; lane < 4; ++lane) {
        sum[lane] += four(a + k + 4 * lane) * four(b + k + 4 * lane);
      }
    }
    const Four all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    return (all[0] + all[1]) + (all[2] + all[3]);
  }

  // The first tokens stay in front, then come the sources that remain, then the targets.
  void place(float* places, const float* targets, float* scores) const {
    const int first = first_source(), count = sources(s_.tokens, first);
    std::fill(places, places + s_.tokens, 0.0f);
    for (int m = 0; m < s_.merged; ++m) {  // the most alike, the first of equals
      int best = -1;
      for (int n = 0; n < count; ++n) {
        const bool gone = places[first + 2 * n] < 0;
        if (!gone && (best < 0 || scores[n] > scores[best])) best = n;
      }
      places[first + 2 * best] = -1.0f;
    }
    int next = 0;
    for (int i = 0; i < s_.kept; ++i) places[i] = static_cast<float>(next++);
    for (int i = first; i < s_.tokens; i += 2) {
      if (places[i] == 0.0f) places[i] = static_cast<float>(next++);
    }
    for (int i = first_target(); i < s_.tokens; i += 2) places[i] = static_cast<float>(next++);
    for (int n = 0; n < count; ++n) {
      if (places[first + 2 * n] < 0) places[first + 2 * n] = places[static_cast<int>(targets[n])];
    }
  }

  Operand in_, after_;
  int sizes_;
  Operand out_;
  Shape s_;
};

struct Match {
  std::string in, out, domain, after, logarithms;
  int64_t merged = 0, kept = 0;

  static constexpr const char* kName = "match";
  static constexpr const char* kDoc =
      "`out` = which tokens of a sequence become one: of the even tokens after the first `kept`, the `merged` whose "
      "product with one of the odd ones is largest, into that one; of equals the first";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Match::in, "rows of length 1, of sequences that are all of one length"),
        name("out", &Match::out, "a row a sequence, for `merge` and `attention` alone"),
        name("domain", &Match::domain, "of the result: `one` row a sequence"),
        integer("merged", &Match::merged, 1, kMaxRows, "tokens that go, at most half of those that may"),
        optional_integer("kept", &Match::kept, 0, kMaxRows, "first tokens of a sequence that never merge"),
        optional_name("after", &Match::after, "the `match` that made these tokens; without one each counts once"),
        name("logarithms", &Match::logarithms,
             "tensor f32 [first tokens up to 16s]: entry n − 1 is the logarithm of n")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const Domain& of = l.domain_of(from);
    l.check(of.has_offsets() && of.least_rows == of.max_rows, "in", "names '", in,
            "', whose sequences are of different lengths");
    l.check(kept <= of.max_rows && merged <= (of.max_rows - kept) / 2, "merged", "is ", merged, "; at most ",
            std::max<int64_t>(of.max_rows - kept, 0) / 2, " of ", of.max_rows, " tokens with ", kept, " kept can go");
    const int one = l.sequences("domain", domain, from.domain);
    const Value before = after.empty() ? Value{} : l.matches("after", after, from.domain);
    const int64_t tokens = of.max_rows, left = tokens - merged, width = tokens + 2 * left;
    const int64_t total = after.empty() ? tokens : before.total;
    l.check(3 * total <= kMaxWidth, "in", "names '", in, "' of ", tokens, " tokens a sequence, which are too many");
    const float* table = l.tensors().take_floats(l.place(), logarithms, {padded(total)});
    l.begin_stage(one);
    const int columns = static_cast<int>(width);
    // Rows of one size take each other's place in memory, layer after layer.
    Value to{l.scratch(one, columns, static_cast<int>(padded(3 * total)), sizeof(float)), one, {}};
    to.places = tokens, to.sizes = left, to.total = total;
    l.define(out, to);
    const MatchStep::Shape shape{.from = from.domain,
                                 .tokens = static_cast<int>(tokens),
                                 .kept = static_cast<int>(kept),
                                 .merged = static_cast<int>(merged),
                                 .logarithms = table};
    const int sizes = after.empty() ? kNone : static_cast<int>(before.places);
    const Operand rows = l.gather(from.rows), earlier = l.read(before.rows);
    l.emit<MatchStep>(rows, earlier, sizes, to.rows, shape);
  }
};

class MergeStep final : public Step {
 public:
  MergeStep(int from, int to, Operand in, Operand matches, Operand after, int before, Operand out, int tokens)
      : Step("merge", Split::kRepeat),
        from_(from),
        to_(to),
        in_(in),
        matches_(matches),
        after_(after),
        before_(before),
        out_(out),
        tokens_(tokens) {}

  void run(const Worker& w) const override {
    w.for_each_piece(to_, [&](int sequence, int row, int count) {
      const int first = w.position(to_, sequence, row), begin = static_cast<int>(w.offsets(from_)[sequence]);
      const float* const places = w.at(matches_, sequence);
      const float* const sizes = places + tokens_ + first;
      const float* const before = before_ == kNone ? nullptr : w.at(after_, sequence) + before_;
      std::memset(w.at(out_, row), 0, static_cast<size_t>(count) * w.row_bytes(out_));
      for (int i = 0; i < tokens_; ++i) {
        const int place = static_cast<int>(places[i]) - first;
        if (place < 0 || place >= count) continue;
        const float share = (before == nullptr ? 1.0f : before[i]) / sizes[place];
        const float* const in = w.at(in_, begin + i);
        float* const out = w.at(out_, row + place);
        for (int d = 0; d < in_.width; d += 4) *reinterpret_cast<Four*>(out + d) += share * four(in + d);
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(in_.width)}; }

 private:
  int from_, to_;
  Operand in_, matches_, after_;
  int before_;
  Operand out_;
  int tokens_;
};

struct Merge {
  std::string in, out, domain, matches, after;

  static constexpr const char* kName = "merge";
  static constexpr const char* kDoc =
      "`out` = the means of the tokens that become one, each counted as often as `after` says";
  static constexpr auto fields() {
    return std::tuple{
        name("in", &Merge::in, "rows of tokens"), name("out", &Merge::out, "those that remain"),
        name("domain", &Merge::domain, "of the result: ragged, of that of `in`, with `merged` rows fewer"),
        name("matches", &Merge::matches, "from `match`"),
        optional_name("after", &Merge::after, "the `match` that made these tokens, as that of `matches`")};
  }

  void lower(Lowering& l) const {
    const Value from = l.dense("in", in);
    const int made = l.made_domain("domain", domain, from, DomainKind::kRagged);
    const Value found = l.value("matches", matches);
    const int64_t tokens = l.domain_of(from).max_rows, left = l.program().domains[static_cast<size_t>(made)].max_rows;
    l.check(found.places == tokens && found.sizes == left, "matches", "names '", matches, "', which makes ",
            found.sizes, " tokens of ", found.places, "; here they are ", left, " of ", tokens);
    const Value before = after.empty() ? Value{} : l.matches("after", after, from.domain);
    l.begin_stage(made);
    const Operand to = l.write(out, made, from.rows.width);
    const Operand rows = l.gather(from.rows), matched = l.gather(found.rows), earlier = l.read(before.rows);
    const int sizes = after.empty() ? kNone : static_cast<int>(before.places);
    l.emit<MergeStep>(from.domain, made, rows, matched, earlier, sizes, to, static_cast<int>(tokens));
  }
};

}  // namespace pocketformer
