// Which products make their map line by line, for the windows that alone read it: the wide map between the products of
// an inverted residual then lies in a near cache, where it would be written to memory and read from there.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "runtime/item.h"
#include "runtime/lowering.h"

namespace pocketformer {

using NameCounts = std::unordered_map<std::string, int>;

// How often each string stands in `item`.
inline void count_names(const Item& item, NameCounts& counts) {
  if (const auto* name = item.as<std::string>()) ++counts[*name];
  if (const auto* list = item.as<List>()) {
    for (const Item& entry : *list) count_names(entry, counts);
  }
  if (const auto* record = item.as<Record>()) {
    for (const auto& [key, entry] : *record) count_names(entry, counts);
  }
}

// Begins a band where `product` is a linear, without `multiply` and `residual`, whose result nobody but `reader` names,
// a depthwise convolution. Not of a low map, which fits a cache: there threads would make too many lines twice. Nothing
// is checked: whatever is wrong, the two operators say.
inline bool begins_band(Lowering& l, const Item& product, const Item& reader, const NameCounts& names) {
  constexpr int64_t kLowest = 8, kMostBytes = 1 << 19;  // times the height of a window; of a second-level cache
  const auto text = [](const Item& op, const char* field) {
    const Record* record = op.as<Record>();
    const Item* item = record == nullptr ? nullptr : find(*record, field);
    const std::string* found = item == nullptr ? nullptr : item->as<std::string>();
    return found == nullptr ? std::string() : *found;
  };
  const auto number = [&](const char* field, int64_t otherwise) {
    const Item* item = find(*reader.as<Record>(), field);
    const int64_t* found = item == nullptr ? nullptr : item->as<int64_t>();
    return found == nullptr ? otherwise : *found;
  };
  const std::string map = text(product, "out");
  if (text(product, "op") != "linear" || text(reader, "op") != "depthwise" || text(reader, "in") != map) return false;
  if (!text(product, "multiply").empty() || !text(product, "residual").empty() || names.at(map) != 2) return false;
  const Value* const from = l.known(text(product, "in"));
  const Weight* const weight = l.known_weight(text(product, "weight"));
  const int made = index_of(l.program().domains, text(reader, "domain"));
  if (from == nullptr || weight == nullptr || made == kNone) return false;
  const Domain &grid = l.domain_of(*from), &to = l.program().domains[static_cast<size_t>(made)];
  const int64_t height = number("height", 0), stride = number("stride", 1), padding = number("padding", 0);
  const auto within = [](int64_t n, int64_t least, int64_t most) { return n >= least && n <= most; };
  if (grid.kind != DomainKind::kGrid || to.kind != DomainKind::kGrid || !within(height, 1, 8) ||
      !within(stride, 1, height) || !within(padding, 0, height - 1))
    return false;
  const int64_t channels = weight->view.n;
  if (grid.height < kLowest * height || grid.width > kMostBytes || channels > kMostBytes) return false;
  if (height * grid.width * padded(channels) * static_cast<int64_t>(sizeof(float)) > kMostBytes) return false;
  const auto narrow = [](int64_t n) { return static_cast<int>(n); };
  l.begin_band(made, from->domain,
               {narrow(grid.height), narrow(grid.width), narrow(to.height), narrow(to.width), narrow(height),
                narrow(number("width", 1)), narrow(stride), narrow(padding)});
  return true;
}

}  // namespace pocketformer
