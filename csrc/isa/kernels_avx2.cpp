#include "isa/avx2.h"

namespace {

struct Isa : Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kActivationOffset = 0;
  // 4 × 2 registers of accumulators + 2 weights + an activation, its absolute value and products in flight of 16
  // registers.
  static constexpr int kGemmRows = 4;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmRowsF32 = 6;  // a multiply-add is one instruction: two registers fewer beside the sums
  static constexpr int kGemmStepF32 = 1;
  static constexpr int kGemmRowsI4 = 3;  // the codebook and two masks take registers too
  static constexpr bool kNarrowSums = true;
  static constexpr int kGemmRowsNarrow = 5;  // 5 × 2 registers of sums + 2 weights + an activation and products
  static constexpr int kRowPanels = 4;
  static constexpr bool kTotalsInRegisters = false;
  static constexpr int kLookedUpRows = 5;
  static constexpr bool kAttentionProducts = false;
  static constexpr bool kBoundedPairs = true;
  struct Bounded;

  // |a| · (w with a's sign): pair sums stay within 2·127·127 = 32,258, so vpmaddubsw cannot saturate.
  static POCKETFORMER_INLINE I dot4(I acc, B a, B w) {
    return {add_pairs(acc.lo, _mm256_maddubs_epi16(_mm256_abs_epi8(a.lo), _mm256_sign_epi8(w.lo, a.lo))),
            add_pairs(acc.hi, _mm256_maddubs_epi16(_mm256_abs_epi8(a.hi), _mm256_sign_epi8(w.hi, a.hi)))};
  }
  static POCKETFORMER_INLINE S dot2_narrow(S acc, B w, B a) {
    return {_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.lo, a.lo)),
            _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.hi, a.hi))};
  }
  static POCKETFORMER_INLINE S multiply_narrow(B w, B a) {
    return {_mm256_maddubs_epi16(w.lo, a.lo), _mm256_maddubs_epi16(w.hi, a.hi)};
  }
  static POCKETFORMER_INLINE S add_narrow(S a, S b) {
    return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
  }
  static POCKETFORMER_INLINE I widen_narrow(S x) {
    return widen_narrow(x, {_mm256_set1_epi16(1), _mm256_set1_epi16(1)});
  }
  static POCKETFORMER_INLINE I widen_narrow(S x, B ones) {
    return {_mm256_madd_epi16(x.lo, ones.lo), _mm256_madd_epi16(x.hi, ones.hi)};
  }
  static POCKETFORMER_INLINE B bias(B x) { return x; }
  static POCKETFORMER_INLINE I dot4_p(I acc, B a, B w) {
    return {add_pairs(acc.lo, _mm256_maddubs_epi16(a.lo, w.lo)), add_pairs(acc.hi, _mm256_maddubs_epi16(a.hi, w.hi))};
  }

 private:
  static POCKETFORMER_INLINE __m256i add_pairs(__m256i acc, __m256i pairs) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// Pairs of weights whose magnitudes add up to at most 128, times activations of 1…255: 32,640 does not saturate, and no
// sign is to be moved, which is one instruction of four on the two pipes that multiply.
struct Isa::Bounded : Isa {
  static constexpr int kActivationOffset = 128;
  static constexpr int kGemmRows = 5;  // 5 × 2 registers of sums + 2 weights + an activation and products; 6 spill

  // Rows are signed, as all products of this ISA have them; an instruction that any pipe takes, for a panel of a row.
  static POCKETFORMER_INLINE B broadcast_b(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    const __m256i four = _mm256_xor_si256(_mm256_set1_epi32(x), _mm256_set1_epi8(-128));
    return {four, four};
  }
  static POCKETFORMER_INLINE I dot4(I acc, B a, B w) { return dot4_p(acc, a, w); }
};

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(avx2)
