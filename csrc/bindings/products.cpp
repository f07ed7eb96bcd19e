// Products of plain arrays with packed weights. Blocks of rows are quantized and multiplied by one thread while they
// are in its nearest cache; with few rows the threads share the output channels instead. Either way the bits are those
// of a model, which calls the same kernels.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "bindings/packed_weight.h"
#include "core/cpus.h"
#include "core/finite.h"
#include "runtime/description.h"
#include "runtime/planner.h"

namespace pocketformer::bindings {
namespace {

// Where every thread has fewer rows than this, passing all the weights costs it more than a part of them for all rows.
constexpr int64_t kFewCached = 8, kFewFetched = 17;

const char* dtype_of(const WeightView& w) {
  constexpr const char* kNames[] = {"float32", "float16", "int8", "int4"};
  return kNames[static_cast<int>(w.format)];
}

const PackedWeight& weight_of(Object object, const char* name) {
  require(py::isinstance<PackedWeight>(object), name, " is ", describe(object),
          "; pass a weight that pocketformer.kernels.pack returned");
  return py::cast<const PackedWeight&>(object);
}

double multiply_adds(int64_t rows, const WeightView& w) { return static_cast<double>(rows) * w.n * w.k; }

bool cached(const WeightView& w) {
  static const size_t cache = largest_cache();
  const size_t bits = static_cast<size_t>(WeightSpec::bits(w.format));
  return static_cast<size_t>(w.n) * static_cast<size_t>(w.k) * bits / 8 * 2 <= cache;
}

// Divides rows × panels among the threads: work(first row, rows, first panel, end of the panels, scratch). Blocks of
// rows, or with few rows spans of panels, for which each thread prepares the rows on its own: that costs less than
// waiting for one that does it for all.
template <typename Work>
void divide(int64_t rows, const PackedWeight& weight, int threads, Work work) {
  if (rows == 0) return;
  const bool near = cached(weight.view());
  const int panels = weight.panels();
  int64_t block = rows, spans = 1;
  if (threads > 1 && rows < threads * (near ? kFewCached : kFewFetched)) {
    spans = std::min(threads, panels);
  } else {
    block = static_cast<int64_t>(block_rows(static_cast<size_t>(rows), static_cast<size_t>(threads), near));
    block = std::min(rows, block);
  }
  const int64_t units = (rows + block - 1) / block * spans;
  const int parts = static_cast<int>(std::min<int64_t>(threads, units));
  Scratch counting;
  work(int64_t{0}, static_cast<int>(block), 0, panels, counting);
  std::byte* const memory = thread_memory(counting.used() * static_cast<size_t>(parts));
  parallel(parts, units, [&](int64_t unit, int thread) {
    const int64_t begin = unit / spans * block, span = unit % spans;
    Scratch scratch(memory + counting.used() * static_cast<size_t>(thread));
    work(begin, static_cast<int>(std::min(block, rows - begin)), static_cast<int>(panels * span / spans),
         static_cast<int>(panels * (span + 1) / spans), scratch);
  });
}

// Rows of x as int8 and what goes with them.
struct Quantized {
  uint8_t* q;
  size_t ldq;
  float* scale;
  int32_t* sum;
  size_t ld_sum;
};

// `plain`: the values themselves, whatever offset this ISA's products take.
Quantized quantize_block(const KernelTable& kernels, const WeightView& w, const float* x, int rows, bool plain,
                         Scratch& scratch) {
  const size_t k = static_cast<size_t>(w.k), count = static_cast<size_t>(rows), padded = round_up(k, kLanes);
  float* const wide = k == padded ? nullptr : scratch.take<float>(count * padded);
  Quantized to{};
  to.ldq = round_up(k, kAlignment);
  to.q = scratch.take<uint8_t>(count * to.ldq);
  to.scale = scratch.take<float>(count);
  if (w.format == Format::kI4) {
    to.ld_sum = w.group == 0 ? 1 : static_cast<size_t>(w.k / w.group);
    to.sum = scratch.take<int32_t>(count * to.ld_sum);
  }
  if (scratch.counts()) return to;
  if (wide != nullptr) {
    for (size_t r = 0; r < count; ++r) {
      std::memcpy(wide + r * padded, x + r * k, k * sizeof(float));
      std::memset(wide + r * padded + k, 0, (padded - k) * sizeof(float));
    }
  }
  QuantizeArgs args{};
  args.x = wide != nullptr ? wide : x, args.ldx = padded;
  args.q = to.q, args.ldq = to.ldq, args.scale = to.scale;
  args.rows = rows, args.k = w.k, args.rotate = w.rotate;
  args.is_signed = plain || w.format == Format::kI4;
  args.group = w.group, args.sum = to.sum, args.ld_sum = to.ld_sum;
  kernels.quantize_rows(args);
  return to;
}

py::array_t<float> matmul(Object x, Object w, Object bias, Object activation, Object multiply, Object residual,
                          Object threads, Object out) {
  const KernelTable& kernels = current_kernels();
  const PackedWeight& weight = weight_of(w, "w");
  const WeightView& view = weight.view();
  const auto input = checked_array<float>(x, "x");
  const auto rows = rows_of_width(input, "x", view.k, "as many as w has inputs");
  auto result = result_array<float>(out, with_width(input, view.n));
  if (!out.is_none()) require_apart(input, "x", result);
  Epilogue epilogue{};
  epilogue.activation = activation_named(activation);
  std::vector<float> padded_bias;
  epilogue.bias = vector_or_null(bias, "bias", view.n);
  if (epilogue.bias != nullptr && view.n % kLanes != 0) {
    padded_bias.assign(round_up(static_cast<size_t>(view.n), kLanes), 0.0f);
    std::copy_n(epilogue.bias, view.n, padded_bias.begin());
    epilogue.bias = padded_bias.data();
  }
  const auto operand = [&](Object object, const char* name) -> const float* {
    if (object.is_none()) return nullptr;
    const auto array = checked_array<float>(object, name);
    require(shape_of(array) == shape_of(result), name, " is ", describe(object),
            "; it must have the shape of the result, ", shape_text(shape_of(result)));
    const bool in_place = array.data() == result.data() && &object == &residual && multiply.is_none() &&
                          epilogue.activation == Activation::kNone;
    if (!out.is_none() && !in_place) require_apart(array, name, result);
    return array.data();
  };
  epilogue.multiply = operand(multiply, "multiply");
  epilogue.residual = operand(residual, "residual");
  epilogue.ld_multiply = epilogue.ld_residual = static_cast<size_t>(view.n);
  // As in a model: what follows an int8 product is rounded to int8 next.
  epilogue.precise = is_float(view.format) || epilogue.multiply != nullptr;
  const int count = thread_count(threads, multiply_adds(rows.count, view));
  float* const to = result.mutable_data();
  Offender offender;
  const auto work = [&](int64_t begin, int block, int panel_begin, int panel_end, Scratch& scratch) {
    const float* const from = rows.data + begin * view.k;
    GemmArgs args{};
    args.x = from, args.ldx = static_cast<size_t>(view.k);
    if (!scratch.counts()) {
      const int row = first_not_finite(from, static_cast<size_t>(view.k), block);
      if (row < block) return offender.note(begin + row);
    }
    if (!is_float(view.format)) {
      const Quantized q = quantize_block(kernels, view, from, block, false, scratch);
      args.x = q.q, args.ldx = q.ldq, args.x_scale = q.scale, args.x_sum = q.sum, args.ld_sum = q.ld_sum;
    }
    if (scratch.counts()) return;
    args.weight = view;
    args.out = to + begin * view.n, args.ldo = static_cast<size_t>(view.n);
    args.m = block, args.panel_begin = panel_begin, args.panel_end = panel_end;
    args.epilogue = epilogue;
    if (epilogue.multiply != nullptr) args.epilogue.multiply += begin * view.n;
    if (epilogue.residual != nullptr) args.epilogue.residual += begin * view.n;
    kernels.gemm[static_cast<int>(view.format)](args);
  };
  {
    const py::gil_scoped_release no_gil;
    divide(rows.count, weight, count, work);
  }
  offender.check("x");
  return result;
}

py::tuple quantize(Object x, Object like, Object threads) {
  const KernelTable& kernels = current_kernels();
  const PackedWeight& weight = weight_of(like, "like");
  const WeightView& view = weight.view();
  require(view.format == Format::kI8 || view.format == Format::kI4, "like is a ", dtype_of(view),
          " weight; its products take x as it is");
  const auto input = checked_array<float>(x, "x");
  const auto rows = rows_of_width(input, "x", view.k, "as many as like has inputs");
  py::array_t<int8_t> q(with_width(input, view.k));
  py::array_t<float> scale(std::vector<py::ssize_t>(input.shape(), input.shape() + input.ndim() - 1));
  int8_t* const values = q.mutable_data();
  float* const scales = scale.mutable_data();
  const int count = thread_count(threads, static_cast<double>(rows.count) * view.k * kLanes);
  Offender offender;
  const auto work = [&](int64_t begin, int block, int panel_begin, int, Scratch& scratch) {
    if (panel_begin != 0) return;
    const float* const from = rows.data + begin * view.k;
    if (!scratch.counts()) {
      const int row = first_not_finite(from, static_cast<size_t>(view.k), block);
      if (row < block) return offender.note(begin + row);
    }
    const Quantized rounded = quantize_block(kernels, view, from, block, true, scratch);
    if (scratch.counts()) return;
    for (int64_t r = 0; r < block; ++r)
      std::memcpy(values + (begin + r) * view.k, rounded.q + static_cast<size_t>(r) * rounded.ldq,
                  static_cast<size_t>(view.k));
    std::copy_n(rounded.scale, block, scales + begin);
  };
  {
    const py::gil_scoped_release no_gil;
    divide(rows.count, weight, count, work);
  }
  offender.check("x");
  return py::make_tuple(q, scale);
}

// The kernels scale what they sum, so the integers come as floats: exactly, from slices of k that a float can count.
// The slices' sums are added as integers.
py::array_t<int32_t> matmul_int8(Object q, Object w, Object threads, Object out) {
  const KernelTable& kernels = current_kernels();
  const PackedWeight& weight = weight_of(w, "w");
  const WeightView& view = weight.view();
  require(view.format == Format::kI8, "w is ", dtype_of(view), "; the integer product takes a weight of int8");
  const auto input = checked_array<int8_t>(q, "q");
  const auto rows = rows_of_width(input, "q", view.k, "as many as w has inputs");
  auto result = result_array<int32_t>(out, with_width(input, view.n));
  if (!out.is_none()) require_apart(input, "q", result);
  int32_t* const to = result.mutable_data();
  const int count = thread_count(threads, multiply_adds(rows.count, view));
  const size_t k = static_cast<size_t>(view.k), ldq = round_up(k, kAlignment);
  Offender offender;
  const auto work = [&](int64_t begin, int block, int panel_begin, int panel_end, Scratch& scratch) {
    const size_t height = static_cast<size_t>(block);
    uint8_t* const x = scratch.take<uint8_t>(height * ldq);
    float* const ones = scratch.take<float>(height);
    const int slices = weight.slices(), step = slices == 1 ? panel_end - panel_begin : 1;
    const size_t ld = static_cast<size_t>(step) * kLanes;
    float* const tile = scratch.take<float>(height * ld);
    if (scratch.counts()) return;
    for (size_t r = 0; r < height; ++r) {
      const int8_t* from = rows.data + (static_cast<size_t>(begin) + r) * k;
      bool lowest = false;
      for (size_t i = 0; i < k; ++i) {
        lowest |= from[i] == -128;
        x[r * ldq + i] = static_cast<uint8_t>(from[i] + kernels.activation_offset);
      }
      std::memset(x + r * ldq + k, kernels.activation_offset, ldq - k);
      if (lowest) return offender.note(begin + static_cast<int64_t>(r));
    }
    std::fill_n(ones, height, 1.0f);
    GemmArgs args{};
    args.ldx = ldq, args.x_scale = ones, args.out = tile, args.ldo = ld, args.m = block, args.panel_end = step;
    for (int panel = panel_begin; panel < panel_end; panel += step) {
      const int column = panel * kLanes, columns = std::min(view.n - column, step * kLanes);
      for (int slice = 0; slice < slices; ++slice) {
        args.x = x + static_cast<size_t>(slice) * PackedWeight::kExactK;
        args.weight = weight.slice(slice, panel);
        kernels.gemm[static_cast<int>(Format::kI8)](args);
        for (int64_t r = 0; r < block; ++r) {
          int32_t* const sums = to + (begin + r) * view.n + column;
          const float* const part = tile + static_cast<size_t>(r) * ld;
          for (int c = 0; c < columns; ++c) sums[c] = static_cast<int32_t>(part[c]) + (slice == 0 ? 0 : sums[c]);
        }
      }
    }
  };
  {
    const py::gil_scoped_release no_gil;
    divide(rows.count, weight, count, work);
  }
  offender.check("q", "the value -128; it must lie within ±127, as pocketformer.kernels.quantize returns it");
  return result;
}

// --- weights -------------------------------------------------------------------------------------------------------

Format format_named(const std::string& dtype) {
  if (dtype == "float32") return Format::kF32;
  if (dtype == "float16") return Format::kF16;
  if (dtype == "int8") return Format::kI8;
  if (dtype == "int4") return Format::kI4;
  throw std::invalid_argument(concat("dtype is '", dtype, "'; it must be int8, int4, float16 or float32"));
}

std::unique_ptr<PackedWeight> pack(Object weight, const std::string& dtype, int64_t group, int64_t rotate,
                                   Object codebook, bool bounded_pairs) {
  constexpr int64_t kMostInt8 = INT32_MAX / (255 * 128);  // inputs whose sum no bytes can make overflow
  const Format format = format_named(dtype);
  require(current_kernels().gemm[static_cast<int>(format)] != nullptr, "dtype is '", dtype,
          "'; there is no kernel for it, pass int8 or float32");
  const auto array = array_of<float>(weight, "weight", 2);
  const int64_t n = array.shape(0), k = array.shape(1);
  const int64_t most = is_float(format) ? kMostWidth : kMostInt8;
  require(n >= 1 && n <= kMostWidth && k >= 1 && k <= most, "weight is ", describe(weight), "; ", dtype, " takes 1 to ",
          kMostWidth, " outputs of 1 to ", most, " inputs");
  require(!is_float(format) || rotate == 0, "rotate is ", rotate, "; ", dtype, " weights are not rotated, pass 0");
  require(rotate >= 0 && rotate <= 128 && (rotate & (rotate - 1)) == 0 && (rotate == 0 || k % rotate == 0),
          "rotate is ", rotate, "; it must be 0 or a power of two up to 128 that divides the inputs, ", k);
  require(group == 0 || format == Format::kI4, "group is ", group, "; ", dtype,
          " weights have one scale for each output, pass None");
  require(group == 0 || ((group == 16 || group == 32 || group == 64 || group == 128) && k % group == 0), "group is ",
          group, "; it must be None, 16, 32, 64 or 128 and divide the inputs, ", k);
  require(!bounded_pairs || format == Format::kI8, "bounded_pairs is true; ", dtype,
          " weights have no such pairs, pass ", "False or int8");
  int8_t values[16];
  require(codebook.is_none() || format == Format::kI4, "codebook is given; only int4 weights have one");
  if (format == Format::kI4) {
    const auto table = array_of<int8_t>(codebook, "codebook", 1);
    require(table.size() == 16, "codebook is ", describe(codebook), "; it must have shape (16)");
    std::copy_n(table.data(), 16, values);
    require(values[0] >= -127 && std::adjacent_find(values, values + 16, std::greater_equal<>()) == values + 16,
            "codebook must ascend from -127 at least; sort its values");
  }
  const py::gil_scoped_release no_gil;
  const int offender = first_not_finite(array.data(), static_cast<size_t>(k), static_cast<int>(n));
  require(offender == n, "weight holds NaN or infinity in row ", offender, "; pass finite numbers");
  if (format == Format::kF16) {
    for (int64_t i = 0; i < n * k; ++i)
      require(std::abs(array.data()[i]) < 65520.0f, "weight holds ", array.data()[i], " in row ", i / k,
              ", more than the 65504 of float16; pass float32");
  }
  return std::make_unique<PackedWeight>(array.data(), static_cast<int>(n), static_cast<int>(k), format,
                                        static_cast<int>(group), static_cast<int>(rotate), values, bounded_pairs);
}

// [n], or with groups [n, k/group].
py::object scale_of(const PackedWeight& weight) {
  const WeightView& view = weight.view();
  if (view.scale == nullptr) return py::none();
  const int64_t groups = view.group == 0 ? 1 : view.k / view.group;
  py::array_t<float> scale(view.group == 0 ? std::vector<py::ssize_t>{view.n}
                                           : std::vector<py::ssize_t>{view.n, groups});
  float* const to = scale.mutable_data();
  for (int64_t channel = 0; channel < view.n; ++channel) {
    for (int64_t g = 0; g < groups; ++g)
      to[channel * groups + g] = view.scale[(channel / kLanes * groups + g) * kLanes + channel % kLanes];
  }
  return scale;
}

py::array_t<float> dequantize(const PackedWeight& weight) {
  py::array_t<float> out({weight.view().n, weight.view().k});
  float* const to = out.mutable_data();
  const py::gil_scoped_release no_gil;
  weight.dequantize(to);
  return out;
}

}  // namespace

void bind_products(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  const auto none = py::none();
  py::class_<PackedWeight>(m, "Weight")
      .def(py::init(&pack), p("weight"), p("dtype"), p("group"), p("rotate"), p("codebook"), p("bounded_pairs"))
      .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.view().n, w.view().k); })
      .def_property_readonly("dtype", [](const PackedWeight& w) { return dtype_of(w.view()); })
      .def_property_readonly("nbytes", &PackedWeight::bytes)
      .def_property_readonly("rotate", [](const PackedWeight& w) { return w.view().rotate; })
      .def_property_readonly("bounded_pairs", [](const PackedWeight& w) { return w.view().bounded_pairs; })
      .def_property_readonly("group",
                             [](const PackedWeight& w) -> py::object {
                               if (w.view().group == 0) return py::none();
                               return py::int_(w.view().group);
                             })
      .def_property_readonly("scale", &scale_of)
      .def("dequantize", &dequantize);
  m.def("matmul", &matmul, p("x"), p("w"), p("bias") = none, p("activation") = none, p("multiply") = none,
        p("residual") = none, p("threads") = none, p("out") = none);
  m.def("quantize", &quantize, p("x"), p("like"), p("threads") = none);
  m.def("matmul_int8", &matmul_int8, p("q"), p("w"), p("threads") = none, p("out") = none);
}

}  // namespace pocketformer::bindings
