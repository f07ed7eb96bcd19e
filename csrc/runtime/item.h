// A value as a file's JSON spells it: what graphs, operators, weights and states are described in. Nothing is checked.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace pocketformer {

struct Item;
struct Field;
using List = std::vector<Item>;
using Record = std::vector<Field>;

struct Item {
  std::variant<std::monostate, bool, int64_t, double, std::string, List, Record> value;

  bool null() const { return std::holds_alternative<std::monostate>(value); }
  template <typename T>
  const T* as() const {
    return std::get_if<T>(&value);
  }
};

struct Field {  // not a std::pair, which wants to know its second type before Item is complete
  std::string name;
  Item item;
};

inline const Item* find(const Record& record, const std::string& key) {
  for (const auto& [name, item] : record) {
    if (name == key) return &item;
  }
  return nullptr;
}

}  // namespace pocketformer
