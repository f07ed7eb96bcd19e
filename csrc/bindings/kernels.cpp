// The kernel tables on numpy arrays, for tests and measurements. A kernel trusts its arguments; here they are checked.
#include <algorithm>
#include <cstring>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/operands.h"
#include "core/aligned_buffer.h"
#include "core/dispatch.h"

namespace pocketformer::bindings {
namespace {

struct Kernels {
  const KernelTable& table;

  void quantize_rows(Object x, Object q, Object scale, int64_t k, int64_t rotate, bool is_signed, int64_t group,
                     Object sum) const {
    const int64_t rows = rows_of(x, "x");
    at_least("k", k, 1);
    check_rotate(rotate, k);
    check_group(group, k);
    require(sum.is_none() || is_signed, "sum is given; only rows with is_signed have one");
    const auto from = input<const float>(x, "x", {{rows}, {k, kLanes}});
    const auto to = output<uint8_t>(q, "q", {{rows}, {k, 64}});
    QuantizeArgs args{.x = from.data,
                      .ldx = from.ld(),
                      .q = to.data,
                      .ldq = to.ld(),
                      .scale = output<float>(scale, "scale", {{rows}}).data,
                      .rows = from.rows(),
                      .k = static_cast<int>(k),
                      .rotate = static_cast<int>(rotate),
                      .is_signed = is_signed,
                      .group = static_cast<int>(group)};
    if (!sum.is_none()) {
      const auto sums = output<int32_t>(sum, "sum", {{rows}, {groups(k, group), 1}});
      args.sum = sums.data, args.ld_sum = sums.ld();
    }
    table.quantize_rows(args);
  }

  // The weight's format is told by its dtype: float32, uint16 for the bits of fp16, int8, or uint8 for two nibbles.
  static WeightView weight_view(Object weight, Object scale, Object minimum, Object colsum, Object codebook, int64_t n,
                                int64_t k, int64_t group) {
    const int64_t panels = rows_of(weight, "weight");
    at_least("k", k, 1);
    check_group(group, k);
    at_least("n", n, 1, panels * kLanes);
    WeightView view{.format = Format::kF32,
                    .panels = nullptr,
                    .n = static_cast<int>(n),
                    .k = static_cast<int>(k),
                    .group = static_cast<int>(group)};
    if (py::isinstance<py::array_t<float>>(weight)) {
      view.panels = input<const float>(weight, "weight", {{panels}, {k}, {kLanes}}).data;
      return view;
    }
    if (py::isinstance<py::array_t<uint16_t>>(weight)) {
      view.format = Format::kF16;
      view.panels = input<const uint16_t>(weight, "weight", {{panels}, {k}, {kLanes}}).data;
      return view;
    }
    const std::vector<Extent> scales =
        group == 0 ? std::vector<Extent>{{panels * kLanes}} : std::vector<Extent>{{panels}, {k / group}, {kLanes}};
    view.scale = input<const float>(scale, "scale", scales).data;
    view.minimum = optional<float>(minimum, "minimum", scales);
    if (py::isinstance<py::array_t<uint8_t>>(weight)) {
      view.format = Format::kI4;
      view.panels = input<const uint8_t>(weight, "weight", {{panels}, {(k + 7) / 8}, {kLanes}, {4}}).data;
      view.codebook = input<const int8_t>(codebook, "codebook", {{16}}).data;
    } else {
      view.format = Format::kI8;
      view.panels = input<const int8_t>(weight, "weight", {{panels}, {(k + 3) / 4}, {kLanes}, {4}}).data;
      view.colsum = input<const int32_t>(colsum, "colsum", {{panels * kLanes}}).data;
    }
    return view;
  }

