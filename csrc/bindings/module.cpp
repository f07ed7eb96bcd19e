#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/dispatch.h"
#include "core/thread_pool.h"

PYBIND11_MODULE(_core, m) {
  namespace pf = pocketformer;
  pf::ThreadPool::instance();  // registers its fork handler before any thread can be running; starts nothing
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const pf::Isa& isa : pf::isas()) {
      if (isa.supported()) names.emplace_back(isa.name);
    }
    return names;
  });
  pf::bindings::bind_kernels(m);
  pf::bindings::bind_probes(m);
  pf::bindings::bind_program(m);
  pf::bindings::bind_session(m);
}
