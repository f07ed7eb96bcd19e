// What the parts of the extension module register.
#pragma once

#include <pybind11/pybind11.h>

namespace pocketformer::bindings {

void bind_kernels(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_session(pybind11::module_& m);

}  // namespace pocketformer::bindings
