#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/cpu_quota.h"
#include "core/cpus.h"
#include "core/dispatch.h"

namespace pocketformer::bindings {

namespace py = pybind11;

void bind_machine(py::module_& m) {
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) {
      if (isa.supported()) names.emplace_back(isa.name);
    }
    return names;
  });
  m.def("missing_features", [] {
    py::dict missing;
    for (const Isa& isa : isas()) missing[isa.name] = isa.missing();
    return missing;
  });
  m.def("default_threads", &default_threads);
  m.def("largest_cache", &largest_cache, py::arg("root") = "");
  m.def("cgroup_cpus", &cgroup_cpus, py::arg("root") = "");
  m.def(
      "read_cpus",
      [](const std::string& root, const std::vector<int>& allowed) {
        const Cpus cpus = read_cpus(root, allowed);
        py::list list;
        for (const Cpu& cpu : cpus.list) {
          py::dict entry;
          entry["id"] = cpu.id;
          entry["core"] = cpu.core;
          entry["strength"] = cpu.strength;
          entry["chosen"] = cpu.chosen;
          list.append(entry);
        }
        py::dict result;
        result["cpus"] = list;
        result["measure"] = cpus.measure;
        result["quota"] = cpus.quota;
        result["threads"] = cpus.threads;
        return result;
      },
      py::arg("root") = "", py::arg("allowed") = std::vector<int>());
}

}  // namespace pocketformer::bindings