  void gemm(Object x, Object weight, Object out, int64_t k, Object x_scale, Object x_sum, Object scale, Object minimum,
            Object colsum, Object codebook, int64_t n, int64_t group, int64_t panel_begin, int64_t panel_end,
            Object bias, Object multiply, Object residual, const std::string& name, Object precise) const {
    const int64_t rows = rows_of(x, "x"), panels = rows_of(weight, "weight");
    const int64_t channels = n < 0 ? panels * kLanes : n, end = panel_end < 0 ? panels : panel_end;
    const WeightView view = weight_view(weight, scale, minimum, colsum, codebook, channels, k, group);
    const auto function = table.gemm[static_cast<int>(view.format)];
    require(function != nullptr, "weight is ", describe(weight), "; there is no product of this format");
    require(view.format != Format::kI8 || (group == 0 && view.minimum == nullptr),
            "group or minimum is given; an int8 weight has one scale a channel");
    require(view.n > (panels - 1) * kLanes, "n is ", view.n, "; it must end in the last of ", panels, " panels");
    at_least("panel_end", end, 0, panels);
    at_least("panel_begin", panel_begin, 0, end);
    const auto to = output<float>(out, "out", {{rows}, {view.n, 1}});
    const int64_t written = std::min(static_cast<int64_t>(to.ld()), panels * kLanes);
    GemmArgs args{.x = nullptr,
                  .ldx = 0,
                  .weight = view,
                  .out = to.data,
                  .ldo = to.ld(),
                  .m = to.rows(),
                  .panel_begin = static_cast<int>(panel_begin),
                  .panel_end = static_cast<int>(end)};
    const auto rows_of_x = [&](const auto& operand) { args.x = operand.data, args.ldx = operand.ld(); };
    if (is_float(view.format)) {
      rows_of_x(input<const float>(x, "x", {{rows}, {k, kLanes}}));
    } else {
      rows_of_x(input<const uint8_t>(x, "x", {{rows}, {k, 64}}));
      args.x_scale = input<const float>(x_scale, "x_scale", {{rows}}).data;
    }
    if (view.format == Format::kI4) {
      const auto sums = input<const int32_t>(x_sum, "x_sum", {{rows}, {groups(k, group), 1}});
      args.x_sum = sums.data, args.ld_sum = sums.ld();
    }
    const auto rows_beside = [&](Object object, const char* what, const float*& data, size_t& ld) {
      if (object.is_none()) return;
      const auto operand = input<const float>(object, what, {{rows}, {written, 1}});
      data = operand.data, ld = operand.ld();
    };
    Epilogue& epilogue = args.epilogue;
    epilogue.bias = optional<float>(bias, "bias", {{panels * kLanes}});
    rows_beside(multiply, "multiply", epilogue.multiply, epilogue.ld_multiply);
    rows_beside(residual, "residual", epilogue.residual, epilogue.ld_residual);
    epilogue.activation = activation(name);
    const bool floats = is_float(view.format) || epilogue.multiply != nullptr;
    require(precise.is_none() || py::isinstance<py::bool_>(precise), "precise is ", describe(precise),
            "; pass True, False or None");
    epilogue.precise = precise.is_none() ? floats : py::cast<bool>(precise);
    function(args);
  }

  void embed(Object weight, Object scale, Object index, Object out, int64_t width, int64_t rotate,
             bool accumulate) const {
    const int64_t rows = rows_of(index, "index"), height = rows_of(weight, "weight");
    at_least("width", width, 1);
    check_rotate(rotate, width);
    const int dimensions = static_cast<int>(py::reinterpret_borrow<py::array>(weight).ndim());
    const bool int8 = !scale.is_none(), halves = py::isinstance<py::array_t<uint16_t>>(weight),
               panels = dimensions != 2;
    require(!panels || !accumulate, "accumulate is true; only tables stored by rows can be added");
    require(panels || rotate == 0, "rotate is ", rotate, "; tables stored by rows are not rotated");
    const void* data = nullptr;
    if (int8 && panels) data = input<const int8_t>(weight, "weight", {{height}, {(width + 3) / 4}, {kLanes}, {4}}).data;
    if (int8 && !panels) data = input<const int8_t>(weight, "weight", {{height}, {width}}).data;
    const std::vector<Extent> floats =
        panels ? std::vector<Extent>{{height}, {width}, {kLanes}} : std::vector<Extent>{{height}, {width}};
    if (!int8 && halves) data = input<const uint16_t>(weight, "weight", floats).data;
    if (!int8 && !halves) data = input<const float>(weight, "weight", floats).data;
    const int64_t entries = panels ? height * kLanes : height;
    const auto which = input<const int32_t>(index, "index", {{rows}});
    for (int64_t i = 0; i < rows; ++i) at_least("index", which.data[i], 0, entries - 1);
    const auto to = output<float>(out, "out", {{rows}, {width, kLanes}});
    table.embed({.table = data,
                 .scale = optional<float>(scale, "scale", {{entries, kLanes}}),
                 .panels = panels,
                 .bits = !int8 && halves ? 16 : 8,
                 .index = which.data,
                 .rows = static_cast<int>(rows),
                 .width = static_cast<int>(width),
                 .rotate = static_cast<int>(rotate),
                 .accumulate = accumulate,
                 .out = to.data,
                 .ldo = to.ld()});
  }

