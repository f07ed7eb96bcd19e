// Compares the products of one ISA with the scalar ones, bit for bit. Compiled by tests/kernels/test_emulated.py for
// ISAs that this machine has not: ARM's under an emulator, AVX-512 and AVX-VNNI with their intrinsics as functions.
//   -DUNIT=kernel_table_<name>; exit status 1 where anything differs
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/half.h"
#include "kernels/table.h"

namespace pocketformer {
const KernelTable* kernel_table_scalar();
const KernelTable* UNIT();

namespace {

int failures = 0;

template <class T>
class Aligned {
 public:
  Aligned(size_t size, T value) : size_(size) {
    const size_t bytes = (size * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    for (size_t i = 0; i < size; ++i) data_[i] = value;
  }
  Aligned(const Aligned&) = delete;
  ~Aligned() { std::free(data_); }
  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  bool operator==(const Aligned& other) const { return std::memcmp(data_, other.data_, size_ * sizeof(T)) == 0; }

 private:
  T* data_;
  size_t size_;
};

int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

struct Case {
  Format format;
  int m, n, k, group, rotate;
  bool minimum;
  Activation activation;
  bool skip = false;  // rows that are mostly zeros, which the scalar product multiplies too
};

// One table's rows and product of a case; the random numbers are the same for both.
struct Result {
  Aligned<uint8_t> q;
  Aligned<float> scale, out;
  Aligned<int32_t> sum;
};

void run(const KernelTable& table, const Case& c, Result& r) {
  std::mt19937 random(static_cast<unsigned>(c.m * 31 + c.n * 7 + c.k));
  const auto number = [&] { return static_cast<float>(static_cast<int>(random() % 65536) - 32768) / 8192.0f; };
  const int ldx = round_up(c.k, 64), columns = round_up(c.n, 16), panels = columns / 16;
  const int groups = c.group == 0 ? 1 : c.k / c.group;
  Aligned<float> x(static_cast<size_t>(c.m * ldx), 0.0f);
  for (int i = 0; i < c.m; ++i)
    for (int j = 0; j < c.k; ++j) {
      const float value = number();
      x[static_cast<size_t>(i * ldx + j)] = !c.skip ? value : value < 2.5f ? 0.0f : value;
    }
  table.quantize_rows({.x = x.data(),
                       .ldx = static_cast<size_t>(ldx),
                       .q = r.q.data(),
                       .ldq = static_cast<size_t>(ldx),
                       .scale = r.scale.data(),
                       .rows = c.m,
                       .k = c.k,
                       .rotate = c.rotate,
                       .is_signed = c.format == Format::kI4 || c.skip,
                       .group = c.group,
                       .sum = c.format == Format::kI4 ? r.sum.data() : nullptr,
                       .ld_sum = static_cast<size_t>(groups)});
  Aligned<float> w(static_cast<size_t>(columns * c.k), 0.0f);
  Aligned<uint16_t> halves(w.size(), 0);
  Aligned<int8_t> bytes(static_cast<size_t>(columns * round_up(c.k, 8)), 0), codebook(16, 0);
  Aligned<int32_t> colsum(static_cast<size_t>(columns), 0);
  const size_t scales = static_cast<size_t>(columns * groups);
  Aligned<float> scale(scales, 0.0f), minimum(scales, 0.0f), bias(static_cast<size_t>(columns), 0.0f);
  Aligned<float> beside(static_cast<size_t>(c.m * columns), 0.0f);
  for (size_t i = 0; i < w.size(); ++i) w[i] = number();
  const bool fp16 = c.format == Format::kF16, floats = is_float(c.format);
  if (fp16)
    for (size_t i = 0; i < w.size(); ++i) {
      halves[i] = static_cast<uint16_t>(random() % 0xF800);  // subnormal ones too
      if ((halves[i] & 0x7C00) == 0x7C00) halves[i] = static_cast<uint16_t>(halves[i] & 0x83FF);
      w[i] = widen(halves[i]);
    }
  const int step = c.format == Format::kI4 ? 8 : 4, byte_depth = (c.k + step - 1) / step * 4;
  for (int p = 0; p < panels; ++p)
    for (int d = 0; d < byte_depth; ++d)
      for (int lane = 0; lane < 16; ++lane) {
        const int at = ((p * byte_depth / 4 + d / 4) * 16 + lane) * 4 + d % 4;
        const bool beyond = c.format == Format::kI8 && d >= c.k;
        const int value =
            c.format == Format::kI4 ? static_cast<int>(random() % 256) : static_cast<int>(random() % 255) - 127;
        bytes[static_cast<size_t>(at)] = static_cast<int8_t>(beyond ? 0 : value);
        if (!beyond) colsum[static_cast<size_t>(p * 16 + lane)] += value;
      }
  for (size_t i = 0; i < 16; ++i) codebook[i] = static_cast<int8_t>(random() % 255 - 127);
  codebook[3] = 127, codebook[7] = -127;
  for (size_t i = 0; i < scales; ++i) scale[i] = number(), minimum[i] = number();
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = number();
  for (size_t i = 0; i < beside.size(); ++i) beside[i] = number();
  GemmArgs args{.x = floats ? static_cast<const void*>(x.data()) : r.q.data(),
                .ldx = static_cast<size_t>(ldx),
                .x_scale = r.scale.data(),
                .x_sum = r.sum.data(),
                .ld_sum = static_cast<size_t>(groups),
                .weight = {.format = c.format,
                           .panels = fp16     ? static_cast<const void*>(halves.data())
                                     : floats ? static_cast<const void*>(w.data())
                                              : bytes.data(),
                           .codebook = codebook.data(),
                           .scale = scale.data(),
                           .minimum = c.minimum ? minimum.data() : nullptr,
                           .colsum = colsum.data(),
                           .n = c.n,
                           .k = c.k,
                           .group = c.group},
                .out = r.out.data(),
                .ldo = static_cast<size_t>(c.n),
                .m = c.m,
                .panel_begin = 0,
                .panel_end = panels,
                .epilogue = {.bias = bias.data(),
                             .residual = beside.data(),
                             .ld_residual = static_cast<size_t>(columns),
                             .activation = c.activation,
                             .precise = floats},
                .skip = c.skip && &table == UNIT()};
  table.gemm[static_cast<int>(c.format)](args);
  if (!fp16) return;
  Aligned<float> out(r.out.size(), 0.0f);
  args.weight.format = Format::kF32, args.weight.panels = w.data(), args.out = out.data();
  table.gemm[static_cast<int>(Format::kF32)](args);
  if (out == r.out) return;
  ++failures;
  std::printf("%s: %d x %d x %d in fp16 is not the fp32 product\n", table.isa, c.m, c.n, c.k);
}

void compare(const Case& c) {
  const KernelTable *ours = UNIT(), *scalar = kernel_table_scalar();
  const auto result = [&] {
    const size_t q = static_cast<size_t>(c.m * round_up(c.k, 64)), m = static_cast<size_t>(c.m);
    return Result{{q, 0}, {m, 0.0f}, {m * static_cast<size_t>(c.n), 0.0f}, {m * static_cast<size_t>(c.k), 0}};
  };
  Result a = result(), b = result();
  run(*ours, c, a), run(*scalar, c, b);
  if (c.format != Format::kI4 && !c.skip)
    for (size_t i = 0; i < a.q.size(); ++i)
      if (static_cast<int>(i) % round_up(c.k, 64) < round_up(c.k, 16))
        a.q[i] = static_cast<uint8_t>(a.q[i] - ours->activation_offset);
  const bool same = a.q == b.q && a.scale == b.scale && a.sum == b.sum && a.out == b.out;
  if (same) return;
  ++failures;
  std::printf("%s: format %d, %d x %d x %d, group %d: q %d, scale %d, sums %d, product %d\n", ours->isa,
              static_cast<int>(c.format), c.m, c.n, c.k, c.group, a.q == b.q, a.scale == b.scale, a.sum == b.sum,
              a.out == b.out);
}

}  // namespace
}  // namespace pocketformer

int main() {
  using namespace pocketformer;
  int cases = 0;
  for (const int m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 20, 29})
    for (const int n : {16, 33, 85}) {
      for (const int k : {1, 5, 26, 64, 127, 200, 523})
        for (const Format format : {Format::kF32, Format::kF16, Format::kI8, Format::kI4}) {
          compare({format, m, n, k, 0, 0, k == 64, k == 26 ? Activation::kGelu : Activation::kNone});
          ++cases;
        }
      for (const int k : {26, 127, 200}) {
        compare({Format::kI8, m, n, k, 0, 0, false, Activation::kNone, true});
        ++cases;
      }
      for (const int group : {16, 32, 48, 64, 128}) {
        compare({Format::kI4, m, n, 3 * group, group, group % 48 == 0 ? 16 : group, group == 32, Activation::kNone});
        ++cases;
      }
    }
  std::printf("%s: %d of %d cases differ\n", UNIT()->isa, failures, cases);
  return failures == 0 ? 0 : 1;
}
