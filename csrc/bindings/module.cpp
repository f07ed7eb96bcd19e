#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "core/thread_pool.h"

PYBIND11_MODULE(_core, m) {
  namespace pf = pocketformer;
  pf::ThreadPool::instance();  // registers its fork handler before any thread can be running; starts nothing
  pf::bindings::bind_machine(m);
  pf::bindings::bind_kernels(m);
  pf::bindings::bind_program(m);
  pf::bindings::bind_session(m);
}
