// In a wheel's static C++ library the demangler is a sixteenth of all machine code, for the names of C++ types in messages that
// nobody sees: pybind11 asks for one of a type that was never registered, and the handler of an exception that nothing
// catches. Both take a failure for an answer and print the mangled name.
#include <cstddef>

extern "C" char* __cxa_demangle(const char*, char*, std::size_t*, int* status) {
  if (status) *status = -2;  // as of a name that cannot be read
  return nullptr;
}
