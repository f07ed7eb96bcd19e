#include "runtime/session.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/program.h"

namespace pocketformer::bindings {
namespace {

struct BoundSession {
  BoundSession(py::object owner, const std::string& mode, int64_t block_rows)
      : program(std::move(owner)), session(py::cast<const BoundProgram&>(program).program, tuning(mode, block_rows)) {}

  py::object program;  // keeps the mapped tensors
  Session session;
};

py::array_t<float> run(BoundSession& self, const py::object& ids, const py::object& offsets, const py::object& types,
                       const py::object& rows, int64_t threads, const py::object& out) {
  const Program& program = *py::cast<const BoundProgram&>(self.program).program;
  const auto id_array = array_of<int32_t>(ids, "ids", 1);
  const auto offset_array = array_of<int64_t>(offsets, "offsets", 1);
  require(offset_array.size() >= 1, "offsets is empty; it holds one entry more than there are sequences");
  Input input{};
  input.ids = id_array.data();
  input.tokens = static_cast<size_t>(id_array.size());
  input.offsets = offset_array.data();
  input.sequences = static_cast<size_t>(offset_array.size() - 1);
  py::array_t<int32_t> type_array;
  if (!types.is_none()) {
    type_array = array_of<int32_t>(types, "types", 1);
    require(type_array.size() == id_array.size(), "types has ", type_array.size(),
            " entries; it must have one for each id, ", id_array.size());
    input.types = type_array.data();
  }
  py::array_t<int64_t> row_array;
  if (!rows.is_none()) {
    row_array = array_of<int64_t>(rows, "rows", 1);
    input.rows = row_array.data();
    input.rows_count = static_cast<size_t>(row_array.size());
  }
  const int thread_count = checked_threads(threads);
  const py::ssize_t width = program.buffers[static_cast<size_t>(program.output)].width;
  auto result = output_array(out, static_cast<py::ssize_t>(self.session.output_rows(input)), width);
  float* const data = result.mutable_data();
  bool finished = false;
  {
    const GilReleased no_gil;
    finished = self.session.run(input, thread_count, data, {signalled, nullptr});
  }
  if (!finished) throw py::error_already_set();
  return result;
}

}  // namespace

void bind_session(py::module_& m) {
  py::class_<BoundSession>(m, "Session")
      .def(py::init([](const py::object& program, const std::string& mode, int64_t block_rows) {
             require(py::isinstance<BoundProgram>(program), "program is ", describe(program), "; pass a Program");
             return std::make_unique<BoundSession>(program, mode, block_rows);
           }),
           py::arg("program"), py::arg("mode") = "auto", py::arg("block_rows") = 0)
      .def("run", &run, py::arg("ids"), py::arg("offsets"), py::arg("types") = py::none(), py::arg("rows") = py::none(),
           py::arg("threads") = 1, py::arg("out") = py::none())
      .def_property_readonly("arena_bytes", [](const BoundSession& s) { return s.session.arena_bytes(); })
      .def("trim", [](BoundSession& s) { s.session.trim(); })
      .def_property(
          "profile", [](const BoundSession& s) { return s.session.profile(); },
          [](BoundSession& s, bool on) { s.session.set_profile(on); })
      .def("phases", [](BoundSession& s) { return s.session.phases(); });
}

}  // namespace pocketformer::bindings
