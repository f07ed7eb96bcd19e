// An operator's fields and tensors, checked as they are taken: what a lowering step gets from here holds.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/errors.h"
#include "runtime/graph.h"

namespace pocketformer {

class Operands {
 public:
  explicit Operands(const Tensors& tensors) : tensors_(tensors) {}

  // What the messages begin with.
  void set_where(std::string where) { where_ = std::move(where); }

  template <typename... Parts>
  void check(bool condition, const Parts&... message) const {
    require(condition, where_, ": ", message...);
  }

  int extent(const char* field, int64_t value, int64_t low, int64_t high) const {
    check(value >= low && value <= high, field, " is ", value, "; it must be ", low, " to ", high);
    return static_cast<int>(value);
  }

  float finite(const char* field, double value) const {
    const float narrow = static_cast<float>(value);
    check(std::isfinite(narrow), field, " is ", value, "; it must be finite");
    return narrow;
  }

  int rotation(int64_t rotate, int64_t k) const {
    check(rotate == 0 || (rotate > 0 && rotate <= kMaxRotate && (rotate & (rotate - 1)) == 0 && k % rotate == 0),
          "rotate is ", rotate, "; it must be 0 or a power of two up to ", kMaxRotate, " that divides ", k);
    return static_cast<int>(rotate);
  }

  template <typename T, size_t count>
  T choose(const char* field, const std::string& value, const std::pair<const char*, T> (&choices)[count]) const {
    std::string known;
    for (const auto& [name, choice] : choices) {
      if (value == name) return choice;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    throw std::invalid_argument(concat(where_, ": ", field, " is '", value, "'; it must be one of ", known));
  }

  const Tensor* find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  const Tensor& tensor(const std::string& name) const {
    const Tensor* found = find(name);
    check(found != nullptr, "tensor '", name, "' is missing");
    return *found;
  }

  template <typename T>
  const T* data(const std::string& name, const Tensor& tensor, const std::vector<int64_t>& shape) const {
    constexpr DType dtype = sizeof(T) == 1 ? DType::kI8 : std::is_same_v<T, float> ? DType::kF32 : DType::kI32;
    check(tensor.dtype == dtype, "tensor '", name, "' has the wrong dtype; it must be ",
          dtype == DType::kI8    ? "int8"
          : dtype == DType::kF32 ? "float32"
                                 : "int32");
    check(tensor.shape == shape, "tensor '", name, "' has shape ", shape_text(tensor.shape), "; it must be ",
          shape_text(shape));
    check(reinterpret_cast<uintptr_t>(tensor.data) % kAlignment == 0, "tensor '", name,
          "' is not aligned to 64 bytes; map the file or copy it to aligned memory");
    return static_cast<const T*>(tensor.data);
  }

  template <typename T>
  const T* required(const std::string& name, const std::vector<int64_t>& shape) const {
    return data<T>(name, tensor(name), shape);
  }

  template <typename T>
  const T* optional(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor* found = find(name);
    return found == nullptr ? nullptr : data<T>(name, *found, shape);
  }

 private:
  static constexpr int64_t kMaxRotate = 128;

  static std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
    return text + "]";
  }

  const Tensors& tensors_;
  std::string where_;
};

}  // namespace pocketformer
