// SDOT (armv8.2 and later): 16 products an instruction. Shared by dotprod and i8mm.
#pragma once

#include "isa/neon.h"

namespace {

struct DotProd : Neon {
  // 8 rows × half a panel: 16 registers of sums + 8 of activations + 8 of weights, of 32. The square tile needs the
  // fewest loads for its products, which is what the in-order Cortex-A55 is bound by.
  static constexpr int kGemmRows = 8;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmGroups = 4;
  static constexpr int kGemmRowsI4 = 3, kRowPanels = 2;  // g++ 12 schedules more until they spill

  static POCKETFORMER_INLINE I dot4(I acc, B x, B w) { return each<I>(vdotq_s32, acc, w, x); }
  static POCKETFORMER_INLINE I dot4_p(I acc, B x, B w) { return dot4(acc, x, w); }

  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    if (groups == 0) return;
    if constexpr (Rows <= 4) {
      product_panel<Rows>(acc, a, lda, w, groups);
    } else {
      alignas(16) int32_t sums[2][8 * Rows];
      for (int h = 0; h < 2; ++h) product_half<Rows>(sums[h], a, lda, w + 32 * h, groups);
      add_halves<Rows>(acc, sums);
    }
  }

  // acc[i] += p · the i-th four bytes of w, by element.
  static constexpr bool kAttentionProducts = true;
  template <int N>
  static POCKETFORMER_INLINE void dot4_elements(I (&acc)[N], B p, const int8_t* w) {
    static_assert(N == 4);
    const int8x16_t x = vld1q_s8(w);
    unroll<4 * N>([&](auto i) POCKETFORMER_LAMBDA {
      int32x4_t& sum = quarter<i / 4>(acc[i % 4]);
      sum = vdotq_laneq_s32(sum, quarter<i / 4>(p), x, i % 4);
    });
  }

