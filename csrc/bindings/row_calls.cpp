// Row-local kernels on plain arrays: norms, activations, softmax, rotary embedding.
#include <cstring>

#include "bindings/attention_calls.h"
#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "core/finite.h"

namespace pocketformer::bindings {
namespace {

void require_finite(const float* x, int64_t rows, int64_t width, const char* name) {
  const int row = first_not_finite(x, static_cast<size_t>(width), static_cast<int>(rows));
  require(row == rows, name, ", row ", row, ", holds NaN or infinity; pass finite numbers");
}

std::vector<float> padded(const float* x, int64_t width) {
  std::vector<float> wide(round_up(static_cast<size_t>(width), kLanes));
  std::copy_n(x, width, wide.begin());
  return wide;
}

py::array_t<float> norm(Object x, Object weight, Object bias, double eps, NormKind kind) {
  const KernelTable& kernels = current_kernels();
  const auto input = checked_array<float>(x, "x");
  const auto rows = rows_of(input, "x");
  require(eps >= 0 && eps < 1e30, "eps is ", eps, "; it must be 0 or above");
  const float *scale = vector_or_null(weight, "weight", rows.width), *shift = vector_or_null(bias, "bias", rows.width);
  require(scale != nullptr, "weight is None; pass one value for each of the ", rows.width, " columns");
  py::array_t<float> result(shape_of(input));
  float* const to = result.mutable_data();
  const py::gil_scoped_release no_gil;
  require_finite(rows.data, rows.count, rows.width, "x");
  require_finite(scale, 1, rows.width, "weight");
  if (shift != nullptr) require_finite(shift, 1, rows.width, "bias");
  const size_t width = static_cast<size_t>(rows.width), wide = round_up(width, kLanes);
  NormArgs args{rows.data,
                width,
                scale,
                shift,
                to,
                width,
                static_cast<int>(rows.count),
                static_cast<int>(width),
                static_cast<float>(eps),
                kind};
  if (width == wide) {
    kernels.norm(args);
    return result;
  }
  // The kernel takes and writes whole vectors: rows pass through memory that has them.
  const std::vector<float> wide_scale = padded(scale, rows.width),
                           wide_shift = shift == nullptr ? std::vector<float>() : padded(shift, rows.width);
  Scratch scratch(thread_memory(wide * sizeof(float)));
  float* const row = scratch.take<float>(wide);
  args.x = row, args.out = row, args.ldx = args.ldo = wide, args.rows = 1;
  args.weight = wide_scale.data(), args.bias = shift == nullptr ? nullptr : wide_shift.data();
  for (int64_t r = 0; r < rows.count; ++r) {
    std::memcpy(row, rows.data + r * rows.width, width * sizeof(float));
    std::memset(row + width, 0, (wide - width) * sizeof(float));
    kernels.norm(args);
    std::memcpy(to + r * rows.width, row, width * sizeof(float));
  }
  return result;
}

py::array_t<float> layer_norm(Object x, Object weight, Object bias, double eps) {
  return norm(x, weight, bias, eps, NormKind::kLayer);
}

py::array_t<float> rms_norm(Object x, Object weight, double eps) {
  return norm(x, weight, py::none(), eps, NormKind::kRms);
}

py::array_t<float> activate(Object x, Object name) {
  const KernelTable& kernels = current_kernels();
  const auto input = checked_array<float>(x, "x");
  const Activation kind = activation_named(name);
  py::array_t<float> result(shape_of(input));
  const float* const from = input.data();
  float* const to = result.mutable_data();
  const py::ssize_t count = input.size();
  const py::gil_scoped_release no_gil;
  require_finite(from, 1, count, "x");
  kernels.activate({from, to, static_cast<size_t>(count), kind});
  return result;
}

py::array_t<float> softmax(Object x, Object out) {
  const KernelTable& kernels = current_kernels();
  const auto input = checked_array<float>(x, "x");
  const auto rows = rows_of(input, "x");
  auto result = result_array<float>(out, shape_of(input));
  float* const to = result.mutable_data();
  const py::gil_scoped_release no_gil;
  require_finite(rows.data, rows.count, rows.width, "x");
  const size_t width = static_cast<size_t>(rows.width);
  kernels.softmax({rows.data, width, to, width, static_cast<int>(rows.count), static_cast<int>(width)});
  return result;
}

py::array_t<float> rope(Object x, Object positions, Object frequencies, double factor) {
  constexpr int32_t kMostPosition = (1 << 17) - 1;  // the kernel's sines are exact to here
  const KernelTable& kernels = current_kernels();
  const auto input = checked_array<float>(x, "x");
  const Heads heads = heads_of(input, "x");
  const auto at = array_of<int32_t>(positions, "positions", 1);
  require(at.size() == heads.tokens, "positions is ", describe(positions), "; it must have one for each token, ",
          heads.tokens);
  const auto turns = array_of<float>(frequencies, "frequencies", 1);
  require(turns.size() >= 1 && 2 * turns.size() <= heads.head_dim, "frequencies is ", describe(frequencies),
          "; it must have 1 to head_dim / 2 entries, ", heads.head_dim / 2);
  for (py::ssize_t i = 0; i < turns.size(); ++i) {
    require(turns.data()[i] >= 0 && turns.data()[i] <= 1, "frequencies holds ", turns.data()[i],
            "; they must be 0 to 1");
  }
  for (py::ssize_t i = 0; i < at.size(); ++i) {
    require(at.data()[i] >= 0 && at.data()[i] <= kMostPosition, "positions holds ", at.data()[i],
            "; they must be 0 to ", kMostPosition);
  }
  require(factor > 0 && factor < 1e30, "factor is ", factor, "; it must be above 0");
  py::array_t<float> result(shape_of(input));
  float* const to = result.mutable_data();
  const py::gil_scoped_release no_gil;
  require_finite(heads.data, heads.tokens, heads.row(), "x");
  std::copy_n(heads.data, heads.tokens * heads.row(), to);  // in place the kernel writes whole heads and no padding
  const size_t ld = static_cast<size_t>(heads.row());
  kernels.rope({to, ld, static_cast<int>(heads.tokens), heads.heads, heads.head_dim, 2 * static_cast<int>(turns.size()),
                turns.data(), static_cast<float>(factor), at.data(), to, ld});
  return result;
}

}  // namespace

void bind_row_calls(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  m.def("layer_norm", &layer_norm, p("x"), p("weight"), p("bias"), p("eps"));
  m.def("rms_norm", &rms_norm, p("x"), p("weight"), p("eps"));
  m.def("activate", &activate, p("x"), p("activation"));
  m.def("rope", &rope, p("x"), p("positions"), p("frequencies"), p("factor"));
  m.def("softmax", &softmax, p("x"), py::arg("out") = py::none());
}

}  // namespace pocketformer::bindings
