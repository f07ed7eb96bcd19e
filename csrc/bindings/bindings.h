// What the parts of the extension module register.
#pragma once

#include <pybind11/pybind11.h>

namespace pocketformer::bindings {

void bind_attention_calls(pybind11::module_& m);
void bind_calls(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_key_value_cache(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_probes(pybind11::module_& m);
void bind_products(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_row_calls(pybind11::module_& m);
void bind_session(pybind11::module_& m);

// A signal's handler runs here, so that Ctrl-C ends a long call; false when it raised nothing. For the calling thread,
// without the GIL.
inline bool signalled(void* = nullptr) {
  const pybind11::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

}  // namespace pocketformer::bindings
