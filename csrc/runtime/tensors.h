// A file's tensors, taken by name: what comes out has the dtype, shape, alignment and range that was asked for.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/errors.h"
#include "runtime/fields.h"

namespace pocketformer {

enum class DType { kF32, kI8, kU8, kI32, kF16, kOther };

// Without data, where only the shapes are known yet, what concerns values and addresses is not looked at.
struct Tensor {
  const void* data;
  DType dtype;
  std::vector<int64_t> shape;
};

class Tensors {
 public:
  void add(std::string name, Tensor tensor) { all_.emplace(std::move(name), std::move(tensor)); }

  template <typename T>
  const T* take(const Place& place, const std::string& name, const std::vector<int64_t>& shape) {
    const auto found = all_.find(name);
    require(found != all_.end(), place.text(), ": tensor '", name, "' is missing");
    const Tensor& tensor = found->second;
    require(tensor.dtype == dtype<T>() && tensor.shape == shape, place.text(), ": tensor '", name, "' is ",
            dtype_name(tensor.dtype), " ", shape_text(tensor.shape), "; it must be ", dtype_name(dtype<T>()), " ",
            shape_text(shape));
    require(reinterpret_cast<uintptr_t>(tensor.data) % kAlignment == 0, place.text(), ": tensor '", name,
            "' is not aligned to 64 bytes; map the file or copy it to aligned memory");
    used_.insert(name);
    return static_cast<const T*>(tensor.data);
  }

  // Finite numbers; `low` bounds them from below.
  const float* take_floats(const Place& place, const std::string& name, const std::vector<int64_t>& shape,
                           float low = -INFINITY) {
    const float* data = take<float>(place, name, shape);
    if (data == nullptr) return data;
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    for (int64_t i = 0; i < count; ++i) {
      require(std::isfinite(data[i]), place.text(), ": tensor '", name, "' holds NaN or infinity; every entry must be ",
              "finite");
      require(data[i] >= low, place.text(), ": tensor '", name, "' holds ", data[i], "; scales are at least ", low);
    }
    return data;
  }

  // Bits of fp16, finite.
  const uint16_t* take_halves(const Place& place, const std::string& name, const std::vector<int64_t>& shape) {
    const uint16_t* data = take<uint16_t>(place, name, shape);
    int64_t count = data == nullptr ? 0 : 1;
    for (const int64_t extent : shape) count *= extent;
    for (int64_t i = 0; i < count; ++i) {
      require((data[i] & 0x7C00) != 0x7C00, place.text(), ": tensor '", name,
              "' holds NaN or infinity; every entry must be finite");
    }
    return data;
  }

  bool has(const std::string& name) const { return all_.count(name) != 0; }

  void refuse_unused() const {
    for (const auto& [name, tensor] : all_) {
      require(used_.count(name) != 0, "tensor '", name, "' belongs to no operator; remove it");
    }
  }

 private:
  template <typename T>
  static constexpr DType dtype() {
    if (std::is_same_v<T, float>) return DType::kF32;
    if (std::is_same_v<T, int8_t>) return DType::kI8;
    if (std::is_same_v<T, uint8_t>) return DType::kU8;
    if (std::is_same_v<T, uint16_t>) return DType::kF16;
    return DType::kI32;
  }

  static const char* dtype_name(DType dtype) {
    constexpr const char* kNames[] = {"float32", "int8", "uint8", "int32", "float16", "another dtype"};
    return kNames[static_cast<int>(dtype)];
  }

  static std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
    return text + "]";
  }

  std::unordered_map<std::string, Tensor> all_;
  std::unordered_set<std::string> used_;
};

}  // namespace pocketformer
