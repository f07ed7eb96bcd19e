#include "bindings/items.h"

#include "bindings/arrays.h"

namespace pocketformer::bindings {
namespace {

constexpr int kMaxDepth = 8;

// Lone surrogates, which JSON can spell, have no UTF-8.
std::string text_from(const py::handle& object, const char* where) {
  Py_ssize_t size = 0;
  const char* utf8 = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (utf8 == nullptr) PyErr_Clear();
  require(utf8 != nullptr, where, " holds a string that is not valid Unicode text");
  return std::string(utf8, static_cast<size_t>(size));
}

py::object object_from(const Item& item) {
  if (const bool* flag = item.as<bool>()) return py::bool_(*flag);
  if (const int64_t* integer = item.as<int64_t>()) return py::int_(*integer);
  if (const double* number = item.as<double>()) return py::float_(*number);
  if (const std::string* text = item.as<std::string>()) return py::str(*text);
  return py::none();
}

py::list fields_from(const std::vector<FieldInfo>& fields) {
  py::list list;
  for (const FieldInfo& info : fields) {
    py::dict field;
    field["name"] = info.name;
    field["type"] = info.type;
    field["doc"] = info.doc;
    field["required"] = info.required;
    if (!info.required) field["default"] = object_from(info.fallback);
    if (!info.choices.empty()) {
      py::list choices;
      for (const Item& choice : info.choices) choices.append(object_from(choice));
      field["choices"] = choices;
    }
    if (!info.fields.empty()) field["fields"] = fields_from(info.fields);
    list.append(field);
  }
  return list;
}

}  // namespace

Item item_from(const py::handle& object, const char* where, int depth) {
  require(depth <= kMaxDepth, where, " is nested more than ", kMaxDepth, " levels deep");
  if (object.is_none()) return {};
  if (PyBool_Check(object.ptr())) return {object.ptr() == Py_True};
  if (PyLong_Check(object.ptr())) {
    int overflow = 0;
    const int64_t number = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
    require(overflow == 0, where, " holds an integer of more than 64 bits");
    return {number};
  }
  if (PyFloat_Check(object.ptr())) return {PyFloat_AS_DOUBLE(object.ptr())};
  if (PyUnicode_Check(object.ptr())) return {text_from(object, where)};
  if (py::isinstance<py::list>(object)) {
    List list;
    for (const py::handle& entry : py::reinterpret_borrow<py::list>(object)) {
      list.push_back(item_from(entry, where, depth + 1));
    }
    return {std::move(list)};
  }
  require(py::isinstance<py::dict>(object), where, " holds ", describe(object),
          "; it may hold objects, lists, strings, numbers, true, false and null");
  Record record;
  for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(object)) {
    require(PyUnicode_Check(key.ptr()), where, " has a key that is ", describe(key), "; it must be a string");
    record.push_back({text_from(key, where), item_from(value, where, depth + 1)});
  }
  return {std::move(record)};
}

py::list operator_schema() {
  py::list list;
  for (const OperatorInfo& info : operators()) {
    py::dict entry;
    entry["op"] = info.name;
    entry["doc"] = info.doc;
    entry["fields"] = fields_from(info.fields);
    list.append(entry);
  }
  return list;
}

}  // namespace pocketformer::bindings
