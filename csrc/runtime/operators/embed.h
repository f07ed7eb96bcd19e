// Sums of table rows, looked up by an input's indices or by each row's position in its sequence.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/grouped_table.h"
#include "runtime/lowering.h"
#include "runtime/worker.h"

namespace pocketformer {

struct EmbedTable {
  std::string weight, index;
  int64_t offset = 0;

  static constexpr const char* kPositions = "positions";
  static constexpr auto fields() {
    return std::tuple{
        name("weight", &EmbedTable::weight, "the table"),
        name("index", &EmbedTable::index, "an input of indices, or `positions`: rows counted within each sequence"),
        optional_integer("offset", &EmbedTable::offset, 0, kMaxRows, "added to a position")};
  }
};

class EmbedStep final : public Step {
 public:
  struct Lookup {
    WeightView weight;
    bool panels;
    int input;  // or kNone: positions
    int offset;
  };

  EmbedStep(int domain, Operand in, Operand index, Operand out, std::vector<Lookup> lookups, float scale)
      : Step("embed", Split::kRepeat),
        domain_(domain),
        in_(in),
        index_(index),
        out_(out),
        lookups_(std::move(lookups)),
        scale_(scale) {}

  void run(const Worker& w) const override {
    int32_t* const index = w.at<int32_t>(index_, w.begin());
    float* const out = w.at(out_, w.begin());
    bool accumulate = false;
    if (in_) {
      for (int row = w.begin(); row < w.end(); ++row) std::memmove(w.at(out_, row), w.at(in_, row), w.row_bytes(out_));
      accumulate = true;
    }
    for (const Lookup& lookup : lookups_) {
      fill(w, lookup, index);
      if (lookup.weight.group != 0) {
        for (int row = 0; row < w.rows(); ++row) look_up_grouped(lookup.weight, index[row], out + row * w.ld(out_));
        continue;
      }
      w.kernels().embed({.table = lookup.weight.panels,
                         .scale = lookup.weight.scale,
                         .panels = lookup.panels,
                         .bits = WeightSpec::bits(lookup.weight.format),
                         .codebook = lookup.weight.codebook,
                         .index = index,
                         .rows = w.rows(),
                         .width = out_.width,
                         .rotate = lookup.weight.rotate,
                         .accumulate = accumulate,
                         .out = out,
                         .ldo = w.ld(out_)});
      accumulate = true;
    }
    if (scale_ == 1.0f) return;
    for (int row = w.begin(); row < w.end(); ++row) {
      float* const x = w.at(out_, row);
      for (int i = 0; i < out_.width; ++i) x[i] *= scale_;
    }
  }

  Work work() const override {
    return {.elements = static_cast<double>(out_.width) * static_cast<double>(lookups_.size())};
  }

 private:
  void fill(const Worker& w, const Lookup& lookup, int32_t* index) const {
    if (lookup.input == kNone) {
      w.for_each_piece(domain_, [&](int sequence, int row, int count) {
        const int first = w.position(domain_, sequence, row) + lookup.offset;
        for (int i = 0; i < count; ++i) index[row - w.begin() + i] = first + i;
      });
    } else if (const int32_t* given = w.indices(lookup.input)) {
      std::copy_n(given + w.begin(), w.rows(), index);
    } else {
      std::fill_n(index, w.rows(), 0);
    }
  }

  int domain_;
  Operand in_, index_, out_;
  std::vector<Lookup> lookups_;
  float scale_;
};

struct Embed {
  std::string in, out, domain;
  std::vector<EmbedTable> tables;
  double scale = 1;

  static constexpr const char* kName = "embed";
  static constexpr const char* kDoc = "`out = (in + Σ table[index]) · scale`";
  static constexpr auto fields() {
    return std::tuple{optional_name("in", &Embed::in, "a value that the rows are added to"),
                      name("out", &Embed::out, "the sum"), list("tables", &Embed::tables, 16, "what is summed"),
                      optional_number("scale", &Embed::scale, 0, "multiplies the sum"),
                      optional_name("domain", &Embed::domain, "of the rows, where nothing else that is named has one")};
  }

  void lower(Lowering& l) const {
    const Value* from = in.empty() ? nullptr : &l.dense("in", in);
    int domain = from == nullptr ? kNone : from->domain;
    if (!this->domain.empty()) {
      l.check(domain == kNone, "domain", "is '", this->domain, "', but the rows are those of '", in, "'");
      domain = l.domain("domain", this->domain);
    }
    for (const EmbedTable& table : tables) {
      if (table.index == EmbedTable::kPositions) continue;
      const Input& input = l.input("index", table.index);
      l.check(domain == kNone || domain == input.domain, "index", "names '", table.index, "', of another domain");
      domain = input.domain;
    }
    l.check(domain != kNone, "tables", "has positions alone; give `in`, whose rows they are of, or `domain`");
    l.enter(domain);
    int64_t width = from == nullptr ? 0 : from->rows.width;
    std::vector<EmbedStep::Lookup> lookups;
    for (const EmbedTable& table : tables)
      lookups.push_back(lookup(l, table, domain, width, lookups.empty() && in.empty()));
    const Operand index = l.scratch(domain, 1, 1, sizeof(int32_t));
    const Operand source = from == nullptr ? Operand{} : from->rows;
    const Operand sum = l.write(out, domain, width, source);
    l.emit<EmbedStep>(domain, l.read(source), index, sum, std::move(lookups), static_cast<float>(scale));
  }

 private:
  static EmbedStep::Lookup lookup(Lowering& l, const EmbedTable& table, int domain, int64_t& width, bool first) {
    const Weight& weight = l.weight("weight", table.weight);
    const bool positions = table.index == EmbedTable::kPositions, panels = weight.layout == Layout::kPanels;
    const Input* input = positions ? nullptr : &l.input("index", table.index);
    const Domain& of = l.program().domains[static_cast<size_t>(domain)];
    if (width == 0) width = weight.view.k;
    l.check(weight.view.k == width, "weight", "names '", table.weight, "' of ", weight.view.k, " columns; the sum has ",
            width);
    l.check(positions || table.offset == 0, "offset", "is ", table.offset, "; only positions have one");
    l.check(!positions || of.has_offsets(), "index", "is positions; rows of '", of.name, "' have none");
    const int64_t reach = positions ? of.max_rows + table.offset : input->limit;
    l.check(reach <= weight.view.n, "weight", "names '", table.weight, "' of ", weight.view.n,
            " rows; its index reaches ", reach - 1);
    const bool grouped = weight.view.group != 0 && weight.view.rotate == 0;
    l.check(!panels || is_float(weight.view.format) || weight.view.format == Format::kI8 || grouped, "weight",
            "names '", table.weight,
            "'; in panels only f32, f16 and i8 tables, and groups without rotation, are looked up");
    l.check(first || (weight.view.rotate == 0 && !panels), "weight", "names '", table.weight,
            "', rotated or in panels; only the first table may be");
    return {.weight = weight.view,
            .panels = panels,
            .input = positions ? kNone : static_cast<int>(input - l.program().inputs.data()),
            .offset = static_cast<int>(table.offset)};
  }
};

}  // namespace pocketformer
