#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "core/thread_pool.h"

// A cross build must not take the headers of the Python that runs it.
static_assert(SIZEOF_VOID_P == sizeof(void*) && SIZEOF_LONG == sizeof(long), "pyconfig.h is another machine's");

PYBIND11_MODULE(_core, m) {
  namespace pf = pocketformer;
  pf::ThreadPool::instance();  // registers its fork handler before any thread can be running; starts nothing
  pf::bindings::bind_machine(m);
  pf::bindings::bind_kernels(m);
  pf::bindings::bind_probes(m);
  pf::bindings::bind_program(m);
  pf::bindings::bind_cache(m);
  pf::bindings::bind_session(m);
  pf::bindings::bind_calls(m);
  pf::bindings::bind_products(m);
  pf::bindings::bind_row_calls(m);
  pf::bindings::bind_attention_calls(m);
  pf::bindings::bind_key_value_cache(m);
}
