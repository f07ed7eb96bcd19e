// What the calls of pocketformer.kernels share: arrays as rows, results, threads, scratch, and each thread's choice of
// instruction set.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "bindings/arrays.h"
#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "kernels/table.h"

namespace pocketformer::bindings {

using Object = const py::object&;

inline constexpr int64_t kMostRows = int64_t{1} << 30;   // rows and indices of kernels are ints
inline constexpr int64_t kMostWidth = int64_t{1} << 24;  // and so are products of a width and a few dozen rows

// The kernels that `using` chose for this thread, or those of POCKETFORMER_ISA, or the best.
const KernelTable& current_kernels();

// `threads` of a call: None is as many as `work` multiply-adds occupy, at most default_threads().
int thread_count(Object threads, double work);

// A Python integer of any size; what exceeds 64 bits is refused by its `name`.
int64_t integer(Object value, const char* name);

// A Python or numpy number.
double number(Object value, const char* name);

Activation activation_named(Object name);

// --- arrays --------------------------------------------------------------------------------------------------------

// Memory of a caller's array, as rows of its last axis.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t count = 0, width = 0;

  explicit operator bool() const { return data != nullptr; }
};

// A plain array of exactly T with at least one axis.
template <typename T>
py::array_t<T> checked_array(Object object, const char* name) {
  require(py::isinstance<py::array_t<T>>(object), name, " is ", describe(object), "; pass a numpy array of ",
          dtype_name<T>());
  auto array = py::reinterpret_borrow<py::array_t<T>>(object);
  require(array.ndim() >= 1, name, " is ", describe(object), "; it must have at least 1 dimension");
  require_plain(array, name);
  return array;
}

template <typename T>
Rows<const T> rows_of(const py::array_t<T>& array, const char* name) {
  const int64_t width = array.shape(array.ndim() - 1), count = width == 0 ? 0 : array.size() / width;
  require(width >= 1 && width <= kMostWidth && count <= kMostRows, name, " is ", describe(array),
          "; its last axis must hold 1 to ", kMostWidth, " values, and at most ", kMostRows, " rows go before it");
  return {array.data(), count, width};
}

// As rows of `width` values; `what` names the width in a message.
template <typename T>
Rows<const T> rows_of_width(const py::array_t<T>& array, const char* name, int64_t width, const char* what) {
  require(array.shape(array.ndim() - 1) == width, name, " is ", describe(array), "; its last axis must hold ", width,
          " values, ", what);
  return rows_of(array, name);
}

// A vector of `length`, or null for None.
inline const float* vector_or_null(Object object, const char* name, int64_t length) {
  if (object.is_none()) return nullptr;
  const auto array = array_of<float>(object, name, 1);
  require(array.size() == length, name, " is ", describe(object), "; it must have shape (", length, ")");
  return array.data();
}

inline std::string shape_text(const std::vector<py::ssize_t>& shape) {
  return py::cast<std::string>(py::str(py::tuple(py::cast(shape))));
}

inline std::vector<py::ssize_t> shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

// `out` as it must be for a result of `shape`, or a new array when it is None.
template <typename T>
py::array_t<T> result_array(Object out, const std::vector<py::ssize_t>& shape) {
  if (out.is_none()) return py::array_t<T>(shape);
  auto array = checked_array<T>(out, "out");
  require(shape_of(array) == shape, "out is ", describe(out), "; it must have shape ", shape_text(shape));
  require(array.writeable(), "out is read-only; pass a writable array");
  return array;
}

// The shape of `array` with another last axis.
inline std::vector<py::ssize_t> with_width(const py::array& array, int64_t width) {
  std::vector<py::ssize_t> shape = shape_of(array);
  shape.back() = width;
  return shape;
}

// An operand that is read while `out` is being written.
inline void require_apart(const py::array& operand, const char* name, const py::array& out) {
  const auto begin = [](const py::array& a) { return static_cast<const char*>(a.data()); };
  require(begin(operand) + operand.nbytes() <= begin(out) || begin(out) + out.nbytes() <= begin(operand),
          "out shares memory with ", name, "; pass another array");
}

// --- work ----------------------------------------------------------------------------------------------------------

// Hands out pieces of a thread's working memory, each at a multiple of kAlignment. Without memory it only counts them,
// and a caller that sees counts() takes its pieces and does nothing.
class Scratch {
 public:
  explicit Scratch(std::byte* memory = nullptr) : memory_(memory) {}

  template <typename T>
  T* take(size_t count) {
    const size_t begin = used_;
    used_ += round_up(count * sizeof(T), kAlignment);
    return counts() ? nullptr : reinterpret_cast<T*>(memory_ + begin);
  }
  bool counts() const { return memory_ == nullptr; }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

// Memory of the calling thread that its later calls find again; what it held is lost.
std::byte* thread_memory(size_t bytes);

// fn(unit, thread) for every unit in [0, units), each on one of up to `threads` threads.
template <typename Fn>
void parallel(int threads, int64_t units, Fn fn) {
  threads = static_cast<int>(std::min<int64_t>(threads, units));
  if (threads <= 1) {
    for (int64_t unit = 0; unit < units; ++unit) fn(unit, 0);
    return;
  }
  struct Work {
    Fn& fn;
    int64_t units;
    std::atomic<int64_t> next{0};
  } work{fn, units};
  const auto job = [](void* context, int thread, int, Barrier&) {
    Work& w = *static_cast<Work*>(context);
    for (int64_t unit; (unit = w.next.fetch_add(1, std::memory_order_relaxed)) < w.units;) w.fn(unit, thread);
  };
  ThreadPool::instance().run(threads, job, &work);
}

// The first row of a call in which a thread met what a kernel does not take.
class Offender {
 public:
  void note(int64_t row) {
    int64_t first = row_.load(std::memory_order_relaxed);
    while (row < first && !row_.compare_exchange_weak(first, row, std::memory_order_relaxed)) {
    }
  }
  void check(const char* name, const char* what = "NaN or infinity; pass finite numbers") const {
    const int64_t row = row_.load(std::memory_order_relaxed);
    require(row == INT64_MAX, name, ", row ", row, ", holds ", what);
  }

 private:
  std::atomic<int64_t> row_{INT64_MAX};
};

}  // namespace pocketformer::bindings
