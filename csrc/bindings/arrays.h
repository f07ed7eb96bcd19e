// What numpy arrays are taken as: exact dtype, layout and shape, never a silent conversion or copy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <type_traits>

#include "core/errors.h"
#include "runtime/tensors.h"

namespace pocketformer::bindings {

namespace py = pybind11;

template <typename T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, int8_t>) return "int8";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, uint16_t>) return "uint16";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  return "int64";
}

// What an object is, for a message. Found out only when the message is written: it takes microseconds.
struct Description {
  py::handle object;

  std::string text() const {
    if (!py::isinstance<py::array>(object))
      return "a " + py::cast<std::string>(py::type::handle_of(object).attr("__name__"));
    const auto array = py::reinterpret_borrow<py::array>(object);
    return py::cast<std::string>(py::str(array.dtype())) + " of shape " +
           py::cast<std::string>(py::str(array.attr("shape")));
  }
};

inline Description describe(const py::handle& object) { return {object}; }

// C-contiguous and at a multiple of its item size: numpy itself makes others, from slices and from bytes.
inline void require_plain(const py::array& array, const std::string& name) {
  require((array.flags() & py::array::c_style) != 0, name, " is not C-contiguous; pass numpy.ascontiguousarray(", name,
          ")");
  require((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, name,
          " does not start at a multiple of its item size; pass a copy");
}

// A plain array of exactly T with `dimensions` axes.
template <typename T>
py::array_t<T> array_of(const py::handle& object, const char* name, int dimensions) {
  require(py::isinstance<py::array_t<T>>(object), name, " is ", describe(object), "; pass a numpy array of ",
          dtype_name<T>());
  auto array = py::reinterpret_borrow<py::array_t<T>>(object);
  require(array.ndim() == dimensions, name, " is ", describe(object), "; it must have ", dimensions, " dimension",
          dimensions == 1 ? "" : "s");
  require_plain(array, name);
  return array;
}

// `object` as a writable float32 [rows, columns], or a new array when it is None.
inline py::array_t<float> output_array(const py::handle& object, py::ssize_t rows, py::ssize_t columns) {
  if (object.is_none()) return py::array_t<float>({rows, columns});
  auto array = array_of<float>(object, "out", 2);
  require(array.shape(0) == rows && array.shape(1) == columns, "out is ", describe(object), "; it must have shape (",
          rows, ", ", columns, ")");
  require(array.writeable(), "out is read-only; pass a writable array");
  return array;
}

// numpy's float16, for which pybind11 has no type.
inline bool is_half(const py::array& array) { return array.dtype().char_() == 'e' && array.dtype().byteorder() == '='; }

// A parameter where it lies; the caller keeps the array alive.
inline Tensor tensor(const py::handle& object, const std::string& name) {
  require(py::isinstance<py::array>(object), "tensor '", name, "' is ", describe(object), "; pass a numpy array");
  const auto array = py::reinterpret_borrow<py::array>(object);
  require_plain(array, "tensor '" + name + "'");
  Tensor tensor{array.data(), DType::kOther, {array.shape(), array.shape() + array.ndim()}};
  if (py::isinstance<py::array_t<float>>(array)) tensor.dtype = DType::kF32;
  if (py::isinstance<py::array_t<int8_t>>(array)) tensor.dtype = DType::kI8;
  if (py::isinstance<py::array_t<uint8_t>>(array)) tensor.dtype = DType::kU8;
  if (py::isinstance<py::array_t<int32_t>>(array)) tensor.dtype = DType::kI32;
  if (is_half(array)) tensor.dtype = DType::kF16;
  return tensor;
}

// numpy's name of a dtype.
inline DType dtype_named(const std::string& name) {
  if (name == dtype_name<float>()) return DType::kF32;
  if (name == dtype_name<int8_t>()) return DType::kI8;
  if (name == dtype_name<uint8_t>()) return DType::kU8;
  if (name == "float16") return DType::kF16;
  return name == dtype_name<int32_t>() ? DType::kI32 : DType::kOther;
}

}  // namespace pocketformer::bindings
