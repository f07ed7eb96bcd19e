#include "bindings/calls.h"

#include <cstdlib>

#include "bindings/bindings.h"
#include "core/cpus.h"
#include "core/dispatch.h"
#include "runtime/session.h"

namespace pocketformer::bindings {
namespace {

// A sleeping thread is awake after some 50 µs: the multiply-adds that one thread does meanwhile in int8 on AVX2.
constexpr double kThreadWork = 4e6;

constexpr size_t kKeptBytes = 64 << 20;  // more is given back when a smaller call follows

thread_local const KernelTable* chosen_kernels = nullptr;
thread_local AlignedBuffer memory_of_thread;

// Returns what was chosen before, for `using` to restore.
py::object choose_isa(const py::object& name) {
  require(name.is_none() || py::isinstance<py::str>(name), "name is ", describe(name),
          "; pass that of an ISA, or None");
  const KernelTable* before = chosen_kernels;
  chosen_kernels = name.is_none() ? nullptr : &kernels(py::cast<std::string>(name));
  if (before == nullptr) return py::none();
  return py::str(before->isa);
}

}  // namespace

const KernelTable& current_kernels() {
  if (chosen_kernels != nullptr) return *chosen_kernels;
  if (std::getenv("POCKETFORMER_ISA") != nullptr) return kernels();
  static const KernelTable& best = kernels();
  return best;
}

int thread_count(Object threads, double work) {
  if (threads.is_none()) {
    static const int all = default_threads();
    return static_cast<int>(std::min<double>(all, 1 + work / kThreadWork));
  }
  require(py::isinstance<py::int_>(threads) && !py::isinstance<py::bool_>(threads), "threads is ", describe(threads),
          "; pass an integer of at least 1, or None");
  return checked_threads(integer(threads, "threads"));
}

int64_t integer(Object value, const char* name) {
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  require(overflow == 0, name, " is an integer of more than 64 bits; pass a smaller one");
  return result;
}

double number(Object value, const char* name) {
  const double result = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred() != nullptr)
    PyErr_Clear();
  else
    return result;
  throw std::invalid_argument(concat(name, " is ", describe(value), "; pass a number"));
}

Activation activation_named(Object name) {
  if (name.is_none()) return Activation::kNone;
  constexpr std::pair<const char*, Activation> kNames[] = {{"gelu", Activation::kGelu},
                                                           {"gelu_tanh", Activation::kGeluTanh},
                                                           {"relu", Activation::kRelu},
                                                           {"silu", Activation::kSilu},
                                                           {"tanh", Activation::kTanh}};
  require(py::isinstance<py::str>(name), "activation is ", describe(name), "; pass a name or None");
  const std::string wanted = py::cast<std::string>(name);
  for (const auto& [known, activation] : kNames) {
    if (wanted == known) return activation;
  }
  throw std::invalid_argument(
      concat("activation is '", wanted, "'; it must be gelu, gelu_tanh, relu, silu, tanh or None"));
}

std::byte* thread_memory(size_t bytes) {
  if (memory_of_thread.size() > kKeptBytes && bytes <= kKeptBytes) memory_of_thread.release();
  memory_of_thread.reserve(std::max(bytes, kAlignment));
  return memory_of_thread.data();
}

void bind_calls(py::module_& m) { m.def("choose_isa", &choose_isa, py::arg("name")); }

}  // namespace pocketformer::bindings