  void norm(Object x, Object weight, Object bias, Object out, int64_t width, float eps, const std::string& kind) const {
    constexpr std::pair<const char*, NormKind> kKinds[] = {{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}};
    const int64_t rows = rows_of(x, "x");
    at_least("width", width, 1);
    const auto from = input<const float>(x, "x", {{rows}, {width, kLanes}});
    const auto to = output<float>(out, "out", {{rows}, {width, kLanes}});
    table.norm({from.data, from.ld(), input<const float>(weight, "weight", {{padded(width)}}).data,
                optional<float>(bias, "bias", {{padded(width)}}), to.data, to.ld(), from.rows(),
                static_cast<int>(width), eps, choice("kind", kind, kKinds)});
  }

  void pool(Object x, Object out, int64_t width, const std::string& kind, int64_t first) const {
    constexpr std::pair<const char*, PoolKind> kKinds[] = {{"mean", PoolKind::kMean},
                                                           {"cls", PoolKind::kCls},
                                                           {"max", PoolKind::kMax},
                                                           {"last", PoolKind::kLast},
                                                           {"mean_sqrt", PoolKind::kMeanSqrt},
                                                           {"weighted_mean", PoolKind::kWeightedMean}};
    const int64_t rows = rows_of(x, "x");
    at_least("width", width, 1);
    const auto from = input<const float>(x, "x", {{rows}, {width, kLanes}});
    require(first >= 0 && first <= INT_MAX / 2, "first is ", first, "; it must be 0 to ", INT_MAX / 2);
    table.pool({from.data, from.ld(), from.rows(), static_cast<int>(width), static_cast<int>(first),
                choice("kind", kind, kKinds), output<float>(out, "out", {{padded(width)}}).data});
  }

  void l2_normalize(Object x, Object out, int64_t width) const {
    const int64_t rows = rows_of(x, "x");
    at_least("width", width, 1);
    const auto from = input<const float>(x, "x", {{rows}, {width, kLanes}});
    const auto to = output<float>(out, "out", {{rows}, {width, kLanes}});
    table.l2_normalize({from.data, from.ld(), to.data, to.ld(), from.rows(), static_cast<int>(width)});
  }

  // --- attention ----------------------------------------------------------------------------------------------------

  struct Shape {
    int64_t rows, heads, kv_heads, head_dim, stride, capacity;
  };

  // `cache` begins with keys [kv_heads, capacity, stride].
  static Shape shape(int64_t rows, int64_t heads, const py::tuple& cache, size_t arrays, int64_t head_dim) {
    require(cache.size() == arrays, "cache has ", cache.size(), " arrays; it must have ", arrays);
    const py::object keys = cache[0];
    Shape s{rows, heads, rows_of(keys, "keys"), at_least("head_dim", head_dim, 1, kMaxHeadDim), padded(head_dim), 0};
    const auto k = py::reinterpret_borrow<py::array>(keys);
    require(k.ndim() == 3, "keys must have 3 dimensions");
    at_least("kv_heads", s.kv_heads, 1, kMaxHeads);
    s.capacity = at_least("capacity", k.shape(1), 16);
    require(s.capacity % 16 == 0, "capacity is ", s.capacity, "; it must be a multiple of 16");
    require(s.heads % s.kv_heads == 0, "heads is ", s.heads, "; it must be a multiple of kv_heads, ", s.kv_heads);
    return s;
  }

