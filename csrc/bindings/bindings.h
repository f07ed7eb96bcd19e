// What the parts of the extension module register, and how they let go of the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

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

// Whoever waits for the GIL while the interpreter is being finalized never gets it. Up to 3.13 CPython ends that thread
// with pthread_exit, whose unwinding must not leave a noexcept destructor (std::terminate) nor a run that workers of
// the pool still take part in. So it is caught, and the thread sleeps until the process is gone; 3.14 does the same
// itself.
template <typename Take>
auto take_gil(Take take) noexcept -> decltype(take()) {
  try {
    return take();
  } catch (...) {  // the handler must not end: a forced unwinding that is swallowed aborts as well
    for (;;) pause();
  }
}

// Lets other Python threads run as long as it lives.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    take_gil([this] { PyEval_RestoreThread(state_); });
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// A signal's handler runs here, so that Ctrl-C ends a long call; false when it raised nothing. For the calling thread,
// without the GIL.
inline bool signalled(void* = nullptr) {
  const PyGILState_STATE state = take_gil([] { return PyGILState_Ensure(); });
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

}  // namespace pocketformer::bindings
