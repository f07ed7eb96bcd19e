// The parts of a graph that operators are made of: domains, values, and the choice among them.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/lowering.h"
#include "weights.h"

namespace pocketformer {

class Parts : public Weights {
 public:
  explicit Parts(FuzzedDataProvider& bytes) : Weights(bytes) {}

 protected:
  struct Rows {  // a domain
    std::string name, kind, of;
    int64_t max_rows = 0, height = 0, width = 0, prepended = 0, merged = 0, summarized = 0;
    bool halting = false;
  };
  struct Value {
    std::string name;
    int64_t width;
    size_t domain;
  };
  static constexpr size_t kTokens = 0, kTexts = 1, kChosen = 2;

  // Once there are as many as a graph may have, another one.
  size_t add_domain(Rows rows) {
    if (rows_.size() == kMaxDomains) return bytes_.ConsumeIntegralInRange<size_t>(0, kMaxDomains - 1);
    Record fields{{"name", text(rows.name)}, {"kind", text(rows.kind)}};
    if (!rows.of.empty()) fields.emplace_back("of", text(rows.of));
    if (rows.of.empty() && rows.kind == "ragged") fields.emplace_back("max_rows", number(rows.max_rows));
    if (rows.kind == "grid")
      fields.insert(fields.end(), {{"height", number(rows.height)}, {"width", number(rows.width)}});
    if (rows.prepended != 0) fields.emplace_back("prepended", number(rows.prepended));
    if (rows.merged != 0) fields.emplace_back("merged", number(rows.merged));
    if (rows.summarized != 0) fields.emplace_back("summarized", number(rows.summarized));
    if (rows.halting) fields.emplace_back("halting", Item{true});
    domains_.push_back(record(std::move(fields)));
    rows_.push_back(std::move(rows));
    return rows_.size() - 1;
  }
  std::string new_domain() const { return "d" + std::to_string(rows_.size()); }

  // A grid of another size than that of `from`, or that one.
  size_t grid(const Value& from, int64_t height, int64_t width) {
    const Rows& of = rows_[from.domain];
    if (of.kind == "grid" && of.height == height && of.width == width) return from.domain;
    return add_domain({new_domain(), "grid", of.name, height * width, height, width});
  }

  // Wraps: widths may be any number.
  static int64_t sum(int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }

  Value pick() {
    const size_t last = values_.size() - 1, back = bytes_.ConsumeIntegralInRange<size_t>(0, 15);
    return values_[last - (back < 8 ? 0 : std::min(last, back - 8))];
  }

  // One with as many rows, mostly: of its domain.
  Value pick_beside(const Value& other) {
    std::vector<Value> fit;
    for (const Value& value : values_) {
      if (value.domain == other.domain && value.name != other.name) fit.push_back(value);
    }
    return fit.empty() || wrong() ? pick() : fit[bytes_.ConsumeIntegralInRange<size_t>(0, fit.size() - 1)];
  }

  std::string define(int64_t width, size_t domain) {
    const std::string name = wrong() && !values_.empty() ? values_[0].name : "v" + std::to_string(values_.size());
    values_.push_back({name, width, domain});
    return name;
  }

  // One field of one record becomes something else, or goes.
  void lie(Item& item) {
    if (Record* fields = std::get_if<Record>(&item.value); fields != nullptr && !fields->empty()) {
      auto& [key, value] = (*fields)[bytes_.ConsumeIntegralInRange<size_t>(0, fields->size() - 1)];
      if (bytes_.ConsumeBool()) return lie(value);
      if (bytes_.ConsumeBool()) key += "x";
      value = bytes_.ConsumeBool() ? number(size()) : text(values_.front().name);
    } else if (List* list = std::get_if<List>(&item.value); list != nullptr && !list->empty()) {
      lie((*list)[bytes_.ConsumeIntegralInRange<size_t>(0, list->size() - 1)]);
    } else {
      item = number(size());
    }
  }

  void simple(const char* kind, const Value& in, Record options) {
    Record fields{{"op", text(kind)}, {"in", text(in.name)}, {"out", text(define(in.width, in.domain))}};
    fields.insert(fields.end(), options.begin(), options.end());
    ops_.push_back(record(std::move(fields)));
  }

  // An operator whose result lies in the domain `to`.
  void made(const Value& in, const char* kind, int64_t width, size_t to, Record options) {
    options.emplace_back("domain", text(rows_[to].name));
    simple(kind, in, std::move(options));
    values_.back() = {values_.back().name, width, to};
  }

  std::string columns(const Value& in, int64_t begin, int64_t width) {
    simple("columns", in, {{"begin", number(begin)}, {"width", number(width)}});
    values_.back().width = width;
    return values_.back().name;
  }

  List domains_, ops_;
  std::vector<Rows> rows_;
  std::vector<Value> values_;
};

}  // namespace pocketformer
