#include "runtime/fields.h"

#include <cmath>
#include <limits>

namespace pocketformer {
namespace {

using Kind = FieldFacts::Kind;

std::string bounds(const FieldFacts& facts) {
  if (facts.kind == Kind::kInteger) return concat("an integer in ", facts.low, "…", facts.high);
  return concat("a float32 number ", facts.above ? "above " : "of at least ", facts.bound);
}

void take_name(const FieldFacts& facts, const Item& item, const Place& place, std::string& target) {
  const std::string* text = item.as<std::string>();
  if (!facts.required && item.null()) return;
  if (text == nullptr || text->empty()) place.refuse(facts.name, item, facts.required ? "a name" : "a name or null");
  target = *text;
}

void take_integer(const FieldFacts& facts, const Item& item, const Place& place, int64_t& target) {
  const int64_t* integer = item.as<int64_t>();
  if (integer == nullptr || *integer < facts.low || *integer > facts.high) {
    place.refuse(facts.name, item, bounds(facts));
  }
  target = *integer;
}

void take_number(const FieldFacts& facts, const Item& item, const Place& place, double& target) {
  const int64_t* integer = item.as<int64_t>();
  const double* number = item.as<double>();
  const double value = integer != nullptr  ? static_cast<double>(*integer)
                       : number != nullptr ? *number
                                           : std::numeric_limits<double>::quiet_NaN();
  const bool fits = facts.above ? value > facts.bound : value >= facts.bound;
  if (!fits || !std::isfinite(static_cast<float>(value))) place.refuse(facts.name, item, bounds(facts));
  target = value;
}

void take_flag(const FieldFacts& facts, const Item& item, const Place& place, bool& target) {
  const bool* flag = item.as<bool>();
  if (flag == nullptr) place.refuse(facts.name, item, "true or false");
  target = *flag;
}

void take_choice(const FieldFacts& facts, const Item& item, const Place& place, void* target) {
  const std::string* text = item.as<std::string>();
  std::string known;
  for (size_t at = 0; at < facts.choice_count; ++at) {
    const char* choice = facts.choice->name(facts.choices, at);
    if (text != nullptr && *text == choice) return facts.choice->set(facts.choices, at, target);
    known += concat(known.empty() ? "" : ", ", choice);
  }
  place.refuse(facts.name, item, "one of " + known);
}

void take_list(const FieldFacts& facts, const Item& item, const Place& place, void* target) {
  const List* list = item.as<List>();
  if (list == nullptr || list->empty() || list->size() > static_cast<size_t>(facts.high)) {
    place.refuse(facts.name, item, concat("a list of 1…", facts.high, " objects"));
  }
  for (size_t at = 0; at < list->size(); ++at) {
    facts.records->append(target, (*list)[at], Place(concat(place.text(), ", ", facts.name, " ", at)));
  }
}

void take(const FieldFacts& facts, const Item& item, const Place& place, void* target) {
  switch (facts.kind) {
    case Kind::kName:
      return take_name(facts, item, place, *static_cast<std::string*>(target));
    case Kind::kInteger:
      return take_integer(facts, item, place, *static_cast<int64_t*>(target));
    case Kind::kNumber:
      return take_number(facts, item, place, *static_cast<double*>(target));
    case Kind::kFlag:
      return take_flag(facts, item, place, *static_cast<bool*>(target));
    case Kind::kChoice:
      return take_choice(facts, item, place, target);
    case Kind::kList:
      return take_list(facts, item, place, target);
  }
}

FieldInfo describe(const FieldFacts& facts, const void* standard) {
  FieldInfo info{facts.name, "", facts.doc, facts.required, {}, {}, {}};
  switch (facts.kind) {
    case Kind::kName:
      info.type = "name";
      break;
    case Kind::kInteger:
      info.type = concat("integer ", facts.low, "…", facts.high);
      if (!facts.required) info.fallback = Item{*static_cast<const int64_t*>(standard)};
      break;
    case Kind::kNumber:
      info.type = bounds(facts);
      if (!facts.required) info.fallback = Item{*static_cast<const double*>(standard)};
      break;
    case Kind::kFlag:
      info.type = "flag";
      info.fallback = Item{*static_cast<const bool*>(standard)};
      break;
    case Kind::kChoice:
      info.type = "choice";
      for (size_t at = 0; at < facts.choice_count; ++at) {
        const Item choice{std::string(facts.choice->name(facts.choices, at))};
        info.choices.push_back(choice);
        if (!facts.required && facts.choice->holds(facts.choices, at, standard)) info.fallback = choice;
      }
      break;
    case Kind::kList:
      info.type = "list";
      info.fields = facts.records->schema();
      break;
  }
  return info;
}

}  // namespace

std::string brief(const Item& item) {
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

void Place::refuse(const char* field, const Item& item, const std::string& expected) const {
  throw std::invalid_argument(concat(text_, ": field '", field, "' is ", brief(item), "; it must be ", expected));
}

void take_fields(const Item& item, const Place& place, const char* kind, std::span<const FieldFacts> facts,
                 void* const* places) {
  const Record* record = item.as<Record>();
  require(record != nullptr, place.text(), " is ", brief(item), "; it must be an object");
  for (size_t i = 0; i < facts.size(); ++i) {
    const Item* found = find(*record, facts[i].name);
    require(found != nullptr || !facts[i].required, place.text(), ": field '", facts[i].name, "' is missing");
    if (found != nullptr) take(facts[i], *found, place, places[i]);
  }
  for (const auto& [key, value] : *record) {
    bool known = key == kind;
    for (const FieldFacts& field : facts) known = known || key == field.name;
    require(known, place.text(), ": field ", brief({key}), " is unknown");
  }
}

std::vector<FieldInfo> describe_fields(std::span<const FieldFacts> facts, void* const* defaults) {
  std::vector<FieldInfo> all;
  for (size_t i = 0; i < facts.size(); ++i) all.push_back(describe(facts[i], defaults[i]));
  return all;
}

}  // namespace pocketformer
