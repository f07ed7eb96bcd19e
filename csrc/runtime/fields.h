// The fields of a record, said once: from this come their parsing, their limits, their defaults and the schema that
// Python, the fuzzers and docs/format.md are given.
//
// A struct lists them as `static constexpr auto fields() { return std::tuple{name("in", &Norm::in, "…"), …}; }`.
// What is known of a field without its struct is data: one parser, in fields.cpp, goes over that of any struct.
#pragma once

#include <array>
#include <cstdint>
#include <span>
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
std::string brief(const Item& item);

// Where a record stands, for messages: "op 3 (norm)".
class Place {
 public:
  explicit Place(std::string text) : text_(std::move(text)) {}
  const std::string& text() const { return text_; }

  [[noreturn]] void refuse(const char* field, const Item& item, const std::string& expected) const;

 private:
  std::string text_;
};

template <class T>
struct Choice {
  const char* name;
  T value;
};

// A list of choices whatever their type, and a place that holds one of them.
struct ChoiceCalls {
  const char* (*name)(const void* choices, size_t at);
  void (*set)(const void* choices, size_t at, void* place);
  bool (*holds)(const void* choices, size_t at, const void* place);
};
template <class T>
inline constexpr ChoiceCalls kChoiceCalls{
    [](const void* choices, size_t at) { return static_cast<const Choice<T>*>(choices)[at].name; },
    [](const void* choices, size_t at, void* place) {
      *static_cast<T*>(place) = static_cast<const Choice<T>*>(choices)[at].value;
    },
    [](const void* choices, size_t at, const void* place) {
      return *static_cast<const T*>(place) == static_cast<const Choice<T>*>(choices)[at].value;
    }};

// A vector of records whatever their type.
struct RecordCalls {
  void (*append)(void* records, const Item& item, const Place& place);
  std::vector<FieldInfo> (*schema)();
};

// What a field is, whatever struct holds it.
struct FieldFacts {
  enum class Kind : uint8_t { kName, kInteger, kNumber, kFlag, kChoice, kList };

  const char *name, *doc;
  Kind kind;
  bool required;
  bool above = false;         // a float32 number above `bound`, else of at least that
  int64_t low = 0, high = 0;  // of an integer; `high` of a list's entries
  double bound = 0;
  const void* choices = nullptr;
  size_t choice_count = 0;
  const ChoiceCalls* choice = nullptr;
  const RecordCalls* records = nullptr;
};

// Each place is a std::string, int64_t, double, bool, the type of a choice or a vector of records, as the fact of the
// same index says. `kind` is one more name that may stand in the record.
void take_fields(const Item& item, const Place& place, const char* kind, std::span<const FieldFacts> facts,
                 void* const* places);
std::vector<FieldInfo> describe_fields(std::span<const FieldFacts> facts, void* const* defaults);

template <class Owner, class T>
struct FieldOf {
  T Owner::* member;
  FieldFacts facts;
};

template <class T>
constexpr auto facts_of() {
  return std::apply([](const auto&... field) { return std::array{field.facts...}; }, T::fields());
}

template <class T>
auto places_in(T& owner) {
  const auto places = [&](const auto&... field) {
    return std::array<void*, sizeof...(field)>{&(owner.*field.member)...};
  };
  return std::apply(places, T::fields());
}

template <class T>
std::vector<FieldInfo> schema() {
  static constexpr auto kFacts = facts_of<T>();
  T defaults{};
  return describe_fields(kFacts, places_in(defaults).data());
}

// Exactly the fields of T, each of its kind.
template <class T>
T parse(const Item& item, const Place& place, const char* kind = "") {
  static constexpr auto kFacts = facts_of<T>();
  T result;
  take_fields(item, place, kind, kFacts, places_in(result).data());
  return result;
}

template <class T>
inline constexpr RecordCalls kRecordCalls{[](void* records, const Item& item, const Place& place) {
                                            static_cast<std::vector<T>*>(records)->push_back(parse<T>(item, place));
                                          },
                                          schema<T>};

template <class Owner>
constexpr FieldOf<Owner, std::string> name(const char* name, std::string Owner::* member, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kName, true}};
}
template <class Owner>
constexpr FieldOf<Owner, std::string> optional_name(const char* name, std::string Owner::* member, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kName, false}};
}

// A field that may be left out has the value that its struct begins with.
template <class Owner>
constexpr FieldOf<Owner, int64_t> integer(const char* name, int64_t Owner::* member, int64_t low, int64_t high,
                                          const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kInteger, true, false, low, high}};
}
template <class Owner>
constexpr FieldOf<Owner, int64_t> optional_integer(const char* name, int64_t Owner::* member, int64_t low, int64_t high,
                                                   const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kInteger, false, false, low, high}};
}

// A float32 number of at least `low`, or above it.
template <class Owner>
constexpr FieldOf<Owner, double> number_above(const char* name, double Owner::* member, double low, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kNumber, true, true, 0, 0, low}};
}
template <class Owner>
constexpr FieldOf<Owner, double> number_from(const char* name, double Owner::* member, double low, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kNumber, true, false, 0, 0, low}};
}
template <class Owner>
constexpr FieldOf<Owner, double> optional_number(const char* name, double Owner::* member, double above,
                                                 const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kNumber, false, true, 0, 0, above}};
}
template <class Owner>
constexpr FieldOf<Owner, double> optional_from(const char* name, double Owner::* member, double low, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kNumber, false, false, 0, 0, low}};
}

template <class Owner>
constexpr FieldOf<Owner, bool> flag(const char* name, bool Owner::* member, const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kFlag, false}};
}

template <class Owner, class T, size_t count>
constexpr FieldOf<Owner, T> choice(const char* name, T Owner::* member, const Choice<T> (&choices)[count],
                                   const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kChoice, true, false, 0, 0, 0, choices, count, &kChoiceCalls<T>}};
}
template <class Owner, class T, size_t count>
constexpr FieldOf<Owner, T> optional_choice(const char* name, T Owner::* member, const Choice<T> (&choices)[count],
                                            const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kChoice, false, false, 0, 0, 0, choices, count, &kChoiceCalls<T>}};
}

template <class Owner, class T>
constexpr FieldOf<Owner, std::vector<T>> list(const char* name, std::vector<T> Owner::* member, int64_t most,
                                              const char* doc) {
  return {member, {name, doc, FieldFacts::Kind::kList, true, false, 1, most, 0, nullptr, 0, nullptr, &kRecordCalls<T>}};
}

}  // namespace pocketformer
