// The fields of a record, said once: from this come their parsing, their limits, their defaults and the schema that
// Python, the fuzzers and docs/format.md are given.
//
// A struct lists them as `static constexpr auto fields() { return std::tuple{name("in", &Norm::in, "…"), …}; }`.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "core/errors.h"
#include "runtime/item.h"

namespace pocketformer {

inline constexpr int64_t kMaxRows = 1 << 30;
inline constexpr int64_t kMaxWidth = 1 << 20;

// One field for those who only read about it.
struct FieldInfo {
  std::string name, type, doc;
  bool required;
  Item fallback;
  List choices;
  std::vector<FieldInfo> fields;  // of a list's records
};

// How an item reads in a message, in few characters however large it is.
inline std::string brief(const Item& item) {
  if (item.null()) return "null";
  if (const bool* flag = item.as<bool>()) return *flag ? "true" : "false";
  if (const int64_t* integer = item.as<int64_t>()) return std::to_string(*integer);
  if (const double* number = item.as<double>()) return concat(*number);
  if (const std::string* text = item.as<std::string>()) {
    return concat("'", text->size() <= 60 ? *text : text->substr(0, 59) + "…", "'");
  }
  if (const List* list = item.as<List>()) return concat("a list of ", list->size());
  return concat("an object of ", item.as<Record>()->size());
}

// Where a record stands, for messages: "op 3 (norm)".
class Place {
 public:
  explicit Place(std::string text) : text_(std::move(text)) {}
  const std::string& text() const { return text_; }

  [[noreturn]] void refuse(const char* field, const Item& item, const std::string& expected) const {
    throw std::invalid_argument(concat(text_, ": field '", field, "' is ", brief(item), "; it must be ", expected));
  }

 private:
  std::string text_;
};

template <class T>
T parse(const Item& item, const Place& place);

template <class Owner>
struct NameField {
  const char* name;
  std::string Owner::* member;
  const char* doc;
  bool required;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const std::string* text = item.as<std::string>();
    if (!required && item.null()) return;
    if (text == nullptr || text->empty()) place.refuse(name, item, required ? "a name" : "a name or null");
    owner.*member = *text;
  }
  FieldInfo info() const { return {name, "name", doc, required, {}, {}, {}}; }
};
template <class Owner>
constexpr NameField<Owner> name(const char* name, std::string Owner::* member, const char* doc) {
  return {name, member, doc, true};
}
template <class Owner>
constexpr NameField<Owner> optional_name(const char* name, std::string Owner::* member, const char* doc) {
  return {name, member, doc, false};
}

template <class Owner>
struct IntegerField {
  const char* name;
  int64_t Owner::* member;
  int64_t low, high;
  const char* doc;
  bool required;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const int64_t* integer = item.as<int64_t>();
    if (integer == nullptr || *integer < low || *integer > high) {
      place.refuse(name, item, concat("an integer in ", low, "…", high));
    }
    owner.*member = *integer;
  }
  FieldInfo info() const {
    const std::string type = concat("integer ", low, "…", high);
    return {name, type, doc, required, required ? Item{} : Item{Owner{}.*member}, {}, {}};
  }
};
// A field that may be left out has the value that its struct begins with.
template <class Owner>
constexpr IntegerField<Owner> integer(const char* name, int64_t Owner::* member, int64_t low, int64_t high,
                                      const char* doc) {
  return {name, member, low, high, doc, true};
}
template <class Owner>
constexpr IntegerField<Owner> optional_integer(const char* name, int64_t Owner::* member, int64_t low, int64_t high,
                                               const char* doc) {
  return {name, member, low, high, doc, false};
}

// A float32 number of at least `low`, or above it.
template <class Owner>
struct NumberField {
  const char* name;
  double Owner::* member;
  double low;
  bool above;
  const char* doc;
  bool required = true;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const int64_t* integer = item.as<int64_t>();
    const double* number = item.as<double>();
    const double value = integer != nullptr  ? static_cast<double>(*integer)
                         : number != nullptr ? *number
                                             : std::numeric_limits<double>::quiet_NaN();
    const bool fits = above ? value > low : value >= low;
    if (!fits || !std::isfinite(static_cast<float>(value))) place.refuse(name, item, bounds());
    owner.*member = value;
  }
  FieldInfo info() const { return {name, bounds(), doc, required, required ? Item{} : Item{Owner{}.*member}, {}, {}}; }
  std::string bounds() const { return concat("a float32 number ", above ? "above " : "of at least ", low); }
};
template <class Owner>
constexpr NumberField<Owner> number_above(const char* name, double Owner::* member, double low, const char* doc) {
  return {name, member, low, true, doc};
}
template <class Owner>
constexpr NumberField<Owner> number_from(const char* name, double Owner::* member, double low, const char* doc) {
  return {name, member, low, false, doc};
}

