#include "bindings/program.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "core/dispatch.h"
#include "runtime/planner.h"
#include "runtime/session.h"

namespace pocketformer::bindings {
namespace {

// Typed access to the fields of one dict of the graph.
class Fields {
 public:
  Fields(const py::handle& object, std::string where) : where_(std::move(where)) {
    require(py::isinstance<py::dict>(object), where_, " is ", describe(object), "; it must be a dict");
    dict_ = py::reinterpret_borrow<py::dict>(object);
  }

  std::string text(const char* name) const {
    const py::object value = get(name);
    check(py::isinstance<py::str>(value), name, value, "a string");
    return to_text(name, value);
  }

  std::string optional_text(const char* name) const { return get(name).is_none() ? "" : text(name); }

  int64_t integer(const char* name) const {
    const py::object value = get(name);
    check(PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr()), name, value, "an integer");
    int overflow = 0;
    const int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    check(overflow == 0, name, value, "a 64-bit integer");
    return number;
  }

  double number(const char* name) const {
    const py::object value = get(name);
    if (PyLong_Check(value.ptr()) && !PyBool_Check(value.ptr())) return static_cast<double>(integer(name));
    check(PyFloat_Check(value.ptr()), name, value, "a number");
    return PyFloat_AS_DOUBLE(value.ptr());
  }

  bool boolean(const char* name) const {
    const py::object value = get(name);
    check(PyBool_Check(value.ptr()), name, value, "true or false");
    return value.ptr() == Py_True;
  }

  py::list list(const char* name) const {
    const py::object value = get(name);
    check(py::isinstance<py::list>(value), name, value, "a list");
    return value;
  }

 private:
  py::object get(const char* name) const {
    require(dict_.contains(name), where_, ": ", name, " is missing");
    return dict_[name];
  }

  void check(bool condition, const char* name, const py::object& value, const char* expected) const {
    require(condition, where_, ": ", name, " is ", describe(value), "; it must be ", expected);
  }

  // Lone surrogates, which JSON can spell, have no UTF-8.
  std::string to_text(const char* name, const py::object& value) const {
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(value.ptr(), &size);
    if (utf8 == nullptr) PyErr_Clear();
    require(utf8 != nullptr, where_, ": ", name, " is not valid Unicode text");
    return std::string(utf8, static_cast<size_t>(size));
  }