  // Heads of an array [rows, heads, stride].
  static int64_t heads_of(Object q) {
    rows_of(q, "q");
    const auto array = py::reinterpret_borrow<py::array>(q);
    require(array.ndim() == 3, "q must have 3 dimensions");
    return at_least("heads", array.shape(1), 1, kMaxHeads);
  }

  // `heads` heads side by side from column `column` of x on.
  static Operand<const float> heads_in(Object x, const char* name, int64_t rows, int64_t heads, int64_t head_dim,
                                       int64_t column) {
    at_least("column", column, 0);
    auto from = input<const float>(x, name, {{rows}, {column + heads * head_dim, kLanes}});
    from.data += column;
    return from;
  }

  void rope(Object x, Object out, Object positions, Object frequency, int64_t heads, int64_t head_dim, float factor,
            int64_t column) const {
    const int64_t rows = rows_of(x, "x"), half = rows_of(frequency, "frequency");
    at_least("heads", heads, 1, kMaxHeads);
    at_least("head_dim", head_dim, 1, kMaxHeadDim);
    require(2 * half <= head_dim, "frequency has ", half, " entries; a head of ", head_dim, " has ", head_dim / 2,
            " pairs");
    const auto from = heads_in(x, "x", rows, heads, head_dim, column);
    const auto position = input<const int32_t>(positions, "positions", {{rows}});
    for (int64_t i = 0; i < rows; ++i) at_least("positions", position.data[i], 0);
    const bool in_place = out.is(x);
    const auto to = output<float>(out, "out", {{rows}, {heads * head_dim, kLanes}});
    table.rope({from.data, from.ld(), from.rows(), static_cast<int>(heads), static_cast<int>(head_dim),
                static_cast<int>(2 * half), input<const float>(frequency, "frequency", {{half}}).data, factor,
                position.data, in_place ? to.data + column : to.data, to.ld()});
  }

  static KeyValuesI8 cache_i8(const py::tuple& cache, const Shape& s) {
    const std::vector<Extent> slots = {{s.kv_heads}, {s.capacity}};
    return {output<uint8_t>(cache[0], "keys", {{s.kv_heads}, {s.capacity}, {s.stride}}).data,
            output<float>(cache[1], "key scales", slots).data,
            output<int8_t>(cache[2], "values", {{s.kv_heads}, {s.capacity / 4}, {s.stride}, {4}}).data,
            output<float>(cache[3], "value scales", slots).data, static_cast<size_t>(s.capacity)};
  }
  static KeyValuesF32 cache_f32(const py::tuple& cache, const Shape& s) {
    const std::vector<Extent> extents = {{s.kv_heads}, {s.capacity}, {s.stride}};
    return {output<float>(cache[0], "keys", extents).data, output<float>(cache[1], "values", extents).data,
            static_cast<size_t>(s.capacity)};
  }

  void quantize_heads(Object x, Object q, Object scale, int64_t head_dim, int64_t column, int64_t rotate) const {
    const int64_t rows = rows_of(x, "x"), heads = heads_of(q);
    at_least("head_dim", head_dim, 1, kMaxHeadDim);
    check_rotate(rotate, head_dim);
    const auto from = heads_in(x, "x", rows, heads, head_dim, column);
    table.quantize_heads({from.data, from.ld(), from.rows(), static_cast<int>(heads), static_cast<int>(head_dim),
                          static_cast<int>(padded(head_dim)), static_cast<int>(rotate),
                          output<int8_t>(q, "q", {{rows}, {heads}, {padded(head_dim)}}).data,
                          output<float>(scale, "scale", {{rows}, {heads}}).data});
  }