template <class Owner>
constexpr NumberField<Owner> optional_number(const char* name, double Owner::* member, double above, const char* doc) {
  return {name, member, above, true, doc, false};
}
template <class Owner>
constexpr NumberField<Owner> optional_from(const char* name, double Owner::* member, double low, const char* doc) {
  return {name, member, low, false, doc, false};
}

template <class Owner>
struct FlagField {
  const char* name;
  bool Owner::* member;
  const char* doc;
  static constexpr bool required = false;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const bool* flag = item.as<bool>();
    if (flag == nullptr) place.refuse(name, item, "true or false");
    owner.*member = *flag;
  }
  FieldInfo info() const { return {name, "flag", doc, false, Item{Owner{}.*member}, {}, {}}; }
};
template <class Owner>
constexpr FlagField<Owner> flag(const char* name, bool Owner::* member, const char* doc) {
  return {name, member, doc};
}

template <class T>
struct Choice {
  const char* name;
  T value;
};

template <class Owner, class T, size_t count>
struct ChoiceField {
  const char* name;
  T Owner::* member;
  const Choice<T> (&choices)[count];
  const char* doc;
  bool required;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const std::string* text = item.as<std::string>();
    std::string known;
    for (const auto& [choice, value] : choices) {
      if (text != nullptr && *text == choice) {
        owner.*member = value;
        return;
      }
      known += concat(known.empty() ? "" : ", ", choice);
    }
    place.refuse(name, item, "one of " + known);
  }
  FieldInfo info() const {
    FieldInfo info{name, "choice", doc, required, {}, {}, {}};
    for (const auto& [choice, value] : choices) {
      info.choices.push_back({std::string(choice)});
      if (!required && value == Owner{}.*member) info.fallback = {std::string(choice)};
    }
    return info;
  }
};
template <class Owner, class T, size_t count>
constexpr ChoiceField<Owner, T, count> choice(const char* name, T Owner::* member, const Choice<T> (&choices)[count],
                                              const char* doc) {
  return {name, member, choices, doc, true};
}
template <class Owner, class T, size_t count>
constexpr ChoiceField<Owner, T, count> optional_choice(const char* name, T Owner::* member,
                                                       const Choice<T> (&choices)[count], const char* doc) {
  return {name, member, choices, doc, false};
}

template <class T>
std::vector<FieldInfo> schema();

template <class Owner, class T>
struct ListField {
  const char* name;
  std::vector<T> Owner::* member;
  size_t most;
  const char* doc;
  static constexpr bool required = true;

  void take(const Item& item, Owner& owner, const Place& place) const {
    const List* list = item.as<List>();
    if (list == nullptr || list->empty() || list->size() > most) {
      place.refuse(name, item, concat("a list of 1…", most, " objects"));
    }
    for (const Item& entry : *list) {
      (owner.*member).push_back(parse<T>(entry, Place(concat(place.text(), ", ", name, " ", (owner.*member).size()))));
    }
  }
  FieldInfo info() const { return {name, "list", doc, true, {}, {}, schema<T>()}; }
};
template <class Owner, class T>
constexpr ListField<Owner, T> list(const char* name, std::vector<T> Owner::* member, size_t most, const char* doc) {
  return {name, member, most, doc};
}

template <class T>
std::vector<FieldInfo> schema() {
  return std::apply([](const auto&... field) { return std::vector<FieldInfo>{field.info()...}; }, T::fields());
}

// Exactly the fields of T, each of its kind; `kind` is one more that may stand there.
template <class T>
T parse(const Item& item, const Place& place, const char* kind) {
  const Record* record = item.as<Record>();
  if (record == nullptr)
    throw std::invalid_argument(concat(place.text(), " is ", brief(item), "; it must be an object"));
  T result;
  std::apply(
      [&](const auto&... field) {
        const auto take = [&](const auto& f) {
          const Item* found = find(*record, f.name);
          require(found != nullptr || !f.required, place.text(), ": field '", f.name, "' is missing");
          if (found != nullptr) f.take(*found, result, place);
        };
        (take(field), ...);
        for (const auto& [key, value] : *record) {
          const bool known = key == kind || ((key == field.name) || ...);
          require(known, place.text(), ": field ", brief({key}), " is unknown");
        }
      },
      T::fields());
  return result;
}
template <class T>
T parse(const Item& item, const Place& place) {
  return parse<T>(item, place, "");
}

}  // namespace pocketformer
