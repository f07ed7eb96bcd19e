// A weight in the kernels' layout, in memory of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "kernels/table.h"

namespace pocketformer::bindings {

class PackedWeight {
 public:
  // `weight` is [n][k], finite. `group` 0 is one scale a channel; `rotate` a power of two that divides k, or 0;
  // `codebook` (kI4) 16 ascending values; `bounded_pairs` of kI8.
  PackedWeight(const float* weight, int n, int k, Format format, int group, int rotate, const int8_t* codebook,
               bool bounded_pairs);
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  const WeightView& view() const { return view_; }
  int panels() const { return (view_.n + kLanes - 1) / kLanes; }
  size_t bytes() const { return bytes_; }

  // The weight that it stands for, rotated back: [n][k].
  void dequantize(float* out) const;

  // kI8: the integer product of a slice of k is exact in a float where the slice is no longer than this.
  static constexpr int kExactK = 1040;
  static_assert(127 * 127 * kExactK < 1 << 24 && kExactK % 4 == 0);
  int slices() const { return (view_.k + kExactK - 1) / kExactK; }
  // Slice `slice` of panels [panel, …) with its own sums and scales of one. Only the first panel lies as the kernel
  // expects unless there is a single slice.
  WeightView slice(int slice, int panel) const;

 private:
  struct Parts;
  Parts parts(std::byte* memory);
  void pack_floats(const float* weight);
  void pack_channel(int channel, const std::vector<double>& row);
  void pack_bounded(int channel, std::vector<double> row);
  void set_int8(int channel, int column, int value);
  size_t code_index(int channel, int column) const;
  int code(int channel, int column) const;

  WeightView view_;
  size_t bytes_ = 0;
  AlignedBuffer memory_;
  std::byte* panels_ = nullptr;
  float* scale_ = nullptr;
  int32_t* colsum_ = nullptr;        // kI8
  int32_t* slice_colsum_ = nullptr;  // kI8: [slices][round_up(n, 16)]
  float* ones_ = nullptr;            // kI8
  int8_t* codebook_ = nullptr;       // kI4
};

}  // namespace pocketformer::bindings
