// Bytes as tensors, and as weights made of them: of every format, mostly as a writer of files would make them.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "runtime/lowering.h"

namespace pocketformer {

class Weights {
 public:
  explicit Weights(FuzzedDataProvider& bytes) : bytes_(bytes) {}

  const Tensors& tensors() const { return tensors_; }
  bool odd() const { return odd_; }

 protected:
  static constexpr size_t kMaxTensorBytes = 1 << 18;

  static Item record(Record fields) { return {std::move(fields)}; }
  static Item text(const std::string& value) { return {value}; }
  static Item number(int64_t value) { return {value}; }

  // True once in sixteen times, and false when the bytes run out.
  bool wrong() { return bytes_.ConsumeIntegral<uint8_t>() >= 240; }

  int64_t size() {
    constexpr int64_t kOdd[] = {0,   -1,  15,  16,      17,      63,      64,       65,       128,       256,
                                257, 512, 768, 1 << 20, 1 << 24, 1 << 30, 1L << 31, 1L << 32, INT64_MAX, INT64_MIN};
    const int byte = bytes_.ConsumeIntegral<uint8_t>();
    return byte < 232 ? 1 + byte % 116 : kOdd[static_cast<size_t>(byte - 232) % std::size(kOdd)];
  }
  int64_t or_wrong(int64_t right) { return wrong() ? size() : right; }

  // Columns of a value: half of the time such as groups can share.
  int64_t width() {
    constexpr int64_t kWhole[] = {16, 32, 64, 96, 128, 256, 256, 512};
    return bytes_.ConsumeBool() ? size() : bytes_.PickValueInArray(kWhole);
  }

  std::string name() {  // parameters are shared now and then
    if (!wrong()) ++names_;
    return "w" + std::to_string(names_);
  }

  int64_t rotation(int64_t k) {
    constexpr int64_t kBlocks[] = {0, 2, 4, 8, 16, 32, 64, 128};
    const int64_t block = bytes_.PickValueInArray(kBlocks);
    return block != 0 && k > 0 && k % block == 0 ? block : or_wrong(0);
  }

  static int64_t up(int64_t value, int64_t multiple) {
    return value < 0 || value > (1 << 30) ? 0 : (value + multiple - 1) / multiple * multiple;
  }

