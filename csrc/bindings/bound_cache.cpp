#include "bindings/bound_cache.h"

#include <memory>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/bound_program.h"

namespace pocketformer::bindings {
namespace {

std::unique_ptr<StateCache> make_cache(const py::object& program, int64_t capacity, int64_t chunk) {
  require(py::isinstance<BoundProgram>(program), "program is ", describe(program), "; pass a Program");
  const auto& bound = py::cast<const BoundProgram&>(program);
  return std::make_unique<StateCache>(bound.program, capacity, chunk);
}

}  // namespace

std::vector<StateCache*> caches_of(const py::object& list) {
  std::vector<StateCache*> caches;
  if (list.is_none()) return caches;
  require(py::isinstance<py::list>(list), "caches is ", describe(list), "; pass a list of StateCache");
  for (const py::handle& entry : py::reinterpret_borrow<py::list>(list)) {
    require(py::isinstance<StateCache>(entry), "caches[", caches.size(), "] is ", describe(entry),
            "; pass a StateCache");
    caches.push_back(py::cast<StateCache*>(entry));
  }
  require(!caches.empty(), "caches is empty; pass one for each sequence, or None");
  return caches;
}

void bind_cache(py::module_& m) {
  py::class_<StateCache>(m, "StateCache")
      .def(py::init(&make_cache), py::arg("program"), py::arg("capacity"), py::arg("chunk"))
      .def("truncate", &StateCache::truncate, py::arg("length"))
      .def("fork", &StateCache::fork)
      .def_property_readonly("length", &StateCache::length)
      .def_property_readonly("capacity", &StateCache::capacity)
      .def_property_readonly("chunk", &StateCache::chunk)
      .def_property_readonly("nbytes", [](const StateCache& cache) { return cache.bytes(); });
}

}  // namespace pocketformer::bindings