  static StoreArgs stored(Object k, Object v, const Shape& s, int64_t head_dim, int64_t slot, int64_t k_column,
                          int64_t v_column) {
    at_least("slot", slot, 0, s.capacity - s.rows);
    const auto keys = heads_in(k, "k", s.rows, s.kv_heads, head_dim, k_column);
    const auto values = heads_in(v, "v", s.rows, s.kv_heads, head_dim, v_column);
    return {keys.data,
            keys.ld(),
            values.data,
            values.ld(),
            keys.rows(),
            static_cast<int>(s.kv_heads),
            static_cast<int>(head_dim),
            static_cast<int>(s.stride),
            static_cast<size_t>(slot)};
  }

  void store_i8(Object k, Object v, const py::tuple& cache, int64_t head_dim, int64_t slot, int64_t k_column,
                int64_t v_column, int64_t rotate) const {
    const Shape s = shape(rows_of(k, "k"), 0, cache, 4, head_dim);
    check_rotate(rotate, head_dim);
    table.store_i8({stored(k, v, s, head_dim, slot, k_column, v_column), static_cast<int>(rotate), cache_i8(cache, s)});
  }

  void store_f32(Object k, Object v, const py::tuple& cache, int64_t head_dim, int64_t slot, int64_t k_column,
                 int64_t v_column) const {
    const Shape s = shape(rows_of(k, "k"), 0, cache, 2, head_dim);
    table.store_f32({stored(k, v, s, head_dim, slot, k_column, v_column), cache_f32(cache, s)});
  }

  static AttentionArgs common(const Shape& s, Object out, int64_t first, int64_t keys, int64_t slot, int64_t left,
                              int64_t right, float scale, Object bias, int64_t center, int64_t head_begin,
                              int64_t head_end) {
    at_least("keys", keys, 1, s.capacity);
    at_least("slot", slot, 0, s.capacity - static_cast<int64_t>(round_up(static_cast<size_t>(keys), 16)));
    require(slot % 16 == 0, "slot is ", slot, "; a sequence starts at a multiple of 16");
    at_least("first_position", first, 0, keys - s.rows);
    const int64_t end = head_end < 0 ? s.heads : head_end;
    at_least("head_end", end, 0, s.heads);
    at_least("head_begin", head_begin, 0, end);
    const auto bound = [](const char* name, int64_t n) {
      return n < 0 ? kUnlimited : static_cast<int>(at_least(name, n, 0));
    };
    AttentionArgs a{};
    a.queries = static_cast<int>(s.rows), a.first_position = static_cast<int>(first);
    a.keys = static_cast<int>(keys), a.segment_slot = static_cast<size_t>(slot);
    a.heads = static_cast<int>(s.heads), a.kv_heads = static_cast<int>(s.kv_heads);
    a.head_dim = static_cast<int>(s.head_dim), a.head_stride = static_cast<int>(s.stride);
    a.head_begin = static_cast<int>(head_begin), a.head_end = static_cast<int>(end);
    a.scale = scale, a.range = {bound("left", left), bound("right", right)};
    if (!bias.is_none()) {
      const auto table = input<const float>(bias, "bias", {{s.heads}, {first + s.rows + center, kLanes}});
      at_least("bias_center", center, keys - 1);
      a.bias = table.data, a.ld_bias = table.ld(), a.bias_center = static_cast<int>(center);
    }
    const auto to = output<float>(out, "out", {{s.rows}, {s.heads * s.head_dim, kLanes}});
    a.out = to.data, a.ldo = to.ld();
    return a;
  }

  void attention_i8(Object q, Object q_scale, const py::tuple& cache, Object out, int64_t head_dim, int64_t keys,
                    float scale, int64_t first, int64_t slot, int64_t left, int64_t right, Object bias, int64_t center,
                    int64_t head_begin, int64_t head_end, bool fine) const {
    const Shape s = shape(rows_of(q, "q"), heads_of(q), cache, 4, head_dim);
    table.attention_i8({input<const int8_t>(q, "q", {{s.rows}, {s.heads}, {s.stride}}).data,
                        input<const float>(q_scale, "q_scale", {{s.rows}, {s.heads}}).data, cache_i8(cache, s),
                        common(s, out, first, keys, slot, left, right, scale, bias, center, head_begin, head_end),
                        fine});
  }