  // What the writer of a file would not write is `odd()`: worthless, and perhaps not the same everywhere.
  void tensor(const std::string& name, DType dtype, std::vector<int64_t> shape, bool positive = false) {
    if (wrong()) return;
    if (wrong() && !shape.empty()) shape[bytes_.ConsumeIntegralInRange<size_t>(0, shape.size() - 1)] = size();
    if (wrong())
      dtype = bytes_.PickValueInArray({DType::kF32, DType::kI8, DType::kU8, DType::kI32, DType::kF16, DType::kOther});
    size_t bytes = element(dtype);
    for (int64_t& extent : shape) {
      if (extent < 0 || extent > (1 << 20) || bytes * static_cast<size_t>(extent) > kMaxTensorBytes) extent = 1;
      bytes *= static_cast<size_t>(extent);
    }
    if (tensors_.has(name)) return;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<size_t>(bytes, 1)) != 0) std::abort();
    memory_.emplace_back(memory);
    fill(static_cast<char*>(memory), bytes, dtype, positive);
    made_[name] = {memory, dtype, shape};
    tensors_.add(name, {memory, dtype, std::move(shape)});
  }

  const char* floats() { return bytes_.PickValueInArray({"f32", "f32", "f16"}); }

  // A weight in panels, of any format; `i8g` is i8 in groups.
  void weight(const std::string& name, const std::string& format, int64_t n, int64_t k, int64_t rotate) {
    constexpr int64_t kGroups[] = {0, 16, 32, 64, 128};
    const bool grouped = format == "i4" || format == "i5" || format == "i6" || format == "i8g";
    const int64_t group = grouped ? bytes_.PickValueInArray(kGroups) : 0;
    const int64_t used = group != 0 && k > 0 && k % group == 0 ? group : or_wrong(0);
    const std::string stored = format == "i8g" ? "i8" : format;
    const bool blocks = used != 0 && k % 256 == 0;
    const std::string scales =
        used == 0 ? "f32" : bytes_.PickValueInArray({"f32", "f16", blocks ? "two_level" : "f16"});
    const bool by_group = used != 0 && bytes_.ConsumeBool();
    const char* inputs = !by_group ? "row" : n % 2 != 0 && used > 16 ? "half_group" : "group";
    const bool bounded = format == "i8" ? n % 3 == 0 : n % 33 == 0;  // which is refused of another format
    facts(name, stored, n, k, by_group || (used != 0 && format != "i4") ? or_wrong(0) : rotate, used, "panels", scales,
          inputs, bounded);
    if (format == "f32") return tensor(name + ".weight", DType::kF32, {up(n, 16) / 16, k, 16});
    const int64_t panels = up(n, 16) / 16;
    if (format == "f16") {
      const int64_t multiple = k > 0 && k < (1 << 20) ? table_row_multiple(k * 32) : 1;
      return tensor(name + ".weight", DType::kF16, {up(panels, multiple), k, 16});
    }
    if (stored == "i8") {
      tensor(name + ".weight", DType::kI8, {panels, up(k, 4) / 4, 16, 4});
      if (bounded && n % 11 != 0) halve(name + ".weight");
      if (used == 0) colsum(name, n);
    } else {
      tensor(name + ".weight", DType::kU8, {panels, up(k, 8) / 8, 16, 4});
      if (format == "i5") tensor(name + ".high", DType::kU8, {panels, up(k, 32) / 32, 16, 4});
      if (format == "i6") tensor(name + ".high", DType::kU8, {panels, up(k, 16) / 16, 16, 4});
      tensor(name + ".codebook", DType::kI8, {64});
      if (format != "i4") count_up(name + ".codebook");
    }
    const bool minimum = grouped && bytes_.ConsumeBool();
    for (const char* which : {"scale", "minimum"}) {
      const bool scale = which[0] == 's';
      if (scale || minimum) factors(name, which, panels, n, k, used, scales, scale && used == 0);
    }
  }

  // A table that is only looked up.
  void table(const std::string& name, const char* format, int64_t rows, int64_t width, int64_t rotate) {
    const int bits = std::atoi(format + 1);
    facts(name, format, rows, width, rotate, 0, "rows", "f32", "row");
    const bool possible = width > 0 && width < (1 << 20);
    const int64_t columns = possible && bits < 8 ? up(width, 16) / 8 * bits : width;
    const int64_t padded = possible ? up(rows, table_row_multiple(columns * std::max(bits / 8, 1))) : rows;
    const DType stored = bits == 32 ? DType::kF32 : bits == 16 ? DType::kF16 : bits == 8 ? DType::kI8 : DType::kU8;
    tensor(name + ".weight", stored, {padded, columns});
    if (bits < 8) tensor(name + ".codebook", DType::kI8, {bits == 7 ? 128 : 64});
    if (bits <= 8) tensor(name + ".scale", DType::kF32, {up(rows, 16)}, true);
  }

  FuzzedDataProvider& bytes_;
  Record weights_;
  bool odd_ = false;

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  static size_t element(DType dtype) {
    return dtype == DType::kI8 || dtype == DType::kU8 ? 1 : dtype == DType::kF16 ? 2 : 4;
  }

  void fill(char* memory, size_t bytes, DType dtype, bool positive) {
    const uint8_t seed = bytes_.ConsumeIntegral<uint8_t>();
    if (seed >= 250) {
      odd_ = true;
      std::memset(memory, seed % 2 ? 0xFF : 0x80, bytes);
      return;
    }
    uint32_t state = seed + 1u;
    for (size_t i = 0; i < bytes; i += element(dtype)) {
      const int32_t value = static_cast<int32_t>(((state = state * 1664525u + 1013904223u) >> 16) % 255) - 127;
      const float real = static_cast<float>(positive ? std::abs(value) : value) / (positive ? 1 << 14 : 1 << 9);
      const uint16_t half = static_cast<uint16_t>(0x1000 + std::abs(value) * 0x20 + (value < 0 ? 0x8000 : 0));
      if (element(dtype) == 1) {
        memory[i] = static_cast<char>(value);
      } else if (dtype == DType::kF32) {
        std::memcpy(memory + i, &real, 4);
      } else if (dtype == DType::kF16) {
        std::memcpy(memory + i, &half, 2);
      } else {
        std::memcpy(memory + i, &value, 4);
      }
    }
  }

  // What keeps pairs within their bound.
  void halve(const std::string& name) {
    const auto made = made_.find(name);
    if (made == made_.end() || made->second.dtype != DType::kI8) return;
    auto* values = static_cast<int8_t*>(const_cast<void*>(made->second.data));
    int64_t count = 1;
    for (const int64_t extent : made->second.shape) count *= extent;
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<int8_t>(values[i] / 2);
  }

  // The true sums of a weight's channels, if it is one.
  void colsum(const std::string& name, int64_t n) {
    tensor(name + ".colsum", DType::kI32, {up(n, 16)});
    const auto weight = made_.find(name + ".weight"), sums = made_.find(name + ".colsum");
    if (weight == made_.end() || sums == made_.end() || sums->second.dtype != DType::kI32) return;
    const std::vector<int64_t>& shape = weight->second.shape;
    if (weight->second.dtype != DType::kI8 || shape.size() != 4) return;
    if (sums->second.shape != std::vector<int64_t>{shape[0] * shape[2]}) return;
    if (wrong()) {
      odd_ = true;
      return;
    }
    auto* to = static_cast<int32_t*>(const_cast<void*>(sums->second.data));
    const auto* from = static_cast<const int8_t*>(weight->second.data);
    std::fill_n(to, shape[0] * shape[2], 0);
    for (int64_t p = 0; p < shape[0]; ++p) {
      for (int64_t i = 0; i < shape[1] * shape[2] * shape[3]; ++i)
        to[p * shape[2] + i / shape[3] % shape[2]] += *from++;
    }
  }

  // A codebook of 5 or 6 bits in panels: consecutive entries, but for a lie.
  void count_up(const std::string& codebook) {
    const auto made = made_.find(codebook);
    if (made == made_.end() || made->second.dtype != DType::kI8 || made->second.shape != std::vector<int64_t>{64})
      return;
    const int first = bytes_.ConsumeIntegralInRange(-127, 63);
    auto* entries = static_cast<int8_t*>(const_cast<void*>(made->second.data));
    for (int i = 0; i < 64; ++i) entries[i] = static_cast<int8_t>(first + i);
  }

  void factors(const std::string& name, const std::string& which, int64_t panels, int64_t n, int64_t k, int64_t group,
               const std::string& scales, bool positive) {
    const std::string tensor_name = name + "." + which;
    if (group <= 0) return tensor(tensor_name, DType::kF32, {up(n, 16)}, positive);
    const int64_t groups = k / group;
    const auto whole_lines = [&](int64_t entries, int64_t size) {
      return up(panels, table_row_multiple(entries * 16 * size));
    };
    if (scales == "f32") return tensor(tensor_name, DType::kF32, {panels, groups, 16});
    const int64_t halves = scales == "f16" ? groups : k / 256;
    tensor(tensor_name, DType::kF16, {halves > 0 ? whole_lines(halves, 2) : panels, halves, 16});
    if (scales != "f16" && groups > 0) tensor(name + ".sub" + which, DType::kI8, {whole_lines(groups, 1), groups, 16});
  }

  void facts(const std::string& name, const std::string& format, int64_t n, int64_t k, int64_t rotate, int64_t group,
             const char* layout, const std::string& scales, const char* inputs, bool bounded = false) {
    if (!known_.insert({name, true}).second) return;
    weights_.emplace_back(name, record({{"format", text(format)},
                                        {"n", number(or_wrong(n))},
                                        {"k", number(k)},
                                        {"rotate", number(rotate)},
                                        {"group", number(group)},
                                        {"layout", text(layout)},
                                        {"scales", text(scales)},
                                        {"inputs", text(inputs)},
                                        {"bounded_pairs", Item{bounded}}}));
  }

  Tensors tensors_;
  std::map<std::string, Tensor> made_;
  std::map<std::string, bool> known_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  int names_ = 0;
};

}  // namespace pocketformer
