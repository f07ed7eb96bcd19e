#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/planner.h"
#include "runtime/program.h"

namespace pocketformer::bindings {

// A program and the arrays it points into.
struct BoundProgram {
  std::shared_ptr<const Program> program;
  pybind11::list tensors;
};

Tuning tuning(const std::string& mode, int64_t block_rows);

}  // namespace pocketformer::bindings