  void attention_f32(Object q, const py::tuple& cache, Object out, int64_t heads, int64_t head_dim, int64_t keys,
                     float scale, int64_t first, int64_t slot, int64_t left, int64_t right, Object bias, int64_t center,
                     int64_t head_begin, int64_t head_end, int64_t column) const {
    const Shape s = shape(rows_of(q, "q"), at_least("heads", heads, 1, kMaxHeads), cache, 2, head_dim);
    const auto queries = heads_in(q, "q", s.rows, heads, head_dim, column);
    table.attention_f32({queries.data, queries.ld(), cache_f32(cache, s),
                         common(s, out, first, keys, slot, left, right, scale, bias, center, head_begin, head_end)});
  }
};

}  // namespace

void bind_kernels(py::module_& m) {
  const auto none = py::none();
  const auto p = [](const char* name) { return py::arg(name); };
  py::class_<Kernels>(m, "Kernels")
      .def(py::init([](const std::string& isa) { return Kernels{kernels(isa)}; }), p("isa") = "")
      .def_property_readonly("isa", [](const Kernels& k) { return k.table.isa; })
      .def_property_readonly("activation_offset", [](const Kernels& k) { return k.table.activation_offset; })
      .def("quantize_rows", &Kernels::quantize_rows, p("x"), p("q"), p("scale"), p("k"), p("rotate") = 0,
           p("is_signed") = false, p("group") = 0, p("sum") = none)
      .def("gemm", &Kernels::gemm, p("x"), p("weight"), p("out"), p("k"), py::kw_only(), p("x_scale") = none,
           p("x_sum") = none, p("scale") = none, p("minimum") = none, p("colsum") = none, p("codebook") = none,
           p("n") = -1, p("group") = 0, p("panel_begin") = 0, p("panel_end") = -1, p("bias") = none,
           p("multiply") = none, p("residual") = none, p("activation") = "none", p("precise") = none)
      .def("embed", &Kernels::embed, p("weight"), p("scale"), p("index"), p("out"), p("width"), p("rotate") = 0,
           p("accumulate") = false)
      .def("norm", &Kernels::norm, p("x"), p("weight"), p("bias"), p("out"), p("width"), p("eps"), p("kind"))
      .def("pool", &Kernels::pool, p("x"), p("out"), p("width"), p("kind"), p("first") = 0)
      .def("l2_normalize", &Kernels::l2_normalize, p("x"), p("out"), p("width"))
      .def("rope", &Kernels::rope, p("x"), p("out"), p("positions"), p("frequency"), p("heads"), p("head_dim"),
           p("factor") = 1.0f, p("column") = 0)
      .def("quantize_heads", &Kernels::quantize_heads, p("x"), p("q"), p("scale"), p("head_dim"), p("column") = 0,
           p("rotate") = 0)
      .def("store_i8", &Kernels::store_i8, p("k"), p("v"), p("cache"), p("head_dim"), p("slot") = 0, p("k_column") = 0,
           p("v_column") = 0, p("rotate") = 0)
      .def("store_f32", &Kernels::store_f32, p("k"), p("v"), p("cache"), p("head_dim"), p("slot") = 0,
           p("k_column") = 0, p("v_column") = 0)
      .def("attention_i8", &Kernels::attention_i8, p("q"), p("q_scale"), p("cache"), p("out"), p("head_dim"), p("keys"),
           p("scale"), p("first_position") = 0, p("slot") = 0, p("left") = -1, p("right") = -1, p("bias") = none,
           p("bias_center") = 0, p("head_begin") = 0, p("head_end") = -1, p("fine") = false)
      .def("attention_f32", &Kernels::attention_f32, p("q"), p("cache"), p("out"), p("heads"), p("head_dim"), p("keys"),
           p("scale"), p("first_position") = 0, p("slot") = 0, p("left") = -1, p("right") = -1, p("bias") = none,
           p("bias_center") = 0, p("head_begin") = 0, p("head_end") = -1, p("column") = 0);
}

}  // namespace pocketformer::bindings
