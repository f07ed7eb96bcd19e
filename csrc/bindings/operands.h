// Arguments of the raw kernels, checked as they are taken: arrays of exact shapes, numbers in ranges, names of a
// choice.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "core/aligned_buffer.h"
#include "kernels/table.h"

namespace pocketformer::bindings {

using Object = const py::object&;

// An argument's memory and shape, checked as it is taken.
template <typename T>
struct Operand {
  T* data = nullptr;
  std::vector<py::ssize_t> shape;

  size_t ld() const { return static_cast<size_t>(shape.back()); }
  int rows() const { return static_cast<int>(shape.front()); }
};

// A shape's entry: exactly `size`, or at least `size` and a multiple of `multiple`.
struct Extent {
  int64_t size;
  int64_t multiple = 0;

  bool fits(py::ssize_t n) const { return multiple == 0 ? n == size : n >= size && n % multiple == 0; }
  std::string text() const {
    return multiple == 0 ? std::to_string(size) : concat(size, " or more by ", multiple, "s");
  }
};

struct Extents {
  const std::vector<Extent>& all;

  std::string text() const {
    std::string list;
    for (const Extent& extent : all) list += (&extent != &all.front() ? ", " : "") + extent.text();
    return list;
  }
};

template <typename T>
Operand<T> input(Object object, const char* name, const std::vector<Extent>& extents, bool write = false) {
  const auto array = array_of<std::remove_const_t<T>>(object, name, static_cast<int>(extents.size()));
  Operand<T> operand{const_cast<T*>(array.data()), {array.shape(), array.shape() + array.ndim()}};
  bool fits = true;
  for (size_t i = 0; i < extents.size(); ++i) {
    fits = fits && extents[i].fits(array.shape(static_cast<py::ssize_t>(i)));
  }
  require(fits, name, " is ", describe(object), "; it must have shape (", Extents{extents}, ")");
  require(reinterpret_cast<uintptr_t>(operand.data) % kAlignment == 0, name, " does not start at a multiple of ",
          kAlignment, " bytes; copy it to an aligned array");
  require(!write || array.writeable(), name, " is read-only; pass a writable array");
  return operand;
}

template <typename T>
Operand<T> output(Object object, const char* name, const std::vector<Extent>& extents) {
  return input<T>(object, name, extents, true);
}

template <typename T>
const T* optional(Object object, const char* name, const std::vector<Extent>& extents) {
  return object.is_none() ? nullptr : input<const T>(object, name, extents).data;
}

inline constexpr int64_t kMost = 1 << 24, kMaxHeads = 1024;

inline int64_t at_least(const char* name, int64_t value, int64_t least, int64_t most = kMost) {
  require(value >= least && value <= most, name, " is ", value, "; it must be ", least, " to ", most);
  return value;
}

// Rows of any object that has them; 1 to 2^24, so that no later product of sizes overflows.
inline int64_t rows_of(Object object, const char* name) {
  require(py::isinstance<py::array>(object), name, " is ", describe(object), "; pass a numpy array");
  const auto array = py::reinterpret_borrow<py::array>(object);
  require(array.ndim() >= 1, name, " is ", describe(object), "; it must have rows");
  const int64_t rows = array.shape(0);
  require(rows >= 1 && rows <= kMost, "the number of rows of ", name, " is ", rows, "; it must be 1 to ", kMost);
  return rows;
}

template <typename T, size_t N>
T choice(const char* name, const std::string& value, const std::pair<const char*, T> (&choices)[N]) {
  for (const auto& [text, result] : choices) {
    if (value == text) return result;
  }
  std::string known;
  for (const auto& entry : choices) known += concat(known.empty() ? "" : ", ", entry.first);
  throw std::invalid_argument(concat(name, " is '", value, "'; it must be one of ", known));
}

inline Activation activation(const std::string& name) {
  constexpr std::pair<const char*, Activation> kNames[] = {
      {"none", Activation::kNone}, {"gelu", Activation::kGelu}, {"gelu_tanh", Activation::kGeluTanh},
      {"relu", Activation::kRelu}, {"silu", Activation::kSilu}, {"tanh", Activation::kTanh}};
  return choice("activation", name, kNames);
}

inline void check_rotate(int64_t rotate, int64_t width) {
  at_least("rotate", rotate, 0, 128);
  require((rotate & (rotate - 1)) == 0 && (rotate == 0 || width % rotate == 0), "rotate is ", rotate,
          "; it must be 0 or a power of two that divides ", width);
}

// Of values of k that share a scale; 0 stands for all.
inline void check_group(int64_t group, int64_t k) {
  require(group == 0 || (group >= kLanes && group % kLanes == 0 && k % group == 0), "group is ", group,
          "; it must be 0 or a multiple of ", kLanes, " that divides ", k);
}

inline int64_t groups(int64_t k, int64_t group) { return group == 0 ? 1 : k / group; }

inline int64_t padded(int64_t width) { return static_cast<int64_t>(round_up(static_cast<size_t>(width), kLanes)); }

}  // namespace pocketformer::bindings
