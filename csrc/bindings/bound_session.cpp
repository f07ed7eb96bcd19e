#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/bound_cache.h"
#include "bindings/bound_program.h"
#include "runtime/session.h"

namespace pocketformer::bindings {
namespace {

struct BoundSession {
  BoundSession(py::object owner, const std::string& mode, int64_t block_rows)
      : program(std::move(owner)), session(py::cast<const BoundProgram&>(program).program, tuning(mode, block_rows)) {}

  py::object program;  // keeps the mapped tensors
  Session session;
};

// The arrays of a call, held while it runs.
struct Arrays {
  Feeds feeds;
  py::object held[kMaxInputs + kMaxDomains];
  size_t count = 0;

  template <typename T>
  const py::array_t<T> take(const py::handle& object, const char* name, int dimensions) {
    auto array = array_of<T>(object, name, dimensions);
    held[count++] = array;
    return array;
  }
};

void take(const Program& program, const py::dict& inputs, Arrays& arrays) {
  for (const auto& [key, value] : inputs) {
    require(PyUnicode_Check(key.ptr()), "inputs has a key that is ", describe(key), "; it must be a string");
    if (value.is_none()) continue;
    bool known = false;
    for (size_t i = 0; i < program.inputs.size() && !known; ++i) {
      const Input& input = program.inputs[i];
      if (PyUnicode_CompareWithASCIIString(key.ptr(), input.name.c_str()) != 0) continue;
      known = true;
      if (input.dtype == InputType::kIndex) {
        const auto array = arrays.take<int32_t>(value, input.name.c_str(), 1);
        arrays.feeds.inputs[i] = {array.data(), static_cast<size_t>(array.size())};
      } else {
        const auto array = arrays.take<float>(value, input.name.c_str(), 2);
        require(array.shape(1) == input.width, input.name, " is ", describe(value), "; a row has ", input.width,
                " numbers");
        arrays.feeds.inputs[i] = {array.data(), static_cast<size_t>(array.shape(0))};
      }
    }
    for (size_t d = 0; d < program.domains.size() && !known; ++d) {
      const Domain& domain = program.domains[d];
      const bool filled =
          domain.kind == DomainKind::kSelected || (domain.kind == DomainKind::kRagged && domain.of == kNone);
      if (!filled || PyUnicode_CompareWithASCIIString(key.ptr(), domain.name.c_str()) != 0) continue;
      known = true;
      const auto array = arrays.take<int64_t>(value, domain.name.c_str(), 1);
      // Zero rows are an array all the same.
      static const int64_t kNoRows = 0;
      arrays.feeds.domains[d] = {array.size() == 0 ? &kNoRows : array.data(), static_cast<size_t>(array.size())};
    }
    require(known, py::cast<std::string>(py::str(key)), " was given; this model does not take it, leave it out");
  }
}

py::array_t<float> run(BoundSession& self, const py::dict& inputs, int64_t threads, const py::object& out,
                       const py::object& caches) {
  const Program& program = *py::cast<const BoundProgram&>(self.program).program;
  Arrays arrays;
  take(program, inputs, arrays);
  const std::vector<StateCache*> kept = caches_of(caches);
  const int thread_count = checked_threads(threads);
  const auto rows = static_cast<py::ssize_t>(self.session.output_rows(arrays.feeds));
  auto result = output_array(out, rows, program.output_width);
  float* const data = result.mutable_data();
  bool finished = false;
  {
    const GilReleased no_gil;
    finished = self.session.run(arrays.feeds, thread_count, data, {signalled, nullptr},
                                {caches.is_none() ? nullptr : kept.data(), kept.size()});
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
      .def("run", &run, py::arg("inputs"), py::arg("threads") = 1, py::arg("out") = py::none(),
           py::arg("caches") = py::none())
      .def_property_readonly("arena_bytes", [](const BoundSession& s) { return s.session.arena_bytes(); })
      .def("trim", [](BoundSession& s) { s.session.trim(); })
      .def_property(
          "profile", [](const BoundSession& s) { return s.session.profile(); },
          [](BoundSession& s, bool on) { s.session.set_profile(on); })
      .def("rows", [](BoundSession& s) { return s.session.rows(); })
      .def("phases", [](BoundSession& s) { return s.session.phases(); });
}

}  // namespace pocketformer::bindings
