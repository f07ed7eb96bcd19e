#include "runtime/grouped_table.h"

#include "core/half.h"

namespace pocketformer {
namespace {

// What input `i` of a channel is multiplied by; `panel` is the channel's, and `lane` its place there.
int value_of(const WeightView& table, size_t panel, size_t lane, size_t i) {
  const size_t k = static_cast<size_t>(table.k);
  const auto byte = [&](const void* plane, size_t step, size_t at) {  // a plane of ⌈k/step⌉ × 16 × 4 bytes
    const size_t steps = (k + step - 1) / step;
    return static_cast<const uint8_t*>(plane)[((panel * steps + at / step) * kLanes + lane) * 4 + at % 4];
  };
  if (table.format == Format::kI8) return static_cast<int8_t>(byte(table.panels, 4, i));
  int index = byte(table.panels, 8, i) >> (i / 4 % 2 * 4) & 15;
  if (table.format == Format::kI5) index |= (byte(table.high, 32, i) >> (i / 4 % 8) & 1) << 4;
  if (table.format == Format::kI6) index |= (byte(table.high, 16, i) >> (i / 4 % 4 * 2) & 3) << 4;
  return table.codebook[index];
}

}  // namespace

void look_up_grouped(const WeightView& table, int row, float* out) {
  const size_t panel = static_cast<size_t>(row) / kLanes, lane = static_cast<size_t>(row) % kLanes;
  const size_t k = static_cast<size_t>(table.k), group = static_cast<size_t>(table.group), groups = k / group;
  const size_t per_half = table.subscale != nullptr ? kBlockK : group;
  for (size_t g = 0; g < groups; ++g) {
    const size_t at = (panel * groups + g) * kLanes + lane;
    const size_t half = (panel * (k / per_half) + g * group / per_half) * kLanes + lane;
    const auto factor = [&](const float* floats, const uint16_t* halves, const int8_t* multiples) {
      if (floats != nullptr) return floats[at];
      if (halves == nullptr) return 0.0f;
      return widen(halves[half]) * (multiples != nullptr ? static_cast<float>(multiples[at]) : 1.0f);
    };
    const float scale = factor(table.scale, table.half_scale, table.subscale);
    const float minimum = factor(table.minimum, table.half_minimum, table.subminimum);
    for (size_t i = g * group; i < (g + 1) * group; ++i)
      out[i] = static_cast<float>(value_of(table, panel, lane, i)) * scale + minimum;
  }
}

}  // namespace pocketformer
