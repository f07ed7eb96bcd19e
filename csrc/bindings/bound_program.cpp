#include "bindings/bound_program.h"

#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/items.h"
#include "core/dispatch.h"
#include "runtime/planner.h"
#include "runtime/session.h"
#include "runtime/state_cache.h"
#include "runtime/work.h"

namespace pocketformer::bindings {
namespace {

BoundProgram make(const py::object& graph, const py::dict& tensors, const std::string& isa) {
  const KernelTable& table = kernels(isa);
  Tensors found;
  py::list arrays;
  for (const auto& [key, value] : tensors) {
    require(py::isinstance<py::str>(key), "tensors has a key that is ", describe(key), "; it must be a string");
    const std::string name = py::cast<std::string>(key);
    found.add(name, tensor(value, name));
    arrays.append(value);
  }
  return {std::make_shared<const Program>(item_from(graph, "graph"), std::move(found), table), std::move(arrays)};
}

// The same checks where only the tensors' dtypes and shapes are known.
void check_graph(const py::object& graph, const py::dict& shapes) {
  Tensors found;
  for (const auto& [key, value] : shapes) {
    require(py::isinstance<py::str>(key), "shapes has a key that is ", describe(key), "; it must be a string");
    const auto entry = py::cast<std::pair<std::string, std::vector<int64_t>>>(value);
    found.add(py::cast<std::string>(key), {nullptr, dtype_named(entry.first), entry.second});
  }
  const Program program(item_from(graph, "graph"), std::move(found), kernels("scalar"));
}

const char* domain_kind(DomainKind kind) {
  for (const auto& [name, value] : DomainSpec::kKinds) {
    if (value == kind) return name;
  }
  return "";
}

py::list work(const BoundProgram& bound, const std::vector<int64_t>& lengths, int64_t selected) {
  require(selected >= 0, "selected is ", selected, "; it must not be negative");
  py::list list;
  for (const StepWork& step : count_work(*bound.program, lengths, static_cast<size_t>(selected))) {
    py::dict entry;
    entry["kind"] = step.kind;
    entry["stage"] = step.stage;
    entry["rows"] = step.rows;
    entry["multiply_adds"] = step.multiply_adds;
    entry["int8"] = step.int8;
    entry["bounded_pairs"] = step.bounded_pairs;
    entry["weight_bytes"] = step.weight_bytes;
    entry["zeros"] = step.zeros;
    entry["elements"] = step.elements;
    entry["rotated"] = step.rotated;
    entry["activated"] = step.activated;
    entry["scores"] = step.scores;
    entry["score_lanes"] = step.score_lanes;
    list.append(entry);
  }
  return list;
}

// Meetings of threads in a run whose stages are all in columns; in rows there is one a stage.
size_t meetings(const BoundProgram& bound) {
  size_t count = bound.program->stages.size();
  for (const Stage& stage : bound.program->stages) {
    for (const auto& step : stage.steps) count += step->meets;
  }
  return count;
}

size_t arena_bytes(const BoundProgram& bound, const std::vector<int64_t>& lengths, int64_t threads, int64_t selected,
                   const std::string& mode, int64_t block_rows) {
  require(selected >= 0, "selected is ", selected, "; it must not be negative");
  const Load load = plan_load(*bound.program, lengths.data(), lengths.size(), static_cast<size_t>(selected));
  Plan plan;
  make_plan(*bound.program, load, checked_threads(threads), tuning(mode, block_rows), plan);
  return plan.bytes;
}

const Domain& output_domain(const Program& program) {
  return program.domains[static_cast<size_t>(program.output_domain)];
}

}  // namespace

Tuning tuning(const std::string& mode, int64_t block_rows) {
  require(mode == "auto" || mode == "rows" || mode == "columns", "mode is '", mode,
          "'; it must be auto, rows or columns");
  require(block_rows >= 0 && block_rows <= 1 << 20, "block_rows is ", block_rows, "; it must be 1 to ", 1 << 20,
          ", or 0 for the planner's choice");
  return {mode == "rows"      ? Mode::kRows
          : mode == "columns" ? Mode::kColumns
                              : Mode::kAuto,
          static_cast<int>(block_rows)};
}

void bind_program(py::module_& m) {
  m.def("operators", &operator_schema);
  m.def("check_graph", &check_graph, py::arg("graph"), py::arg("shapes"));
  py::class_<BoundProgram>(m, "Program")
      .def(py::init(&make), py::arg("graph"), py::arg("tensors"), py::arg("isa") = "")
      .def_property_readonly("isa", [](const BoundProgram& b) { return b.program->kernels->isa; })
      .def_property_readonly("output_width", [](const BoundProgram& b) { return b.program->output_width; })
      .def_property_readonly("output_domain", [](const BoundProgram& b) { return output_domain(*b.program).name; })
      .def_property_readonly("output_kind",
                             [](const BoundProgram& b) { return domain_kind(output_domain(*b.program).kind); })
      .def_property_readonly("stage_weight_bytes", [](const BoundProgram& b) { return b.program->stage_weight_bytes; })
      .def_property_readonly("stages", [](const BoundProgram& b) { return b.program->stages.size(); })
      .def_property_readonly("meetings", &meetings)
      .def("work", &work, py::arg("lengths"), py::arg("selected") = 0)
      .def(
          "cache_bytes",
          [](const BoundProgram& b, int64_t capacity, int64_t chunk) {
            return StateCache::bytes(*b.program, capacity, chunk);
          },
          py::arg("capacity"), py::arg("chunk"))
      .def("arena_bytes", &arena_bytes, py::arg("lengths"), py::arg("threads"), py::arg("selected") = 0,
           py::arg("mode") = "auto", py::arg("block_rows") = 0);
  m.def(
      "block_rows",
      [](int64_t rows, int64_t threads, bool weights_cached) {
        require(rows >= 1, "rows is ", rows, "; it must be at least 1");
        return block_rows(static_cast<size_t>(rows), static_cast<size_t>(checked_threads(threads)), weights_cached);
      },
      py::arg("rows"), py::arg("threads"), py::arg("weights_cached"));
}

}  // namespace pocketformer::bindings
