// Python's dicts, lists and scalars as the runtime's items, and its schema as dicts.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "runtime/operators/registry.h"

namespace pocketformer::bindings {

// Throws std::invalid_argument for anything that JSON has not, deeper than a graph needs, or beyond 64 bits.
Item item_from(const pybind11::handle& object, const char* where, int depth = 0);

// [{"op", "doc", "fields": [{"name", "type", "doc", "required", "default"?, "choices"?, "fields"?}]}]
pybind11::list operator_schema();

}  // namespace pocketformer::bindings
