// Operators that work on whole sequences and images: tokens that merge or leave, attention in linear time, norms and
// pools of an image.
#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "parts.h"

namespace pocketformer {

class Forms : public Parts {
 public:
  explicit Forms(FuzzedDataProvider& bytes) : Parts(bytes) {}

 protected:
  // So many rows for each sequence of `in`.
  size_t few(const Value& in) { return grid(in, 1, bytes_.ConsumeIntegralInRange<int64_t>(1, 20)); }

  // What is made of all rows of a sequence, in time that grows with them.
  void along(const Value& in) {
    const std::string stored = name();
    const size_t to = bytes_.ConsumeBool() ? few(in) : in.domain;
    const int64_t heads = in.width % 2 == 0 && bytes_.ConsumeBool() ? 2 : 1;
    const auto rows = [&](size_t domain) { return std::clamp<int64_t>(rows_[domain].max_rows, 1, 1 << 10); };
    switch (bytes_.ConsumeIntegralInRange(0, 4)) {
      case 0: {
        Record options;
        if (bytes_.ConsumeBool()) {
          tensor(stored, DType::kF32, {up(in.width, 16)});
          options.emplace_back("fill", text(stored));
        }
        return made(in, "fit", in.width, to, std::move(options));
      }
      case 1:
        tensor(stored, DType::kF32, {heads, rows(to), up(rows(in.domain), 16)});
        return made(in, "mix", in.width, to,
                    {{"weight", text(stored)}, {"heads", number(heads)}, {"softmax", {bytes_.ConsumeBool()}}});
      case 2: {
        const int64_t taps = or_wrong(1 + 2 * bytes_.ConsumeIntegralInRange<int64_t>(0, 5));
        tensor(stored, DType::kF32, {taps, up(in.width, 16)});
        Record options{{"weight", text(stored)}, {"taps", number(taps)}};
        if (bytes_.ConsumeBool()) options.emplace_back("residual", text(pick_beside(in).name));
        return simple("convolve", in, std::move(options));
      }
      case 3:
        return linear_attention(in, stored, heads);
      default:
        return simple("nystrom", in,
                      {{"q", text(in.name)},
                       {"k", text(in.name)},
                       {"sequences", text(rows_[each(in.domain)].name)},
                       {"heads", number(heads)},
                       {"iterations", number(bytes_.ConsumeIntegralInRange<int64_t>(0, 6))},
                       {"scale", Item{0.25}}});
    }
  }

  // What is made of an image as a whole, and of each row with it.
  void whole(const Value& in) {
    const size_t one = each(in.domain);
    if (bytes_.ConsumeBool()) {
      made(in, "moments", 2, one, {{"eps", Item{wrong() ? bytes_.ConsumeFloatingPoint<double>() : 1e-5}}});
      const std::string moments = values_.back().name, stored = name();
      tensor(stored, DType::kF32, {up(in.width, 16)});
      return simple("standardize", in, {{"moments", text(moments)}, {"weight", text(stored)}, {"bias", text(stored)}});
    }
    const int64_t parts = in.width > 0 && in.width % 3 == 0 && bytes_.ConsumeBool() ? 3 : 1;
    const std::string scores = columns(in, 0, or_wrong(parts));
    made(in, "soft_pool", in.width, one, {{"scores", text(scores)}});
    const Value pooled = values_.back();
    if (bytes_.ConsumeBool()) made(pooled, "spread", in.width, in.domain, {});
  }

  void average(const Value& in, size_t to, Record options) {
    if ((to == in.domain) != wrong() && bytes_.ConsumeBool()) {
      const std::string stored = name();
      tensor(stored, DType::kF32, {up(in.width, 16)});
      options.emplace_back("weight", text(stored));
    }
    made(in, "average", in.width, to, std::move(options));
  }

  void head_mean(const Value& in) {
    const int64_t heads = in.width > 0 && in.width % 2 == 0 ? 2 : or_wrong(1);
    simple("head_mean", in, {{"heads", number(heads)}});
    values_.back().width = heads > 0 ? in.width / heads : 1;
  }

  // A row for each block of a sequence before its own.
  void summarize(const Value& in) {
    const std::string stored = name();
    const int64_t size = bytes_.ConsumeIntegralInRange<int64_t>(1, 16), rows = rows_[in.domain].max_rows;
    tensor(stored, DType::kF32, {up(in.width, 16)});
    const size_t to = add_domain({.name = new_domain(),
                                  .kind = "ragged",
                                  .of = rows_[in.domain].name,
                                  .max_rows = sum(rows, rows / size),
                                  .summarized = or_wrong(size)});
    made(in, "summarize", in.width, to, {{"weight", text(stored)}, {"eps", Item{1e-6}}});
  }

