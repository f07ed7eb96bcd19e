#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "runtime/state_cache.h"

namespace pocketformer::bindings {

// The caches of a run, from a list of them or None. The list must outlive them.
std::vector<StateCache*> caches_of(const pybind11::object& list);

}  // namespace pocketformer::bindings
