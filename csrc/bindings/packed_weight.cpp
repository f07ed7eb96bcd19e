#include "bindings/packed_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bindings/calls.h"
#include "core/half.h"

namespace pocketformer::bindings {
namespace {

// The transform of python/pocketformer/hadamard.py, butterfly by butterfly: compressing a model gives the same bits.
void hadamard(std::vector<double>& row, int block) {
  for (int half = 1; half < block; half *= 2) {
    for (size_t begin = 0; begin < row.size(); begin += static_cast<size_t>(2 * half)) {
      for (size_t i = begin; i < begin + static_cast<size_t>(half); ++i) {
        const double low = row[i], high = row[i + static_cast<size_t>(half)];
        row[i] = low + high;
        row[i + static_cast<size_t>(half)] = low - high;
      }
    }
  }
}

// The entry of an ascending codebook that is nearest to `value`; of two equally near ones the lower.
int nearest(const int8_t* codebook, double value) {
  int best = 0;
  for (int i = 1; i < 16; ++i) {
    if (std::abs(value - codebook[i]) < std::abs(value - codebook[best])) best = i;
  }
  return best;
}

// Two neighbours in steps of a scale, to the nearest integers; beyond the bound to those near the nearest point on it.
void round_pair(double a, double b, int (&to)[2]) {
  const double wide[2] = {std::abs(a), std::abs(b)};
  const auto nearest_to = [](double value) { return static_cast<int>(std::clamp(std::nearbyint(value), 0.0, 127.0)); };
  for (int i = 0; i < 2; ++i) to[i] = nearest_to(wide[i]);
  if (to[0] + to[1] > kPairBound) {
    to[0] = nearest_to(wide[0] - (wide[0] + wide[1] - kPairBound) / 2);
    to[1] = std::min(to[1], kPairBound - to[0]);
  }
  if (a < 0) to[0] = -to[0];
  if (b < 0) to[1] = -to[1];
}

// A channel with bounded pairs, an even number of inputs: the scale of least squared error among a few, from that which
// brings the largest magnitude to 127 to that which brings the largest pair to its bound. Rounded where `to` is given.
double bounded_error(const std::vector<double>& row, double step, int* to) {
  double error = 0;
  for (size_t i = 0; i < row.size(); i += 2) {
    int pair[2];
    round_pair(row[i] / step, row[i + 1] / step, pair);
    for (size_t j = 0; j < 2; ++j) {
      const double off = row[i + j] - step * pair[j];
      error += off * off;
      if (to != nullptr) to[i + j] = pair[j];
    }
  }
  return error;
}
float bounded_scale(const std::vector<double>& row) {
  constexpr int kScales = 8;
  double low = 0, high = 0;
  for (size_t i = 0; i < row.size(); i += 2) {
    const double a = std::abs(row[i]), b = std::abs(row[i + 1]);
    low = std::max({low, a / 127, b / 127}), high = std::max(high, (a + b) / kPairBound);
  }
  high = std::max(low, high);
  float best = static_cast<float>(high);
  double least = INFINITY;
  for (int i = 0; i < kScales && best != 0; ++i) {
    const float scale = static_cast<float>(low + (high - low) * i / (kScales - 1));
    const double error = scale != 0 ? bounded_error(row, static_cast<double>(scale), nullptr) : INFINITY;
    if (error < least) least = error, best = scale;
  }
  return best;
}

}  // namespace

PackedWeight::PackedWeight(const float* weight, int n, int k, Format format, int group, int rotate,
                           const int8_t* codebook, bool bounded_pairs) {
  view_ = WeightView{.format = format, .panels = nullptr, .n = n, .k = k, .group = group, .rotate = rotate};
  view_.bounded_pairs = bounded_pairs;
  const size_t columns = static_cast<size_t>(panels()) * kLanes, depth = static_cast<size_t>(k);
  const bool floats = is_float(format), int8 = format == Format::kI8;
  const size_t panel_bytes = floats ? depth * (format == Format::kF16 ? sizeof(uint16_t) : sizeof(float))
                             : int8 ? round_up(depth, 4)
                                    : round_up(depth, 8) / 2;
  const size_t groups = group == 0 ? 1 : depth / static_cast<size_t>(group);
  const auto place = [&](std::byte* memory) {
    Scratch pieces(memory);
    panels_ = pieces.take<std::byte>(columns * panel_bytes);
    if (!floats) scale_ = pieces.take<float>(columns * groups);
    if (int8) colsum_ = pieces.take<int32_t>(columns);
    if (!floats && !int8) codebook_ = pieces.take<int8_t>(16);
    bytes_ = pieces.used();
    if (int8) {
      slice_colsum_ = pieces.take<int32_t>(columns * static_cast<size_t>(slices()));
      ones_ = pieces.take<float>(columns);
    }
    return pieces.used();
  };
  memory_.reserve(place(nullptr));
  place(memory_.data());  // zeros, as the padding has to be
  view_.panels = panels_, view_.scale = scale_, view_.colsum = colsum_;
  if (codebook_ != nullptr) {
    std::memcpy(codebook_, codebook, 16);
    view_.codebook = codebook_;
  }
  if (floats) {
    pack_floats(weight);
    return;
  }
  if (int8) std::fill_n(ones_, columns, 1.0f);
  std::vector<double> row(depth);
  for (int channel = 0; channel < n; ++channel) {
    std::copy_n(weight + static_cast<size_t>(channel) * depth, depth, row.begin());
    hadamard(row, rotate);
    for (double& value : row) value /= std::max(rotate, 1);
    bounded_pairs ? pack_bounded(channel, row) : pack_channel(channel, row);
  }
}

void PackedWeight::pack_floats(const float* weight) {
  const size_t depth = static_cast<size_t>(view_.k);
  for (size_t channel = 0; channel < static_cast<size_t>(view_.n); ++channel) {
    const size_t first = channel / kLanes * depth * kLanes + channel % kLanes;
    for (size_t i = 0; i < depth; ++i) {
      const float value = weight[channel * depth + i];
      if (view_.format == Format::kF16)
        reinterpret_cast<uint16_t*>(panels_)[first + i * kLanes] = narrow(value);
      else
        reinterpret_cast<float*>(panels_)[first + i * kLanes] = value;
    }
  }
}

size_t PackedWeight::code_index(int channel, int column) const {
  const size_t per_group = view_.format == Format::kI8 ? 4 : 8, i = static_cast<size_t>(column),
               groups = (static_cast<size_t>(view_.k) + per_group - 1) / per_group,
               panel = static_cast<size_t>(channel / kLanes), lane = static_cast<size_t>(channel % kLanes);
  return ((panel * groups + i / per_group) * kLanes + lane) * 4 + i % 4;
}

void PackedWeight::pack_channel(int channel, const std::vector<double>& row) {
  const int k = view_.k, width = view_.group == 0 ? k : view_.group, lane = channel % kLanes;
  const bool int8 = view_.format == Format::kI8;
  for (int begin = 0; begin < k; begin += width) {
    // int8: the largest magnitude becomes ±127. int4: it becomes the codebook's largest magnitude, sign included, so
    // that a codebook which is not symmetric loses nothing.
    double extreme = 0;
    for (int i = begin; i < begin + width; ++i) {
      if (std::abs(row[static_cast<size_t>(i)]) > std::abs(extreme)) extreme = row[static_cast<size_t>(i)];
    }
    double most = 127;
    if (!int8) most = -codebook_[0] > codebook_[15] ? codebook_[0] : codebook_[15];
    const float scale = static_cast<float>((int8 ? std::abs(extreme) : extreme) / most);
    scale_[(static_cast<size_t>(channel / kLanes) * static_cast<size_t>(k / width) +
            static_cast<size_t>(begin / width)) *
               kLanes +
           static_cast<size_t>(lane)] = scale;
    const double step = scale != 0 ? static_cast<double>(scale) : 1.0;
    for (int i = begin; i < begin + width; ++i) {
      const double value = row[static_cast<size_t>(i)] / step;
      const size_t at = code_index(channel, i);
      if (int8) {
        set_int8(channel, i, static_cast<int>(std::clamp(std::nearbyint(value), -127.0, 127.0)));
      } else {
        const int index = nearest(codebook_, value);
        reinterpret_cast<uint8_t*>(panels_)[at] |= static_cast<uint8_t>(i / 4 % 2 == 0 ? index : index << 4);
      }
    }
  }
}

void PackedWeight::pack_bounded(int channel, std::vector<double> row) {
  row.resize(round_up(row.size(), 2));
  const float scale = bounded_scale(row);
  std::vector<int> rounded(row.size());
  if (scale != 0) bounded_error(row, static_cast<double>(scale), rounded.data());
  scale_[channel] = scale;
  for (int i = 0; i < view_.k; ++i) set_int8(channel, i, rounded[static_cast<size_t>(i)]);
}

void PackedWeight::set_int8(int channel, int column, int value) {
  reinterpret_cast<int8_t*>(panels_)[code_index(channel, column)] = static_cast<int8_t>(value);
  colsum_[channel] += value;
  slice_colsum_[static_cast<size_t>(column / kExactK) * static_cast<size_t>(panels()) * kLanes +
                static_cast<size_t>(channel)] += value;
}

int PackedWeight::code(int channel, int column) const {
  const size_t at = code_index(channel, column);
  if (view_.format == Format::kI8) return reinterpret_cast<const int8_t*>(panels_)[at];
  const uint8_t both = reinterpret_cast<const uint8_t*>(panels_)[at];
  return codebook_[column / 4 % 2 == 0 ? both & 15 : both >> 4];
}

void PackedWeight::dequantize(float* out) const {
  const int k = view_.k, width = view_.group == 0 ? k : view_.group;
  const size_t depth = static_cast<size_t>(k);
  std::vector<double> row(depth);
  for (int channel = 0; channel < view_.n; ++channel, out += depth) {
    const size_t panel = static_cast<size_t>(channel / kLanes), lane = static_cast<size_t>(channel % kLanes);
    if (is_float(view_.format)) {
      const size_t first = panel * depth * kLanes + lane;
      for (size_t i = 0; i < depth; ++i) {
        const size_t at = first + i * kLanes;
        out[i] = view_.format == Format::kF16 ? widen(reinterpret_cast<const uint16_t*>(panels_)[at])
                                              : reinterpret_cast<const float*>(panels_)[at];
      }
      continue;
    }
    for (int i = 0; i < k; ++i) {
      const float scale =
          scale_[(panel * static_cast<size_t>(k / width) + static_cast<size_t>(i / width)) * kLanes + lane];
      row[static_cast<size_t>(i)] = static_cast<double>(scale) * code(channel, i);
    }
    hadamard(row, view_.rotate);
    for (size_t i = 0; i < depth; ++i) out[i] = static_cast<float>(row[i]);
  }
}

WeightView PackedWeight::slice(int slice, int panel) const {
  WeightView part = view_;
  const int begin = slice * kExactK, groups = (view_.k + 3) / 4;
  part.panels = reinterpret_cast<const int8_t*>(panels_) +
                (static_cast<size_t>(panel) * static_cast<size_t>(groups) + static_cast<size_t>(begin / 4)) * 64;
  part.colsum = slice_colsum_ +
                (static_cast<size_t>(slice) * static_cast<size_t>(panels()) + static_cast<size_t>(panel)) * kLanes;
  part.scale = ones_;
  part.k = std::min(kExactK, view_.k - begin);
  part.n = view_.n - panel * kLanes;
  return part;
}

}  // namespace pocketformer::bindings