  py::dict dict_;
  std::string where_;
};

EmbedSpec embed(const Fields& op, const std::string& where) {
  EmbedSpec spec{op.text("out"), op.integer("width"), {}};
  for (const py::handle& entry : op.list("tables")) {
    const Fields table(entry, where + ": table " + std::to_string(spec.tables.size()));
    spec.tables.push_back({table.text("weight"), table.text("index"), table.integer("rows"), table.integer("offset"),
                           table.integer("rotate")});
  }
  return spec;
}

OpSpec operation(const py::handle& object, const std::string& where) {
  const Fields op(object, where);
  const std::string kind = op.text("op");
  if (kind == "embed") return embed(op, where);
  if (kind == "norm") {
    return NormSpec{op.text("in"),   op.text("out"),      op.text("weight"),
                    op.text("kind"), op.integer("width"), op.number("eps")};
  }
  if (kind == "linear") {
    return LinearSpec{
        op.text("in"),   op.text("out"),  op.text("weight"),   op.text("activation"), op.optional_text("residual"),
        op.integer("n"), op.integer("k"), op.integer("rotate")};
  }
  if (kind == "attention") {
    return AttentionSpec{op.text("in"),       op.text("out"),         op.text("dtype"),       op.optional_text("bias"),
                         op.integer("heads"), op.integer("kv_heads"), op.integer("head_dim"), op.integer("left"),
                         op.integer("right"), op.number("scale"),     op.boolean("causal")};
  }
  if (kind == "pool") return PoolSpec{op.text("in"), op.text("out"), op.text("kind")};
  if (kind == "select") return SelectSpec{op.text("in"), op.text("out")};
  if (kind == "normalize") return NormalizeSpec{op.text("in"), op.text("out")};
  throw std::invalid_argument(concat(where, ": op is '", kind, "'; it must be one of embed, norm, linear, attention, ",
                                     "pool, select, normalize"));
}

Graph graph_from(const py::object& object) {
  const Fields fields(object, "graph");
  Graph graph{{},
              fields.text("output"),
              fields.integer("vocab_size"),
              fields.integer("type_vocab_size"),
              fields.integer("max_length")};
  for (const py::handle& op : fields.list("ops")) {
    graph.ops.push_back(operation(op, "op " + std::to_string(graph.ops.size())));
  }
  return graph;
}

BoundProgram make(const py::object& graph, const py::dict& tensors, const std::string& isa) {
  Tensors found;
  py::list arrays;
  for (const auto& [key, value] : tensors) {
    require(py::isinstance<py::str>(key), "tensors has a key that is ", describe(key), "; it must be a string");
    const std::string name = py::cast<std::string>(key);
    found.emplace(name, tensor(value, name));
    arrays.append(value);
  }
  return {std::make_shared<const Program>(graph_from(graph), found, kernels(isa)), std::move(arrays)};
}

const Buffer& output(const BoundProgram& bound) {
  return bound.program->buffers[static_cast<size_t>(bound.program->output)];
}

const char* output_domain(const BoundProgram& bound) {
  constexpr const char* names[] = {"tokens", "sequences", "rows"};
  return names[static_cast<int>(output(bound).domain)];
}

size_t arena_bytes(const BoundProgram& bound, const std::vector<int64_t>& lengths, int64_t threads, int64_t rows,
                   const std::string& mode, int64_t block_rows) {
  require(rows >= 0, "rows is ", rows, "; it must not be negative");
  const Load load = measure(*bound.program, lengths.data(), lengths.size(), static_cast<size_t>(rows));
  return make_plan(*bound.program, load, checked_threads(threads), tuning(mode, block_rows)).bytes;
}

}  // namespace

Tuning tuning(const std::string& mode, int64_t block_rows) {
  require(mode == "auto" || mode == "rows" || mode == "columns", "mode is '", mode,
          "'; it must be auto, rows or columns");
  require(block_rows >= 0 && block_rows <= 1 << 20, "block_rows is ", block_rows, "; it must be 1 to ", 1 << 20,
          ", or 0 for the planner's choice");
  return {mode == "rows"      ? Mode::kRows
          : mode == "columns" ? Mode::kColumns
                              : Mode::kAuto,
          static_cast<int>(block_rows)};
}

void bind_program(py::module_& m) {
  py::class_<BoundProgram>(m, "Program")
      .def(py::init(&make), py::arg("graph"), py::arg("tensors"), py::arg("isa") = "")
      .def_property_readonly("isa", [](const BoundProgram& b) { return b.program->kernels->isa; })
      .def_property_readonly("output_width", [](const BoundProgram& b) { return output(b).width; })
      .def_property_readonly("output_domain", &output_domain)
      .def_property_readonly("max_length", [](const BoundProgram& b) { return b.program->max_length; })
      .def_property_readonly("stage_weight_bytes", [](const BoundProgram& b) { return b.program->stage_weight_bytes; })
      .def("arena_bytes", &arena_bytes, py::arg("lengths"), py::arg("threads"), py::arg("rows") = 0,
           py::arg("mode") = "auto", py::arg("block_rows") = 0);
  m.def(
      "block_rows",
      [](int64_t rows, int64_t threads, bool weights_cached) {
        require(rows >= 1, "rows is ", rows, "; it must be at least 1");
        return block_rows(static_cast<size_t>(rows), static_cast<size_t>(checked_threads(threads)), weights_cached);
      },
      py::arg("rows"), py::arg("threads"), py::arg("weights_cached"));
}

}  // namespace pocketformer::bindings
