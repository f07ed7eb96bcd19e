// What a file stores in a smaller way, put together before it is multiplied, a panel or a few at a time: indices of 4
// bits, planes of 5 and 6, scales as fp16.
#pragma once

#include "kernels/gemm.h"

namespace {

// A last k-group without three more has padding after it: an ISA's own product takes four at a time.
template <class V>
void look_up_panel(const WeightView& weight, int8_t* out) {
  const typename V::B table = V::repeat16(weight.codebook);
  const auto* w = static_cast<const int8_t*>(weight.panels);
  const int pairs = (weight.k + 7) / 8;
  for (int i = 0; i < pairs; ++i, w += 64, out += 128) {
    const typename V::B pair = V::load_b(w);
    V::store_b(out, V::lookup(table, V::low_nibbles(pair)));
    V::store_b(out + 64, V::lookup(table, V::high_nibbles(pair)));
  }
  if (pairs % 2 != 0) std::memset(out, 0, 128);
}

// A panel of 4 + Bits bits: consecutive values, of which index 0 stands for `first`.
template <int Bits>
void join_planes(const uint8_t* __restrict low, const uint8_t* __restrict high, int first, int pairs,
                 int8_t* __restrict out) {
  constexpr int kPairs = 4 / Bits, kMask = (1 << Bits) - 1;  // pairs of k-groups whose upper bits share a byte
  // The next panel is on its way while this one is multiplied.
  const int low_ahead = 64 * pairs, high_ahead = 64 * ((pairs + kPairs - 1) / kPairs);
  for (; pairs > 0; pairs -= kPairs, high += 64) {
    prefetch(high + high_ahead);
    unroll<kPairs>([&](auto pair) POCKETFORMER_LAMBDA {
      if (pair >= pairs) return;
      constexpr int shift = 2 * Bits * pair;
      prefetch(low + low_ahead);
      for (int i = 0; i < 64; ++i) {
        out[i] = static_cast<int8_t>(first + (low[i] & 15) + (high[i] >> shift & kMask) * 16);
        out[64 + i] = static_cast<int8_t>(first + (low[i] >> 4) + (high[i] >> (shift + Bits) & kMask) * 16);
      }
      low += 64, out += 128;
    });
  }
}

// fp16 scales as floats, `groups` × 16; with `sub` times these, each fp16 being that of `share` groups. Exact. As many
// again are fetched, for the panels that come next.
template <class V>
__attribute__((noinline)) void widen_scales(const uint16_t* half, const int8_t* sub, int groups, int share,
                                            float* out) {
  typename V::F scale = V::zero();
  const int steps = groups / share;
  for (int left = 0; groups > 0; --groups, out += kLanes) {
    if (left == 0) {
      scale = V::load_f16(half);
      prefetch(half + steps * kLanes);
      left = share, half += kLanes;
    }
    --left;
    V::store(out, sub == nullptr ? scale : V::mul(scale, V::load_i8(sub)));
    if (sub != nullptr) {
      prefetch(sub + steps * share * kLanes);
      sub += kLanes;
    }
  }
}

// On the stack, and most of it in the nearest caches: 96 KiB. Either the bytes of one panel of up to kLookedUpK inputs
// and its scales, or the scales of longer channels and of more panels at once.
constexpr int kPanelBytes = pocketformer::kLookedUpK * kLanes;
constexpr int kPanelScales = 2 * pocketformer::kLookedUpK / 16 * kLanes;  // with minima, in the smallest groups
static_assert(2 * pocketformer::kMostGroups * kLanes * sizeof(float) <= kPanelBytes + kPanelScales * sizeof(float));

}  // namespace
