// What the parts of the extension module register, and how they let go of the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pocketformer::bindings {

void bind_attention_calls(pybind11::module_& m);
void bind_cache(pybind11::module_& m);
void bind_calls(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_key_value_cache(pybind11::module_& m);
void bind_machine(pybind11::module_& m);
void bind_probes(pybind11::module_& m);
void bind_products(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_row_calls(pybind11::module_& m);
void bind_session(pybind11::module_& m);

// Lets other Python threads run as long as it lives.
//
// Whoever waits for the GIL while the interpreter is being finalized never gets it. Up to 3.13 CPython ends that thread
// with pthread_exit, whose unwinding must not leave a noexcept destructor (std::terminate). So it is caught, and the
// thread sleeps until the process is gone; 3.14 does the same itself.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // the handler must not end: a forced unwinding that is swallowed aborts as well
      for (;;) pause();
    }
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// A signal's handler runs here, so that Ctrl-C ends a long call; false when it raised nothing. For the calling thread,
// without the GIL. Handlers run in the main thread alone: others do not ask, and while the interpreter is finalized
// they must not, since PyGILState_Ensure then reads what is gone.
inline bool signalled(void* = nullptr) {
  if (syscall(SYS_gettid) != getpid()) return false;
  const pybind11::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

}  // namespace pocketformer::bindings
