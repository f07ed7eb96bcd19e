// SMMLA (armv8.6 and optional before): two rows by two channels by eight values of k, 32 products an instruction.
#include "isa/dotprod.h"

namespace {

struct Isa : DotProd {
  static constexpr const char* kName = "i8mm";
  // 3 pairs of rows × 8 registers of sums + 3 of activations + 4 of weights, of 32.
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmGroups = 2;

  // Few rows. Two k-groups of the packed layout interleave to eight consecutive values of two channels: 8 more
  // instructions a step, shared by all rows. An odd last row is paired with itself.
  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    constexpr int kPairs = (Rows + 1) / 2;
    int32x4_t sum[8 * kPairs];
    unroll<8 * kPairs>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = vdupq_n_s32(0); });
    for (; groups > 0; groups -= 2, a += 8, w += 128) {
      int8x16_t x[kPairs];
      unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA {
        constexpr int second = 2 * p + 1 < Rows ? 2 * p + 1 : 2 * p;
        x[p] = vreinterpretq_s8_u8(vcombine_u8(vld1_u8(a + 2 * p * lda), vld1_u8(a + second * lda)));
      });
      unroll<4>([&](auto q) POCKETFORMER_LAMBDA {
        int8x16_t lo, hi;
        interleave<q>(w, lo, hi);
        unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA {
          sum[2 * q * kPairs + p] = vmmlaq_s32(sum[2 * q * kPairs + p], x[p], lo);
          sum[2 * q * kPairs + kPairs + p] = vmmlaq_s32(sum[2 * q * kPairs + kPairs + p], x[p], hi);
        });
      });
    }
    separate<Rows>(acc, sum);
  }

  // Eight consecutive values of channels 4·Q, 4·Q + 1 and of the two after them, from two k-groups of a panel.
  template <int Q>
  static POCKETFORMER_INLINE void interleave(const int8_t* w, int8x16_t& lo, int8x16_t& hi) {
    const int32x4_t w0 = vreinterpretq_s32_s8(vld1q_s8(w + 16 * Q)),
                    w1 = vreinterpretq_s32_s8(vld1q_s8(w + 64 + 16 * Q));
    lo = vreinterpretq_s8_s32(vzip1q_s32(w0, w1)), hi = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
  }

  // sum[channel/2][pair], which holds row 0 of two channels and row 1 of them, added to acc[row].
  template <int Rows>
  static POCKETFORMER_INLINE void separate(I (&acc)[Rows], const int32x4_t (&sum)[(Rows + 1) / 2 * 8]) {
    constexpr int kPairs = (Rows + 1) / 2;
    unroll<4 * Rows>([&](auto i) POCKETFORMER_LAMBDA {
      constexpr int q = i % 4, r = i / 4, at = 2 * q * kPairs + r / 2;
      const int64x2_t lo = vreinterpretq_s64_s32(sum[at]), hi = vreinterpretq_s64_s32(sum[at + kPairs]);
      int32x4_t& total = quarter<q>(acc[r]);
      total = vaddq_s32(total, vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(lo, hi) : vzip2q_s64(lo, hi)));
    });
  }
};

// Many rows: weights and activations interleaved beforehand, once for all tiles that read them, leave nothing but
// products on the vector pipes. Rows [pair][k/8][2][8], panel [k/8][channel/2][2][8]; k is a multiple of 8.
struct Interleaved : Isa {
  template <int Rows>
  static POCKETFORMER_INLINE void product(I (&acc)[Rows], const uint8_t* a, size_t lda, const int8_t* w, int groups) {
    constexpr int kPairs = (Rows + 1) / 2;
    int32x4_t sum[8 * kPairs];
    unroll<8 * kPairs>([&](auto i) POCKETFORMER_LAMBDA { sum[i] = vdupq_n_s32(0); });
    for (; groups > 0; groups -= 2, a += 16, w += 128) {
      int8x16_t x[kPairs];
      unroll<kPairs>([&](auto p) POCKETFORMER_LAMBDA { x[p] = vreinterpretq_s8_u8(vld1q_u8(a + 2 * p * lda)); });
      unroll<8>([&](auto c) POCKETFORMER_LAMBDA {
        const int8x16_t weight = vld1q_s8(w + 16 * c);
        unroll<kPairs>(
            [&](auto p) POCKETFORMER_LAMBDA { sum[c * kPairs + p] = vmmlaq_s32(sum[c * kPairs + p], x[p], weight); });
      });
    }
    separate<Rows>(acc, sum);
  }
};

}  // namespace

#include "kernels/quantize.h"

namespace {

// On the stack. A panel takes half a first-level cache of 64 KiB; 24 rows or more share the cost of interleaving it.
constexpr int kInterleavedK = 2048, kInterleavedBytes = 24 * kInterleavedK;

void interleave_rows(const uint8_t* x, size_t ldx, int rows, int k, uint8_t* out) {
  for (int r = 0; r < rows; r += 2) {
    const uint8_t *first = x + r * ldx, *second = r + 1 < rows ? first + ldx : first;
    for (int i = 0; i < k; i += 8, out += 16) {
      vst1_u8(out, vld1_u8(first + i));
      vst1_u8(out + 8, vld1_u8(second + i));
    }
  }
}

// An odd last k-group gets a partner of zeros.
void interleave_panel(const int8_t* w, int groups, int8_t* out) {
  alignas(16) int8_t last[128] = {};
  for (int i = 0; i < groups; i += 2, w += 128, out += 128) {
    if (i + 1 == groups) {
      std::memcpy(last, w, 64);
      w = last;
    }
    unroll<4>([&](auto q) POCKETFORMER_LAMBDA {
      int8x16_t lo, hi;
      Isa::interleave<q>(w, lo, hi);
      vst1q_s8(out + 32 * q, lo);
      vst1q_s8(out + 32 * q + 16, hi);
    });
  }
}

void gemm_i8_interleaved(const GemmArgs& g) {
  alignas(64) uint8_t rows[kInterleavedBytes];
  alignas(64) int8_t weights[kInterleavedK * kLanes];
  const int groups = (g.weight.k + 3) / 4, k = round_up(g.weight.k, 8);
  const int block = kInterleavedBytes / k / Isa::kGemmRows * Isa::kGemmRows;
  for (int row = 0; row < g.m; row += block) {
    const int height = g.m - row < block ? g.m - row : block;
    interleave_rows(static_cast<const uint8_t*>(g.x) + row * g.ldx, g.ldx, height, k, rows);
    for (int panel = g.panel_begin; panel < g.panel_end; ++panel) {
      GemmArgs tile = part_of<uint8_t>(g, row, height, panel);
      interleave_panel(static_cast<const int8_t*>(tile.weight.panels), groups, weights);
      tile.x = rows, tile.ldx = k, tile.weight.panels = weights, tile.weight.k = k;
      // Tiles begin at even rows, where a pair does.
      for (int first = 0; first < height; first += Isa::kGemmRows)
        dispatch_height<TileI8, Interleaved, 1>(std::make_integer_sequence<int, Isa::kGemmRows>{},
                                                height - first < Isa::kGemmRows ? height - first : Isa::kGemmRows, tile,
                                                first, 0);
    }
  }
}

template <>
void gemm_i8_panels<Isa>(const GemmArgs& g) {
  if (g.m >= 2 * Isa::kGemmRows && g.weight.k <= kInterleavedK)
    gemm_i8_interleaved(g);
  else
    gemm_panels<TileI8, Isa>(g);
}

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(i8mm)