  // Loads that keep their place among products in the order that an in-order core wants: a load beside every few of
  // them, its register free since the last and its value not needed for a dozen more. Volatile statements keep that
  // order with every compiler.
  static POCKETFORMER_INLINE int8x16_t load16(const int8_t* base, size_t at) {
    int8x16_t v;
    __asm__ volatile("ldr %q0, [%1, %2]" : "=w"(v) : "r"(base), "r"(at));
    return v;
  }
  template <int At>
  static POCKETFORMER_INLINE int8x16_t load16(const void* base) {
    int8x16_t v;
    __asm__ volatile("ldr %q0, [%1, %2]" : "=w"(v) : "r"(base), "i"(At));
    return v;
  }
  // sum[channel] += w[channel][0..3] · the Group-th four bytes of x.
  template <int Group>
  static POCKETFORMER_INLINE void multiply(int32x4_t& sum, int8x16_t w, int8x16_t x) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(Group));
  }

  // Few rows: a whole panel at a time, or there were too few chains. Activations by element: a broadcasting load takes
  // a slot of the vector pipes that the products need.
  template <int Rows>
  struct Panel {
    int8x16_t w[8];     // [k-group, even or odd][channel/4]
    int8x16_t x[Rows];  // four k-groups of a row

    // Four k-groups of products, and the first operands of the next four where there are More.
    template <bool More>
    POCKETFORMER_INLINE void step(I (&acc)[Rows], const uint8_t* const (&rows)[Rows], const int8_t* weights) {
      unroll<4>([&](auto group) POCKETFORMER_LAMBDA {
        constexpr int now = group % 2 * 4, next = 4 - now;
        unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA {
          unroll<4>([&](auto q) POCKETFORMER_LAMBDA { multiply<group>(quarter<q>(acc[r]), w[now + q], x[r]); });
          if constexpr (More || group < 3) {
            unroll<4>([&](auto q) POCKETFORMER_LAMBDA {
              if constexpr (q * Rows / 4 == r) w[next + q] = load16<64 * (group + 1) + 16 * q>(weights);
            });
          }
          if constexpr (More && group == 3) x[r] = load16<16>(rows[r]);
        });
      });
    }
  };

  template <int Rows>
  static POCKETFORMER_INLINE void product_panel(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w,
                                                int groups) {
    __asm__ volatile("" : : : "memory");  // the loads below are not seen by the compiler
    Panel<Rows> t;
    const uint8_t* rows[Rows];
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { rows[r] = a + r * lda; });
    unroll<4>([&](auto q) POCKETFORMER_LAMBDA { t.w[q] = load16<16 * q>(w); });
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { t.x[r] = load16<0>(rows[r]); });
    for (; groups > 4; groups -= 4, w += 256) {
      t.template step<true>(acc, rows, w);
      unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { rows[r] += 16; });
    }
    t.template step<false>(acc, rows, w);
  }

  // Half a panel. Addresses are a base and an index, so that the loop counts four registers up and no more.
  template <int Rows>
  struct Half {
    int32x4_t sum[2 * Rows];  // [row][channel/4]
    int8x16_t w[8];           // [block][group][channel/4]; a block is two k-groups
    int8x8_t x[Rows];         // the block's two k-groups of a row

    static POCKETFORMER_INLINE int8x8_t load8(const uint8_t* base, size_t at) {
      int8x8_t v;
      __asm__ volatile("ldr %d0, [%1, %2]" : "=w"(v) : "r"(base), "r"(at));
      return v;
    }
    template <int Block, int G, int R>
    POCKETFORMER_INLINE void row() {
      unroll<2>([&](auto q) POCKETFORMER_LAMBDA {
        __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[%3]"
                         : "+w"(sum[2 * R + q])
                         : "w"(w[4 * Block + 2 * G + q]), "w"(x[R]), "i"(G));
      });
    }
    // Products of a block in pairs of rows: four chains, as many as a product takes cycles. A row's activations are
    // then replaced by the next block's, and the other block's weights by the next step's.
    template <int Block, class LoadX, class LoadW>
    POCKETFORMER_INLINE void block(LoadX load_x, LoadW load_w) {
      constexpr int kPairs = (Rows + 1) / 2;
      unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA {
        constexpr int first = 2 * p, second = 2 * p + 1;
        row<Block, 0, first>();
        unroll<4>([&](auto i) POCKETFORMER_LAMBDA {
          if constexpr (i * kPairs / 4 == p) load_w(i);
        });
        if constexpr (second < Rows) row<Block, 0, second>();
        row<Block, 1, first>();
        load_x(first);
        if constexpr (second < Rows) row<Block, 1, second>(), load_x(std::integral_constant<int, second>{});
      });
    }
  };

  // Out of line, and its sums in memory: of one copy for both halves g++ 12 keeps every vector in a register.
  template <int Rows>
  __attribute__((noinline)) static void product_half(int32_t* sums, const uint8_t* a, size_t lda, const int8_t* w,
                                                     int groups) {
    __asm__ volatile("" : : : "memory");  // the loads below are not seen by the compiler
    Half<Rows> t;
    const int8_t* weights[4];  // of the second block
    const uint8_t* rows[Rows];
    unroll<4>([&](auto i) POCKETFORMER_LAMBDA { weights[i] = w + 128 + 64 * (i / 2) + 16 * (i % 2); });
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { rows[r] = a + r * lda; });
    unroll<2 * Rows>([&](auto i) POCKETFORMER_LAMBDA { t.sum[i] = vdupq_n_s32(0); });
    unroll<4>([&](auto i) POCKETFORMER_LAMBDA { t.w[i] = load16<64 * (i / 2) + 16 * (i % 2)>(w); });
    unroll<Rows>([&](auto r) POCKETFORMER_LAMBDA { t.x[r] = t.load8(rows[r], 0); });
    size_t at = 0, high = 8, low = 16;
    const size_t end = 64 * static_cast<size_t>(groups - 4);
    const auto high_x = [&](auto r) POCKETFORMER_LAMBDA { t.x[r] = t.load8(rows[r], high); };
    const auto low_x = [&](auto r) POCKETFORMER_LAMBDA { t.x[r] = t.load8(rows[r], low); };
    const auto high_w = [&](auto i) POCKETFORMER_LAMBDA { t.w[4 + i] = load16(weights[i], at); };
    // By a constant offset: one micro-operation less on the Cortex-A76, one cycle more on the A55.
    const auto low_w = [&](auto i) POCKETFORMER_LAMBDA { t.w[i] = load16<256 + 64 * (i / 2) + 16 * (i % 2)>(w); };
    while (at != end) {
      t.template block<0>(high_x, high_w);
      t.template block<1>(low_x, low_w);
      __asm__ volatile("add %0, %0, #16\n add %1, %1, #16\n add %2, %2, #256\n add %3, %3, #256"
                       : "+r"(high), "+r"(low), "+r"(at), "+r"(w));
    }
    const auto none = [](auto) POCKETFORMER_LAMBDA {};
    t.template block<0>(high_x, high_w);
    t.template block<1>(none, none);
    unroll<2 * Rows>([&](auto i) POCKETFORMER_LAMBDA { vst1q_s32(sums + 4 * i, t.sum[i]); });
  }
};

}  // namespace