  // Tokens of sequences of one length become fewer.
  void merge(const Value& in) {
    const int64_t tokens = std::clamp<int64_t>(rows_[in.domain].max_rows, 0, 1 << 20);
    const int64_t kept = bytes_.ConsumeIntegralInRange<int64_t>(0, 2);
    const int64_t most = std::clamp<int64_t>((tokens - kept) / 2, 1, 1 << 10);
    const int64_t merged = or_wrong(bytes_.ConsumeIntegralInRange<int64_t>(1, most));
    const auto before = matches_.find(in.domain);
    Record after;
    if (before != matches_.end() && !wrong()) after.emplace_back("after", text(before->second.name));
    const int64_t total = before == matches_.end() ? tokens : before->second.total;
    const std::string stored = name(), match = "m" + std::to_string(ops_.size());
    tensor(stored, DType::kF32, {up(total, 16)});
    simple("normalize", in, {});
    Record fields{{"op", text("match")},       {"in", text(values_.back().name)},
                  {"out", text(match)},        {"domain", text(rows_[each(in.domain)].name)},
                  {"merged", number(merged)},  {"kept", number(kept)},
                  {"logarithms", text(stored)}};
    fields.insert(fields.end(), after.begin(), after.end());
    ops_.push_back(record(std::move(fields)));
    const size_t to = add_domain({.name = new_domain(),
                                  .kind = "ragged",
                                  .of = rows_[in.domain].name,
                                  .max_rows = tokens - std::clamp<int64_t>(merged, 0, tokens),
                                  .merged = merged});
    matches_[to] = {match, total};
    after.emplace_back("matches", text(match));
    made(in, "merge", in.width, to, std::move(after));
  }

  // The `match` that made the tokens of a domain, for attention; null where there is none.
  const std::string* match_of(size_t domain) const {
    const auto found = matches_.find(domain);
    return found == matches_.end() ? nullptr : &found->second.name;
  }

  // Some tokens leave. What the first ones add up to comes last: a graph cannot end in rows that may be none.
  void halt(const Value& in) {
    const std::string halts = "h" + std::to_string(ops_.size()), of = rows_[in.domain].name;
    const size_t one = each(in.domain);
    Record fields{{"op", text("halt")},
                  {"in", text(in.name)},
                  {"out", text(halts)},
                  {"domain", text(rows_[one].name)},
                  {"scale", Item{bytes_.ConsumeBool() ? 1.0 : 0.25}},
                  {"center", Item{bytes_.ConsumeBool() ? 0.0 : 3.0}},
                  {"threshold", Item{0.99}},
                  {"last", {bytes_.ConsumeIntegralInRange(0, 3) == 3}}};
    const auto before = halts_.find(in.domain);
    if (before != halts_.end() && !wrong()) fields.emplace_back("after", text(before->second));
    ops_.push_back(record(std::move(fields)));
    if (bytes_.ConsumeIntegralInRange(0, 3) != 3) {
      const size_t to = add_domain(
          {.name = new_domain(), .kind = "ragged", .of = of, .max_rows = rows_[in.domain].max_rows, .halting = true});
      halts_[to] = halts;
      made(in, "keep", in.width, to, {{"halts", text(halts)}});
    }
    Record options{{"halts", text(halts)}};
    if (bytes_.ConsumeBool()) {
      const auto fits = [&](const Value& value) {
        return value.width == in.width && rows_[value.domain].kind == "one";
      };
      const auto with = std::find_if(values_.begin(), values_.end(), fits);
      if (with != values_.end()) options.emplace_back("with", text(with->name));
    }
    made(in, "contribute", in.width, one, std::move(options));
  }

 private:
  struct Match {
    std::string name;
    int64_t total;  // tokens before any merged
  };

  // The domain of one row for each sequence of another.
  size_t each(size_t domain) {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].kind == "one" && rows_[i].of == rows_[domain].name) return i;
    }
    return add_domain({new_domain(), "one", rows_[domain].name});
  }

  void linear_attention(const Value& in, const std::string& stored, int64_t heads) {
    const Value values = pick_beside(in);
    const int64_t parts = values.width % heads == 0 ? heads : or_wrong(1), count = or_wrong(16 * heads);
    tensor(stored, DType::kF32, {count, parts > 0 ? in.width / parts : 1});
    const std::string sequences = rows_[each(in.domain)].name;
    Record op{{"op", text("linear_attention")}, {"sequences", text(sequences)}, {"eps", Item{1e-4}}};
    for (const char* field : {"q", "k"}) op.emplace_back(field, text(in.name));
    op.insert(op.end(), {{"v", text(values.name)},
                         {"features", text(stored)},
                         {"heads", number(parts)},
                         {"count", number(count)},
                         {"scale", Item{0.25}},
                         {"causal", {bytes_.ConsumeBool()}},
                         {"out", text(define(values.width, in.domain))}});
    ops_.push_back(record(std::move(op)));
  }

  std::map<size_t, Match> matches_;
  std::map<size_t, std::string> halts_;
};

}  // namespace pocketformer
