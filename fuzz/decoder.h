// Bytes as a graph and its tensors: mostly one that makes sense, so that what runs is deep; now and then a field that
// does not.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "forms.h"
#include "runtime/operators/registry.h"
#include "runtime/session.h"

namespace pocketformer {

class Decoder : public Forms {
 public:
  explicit Decoder(FuzzedDataProvider& bytes) : Forms(bytes) {}

  Item graph() {
    vocab_ = size(), types_ = bytes_.ConsumeIntegralInRange<int64_t>(0, 3), length_ = size();
    int8_ = bytes_.ConsumeBool();
    add_domain({"tokens", "ragged", "", length_});
    add_domain({"texts", "one", "tokens"});
    add_domain({"chosen", "selected", "tokens"});
    inputs_ = {index("ids", "tokens", vocab_, false)};
    if (types_ > 0) inputs_.push_back(index("types", "tokens", types_, true));
    inputs_.push_back(index("counts", "texts", or_wrong(40), true));
    if (bytes_.ConsumeBool()) {
      pixels();
    } else {
      embed();
    }
    for (int ops = bytes_.ConsumeIntegralInRange(0, 14); ops > 0; --ops) operation();
    const std::string output = bytes_.ConsumeIntegralInRange(0, 7) == 0 ? pick().name : values_.back().name;
    Item graph = record({{"domains", {domains_}},
                         {"inputs", {inputs_}},
                         {"weights", {weights_}},
                         {"states", {states_}},
                         {"ops", {ops_}},
                         {"output", text(output)}});
    if (bytes_.ConsumeIntegralInRange(0, 7) == 7) lie(graph);
    return graph;
  }

 private:
  static Item index(const char* name, const char* domain, int64_t limit, bool optional) {
    return record({{"name", text(name)},
                   {"domain", text(domain)},
                   {"dtype", text("i32")},
                   {"limit", number(limit)},
                   {"optional", {optional}}});
  }

  void embed() {
    const int64_t columns = width();
    constexpr const char* kIndices[] = {"ids", "positions", "types"};
    List tables;
    for (int count = bytes_.ConsumeIntegralInRange(0, 3), i = 0; i < count; ++i) {
      const int which = wrong() ? bytes_.ConsumeIntegralInRange(0, 2) : i;
      const int64_t offset = which == 1 ? bytes_.ConsumeIntegralInRange<int64_t>(0, 4) : or_wrong(0);
      const int64_t reach[] = {vocab_, length_, types_};
      const int64_t rows =
          or_wrong(std::clamp<int64_t>(reach[which], -1, 1 << 30) + std::clamp<int64_t>(offset, -1, 8));
      const std::string stored = name();
      if (i == 0 && bytes_.ConsumeBool()) {
        const char* format = !int8_ ? floats() : bytes_.PickValueInArray({"i8", "i8", "i8g", "i4", "i5", "i6"});
        weight(stored, format, rows, columns, format[1] == '8' ? rotation(columns) : 0);
      } else {
        const char* format = !int8_ ? floats() : bytes_.PickValueInArray({"i8", "i8", "i3", "i4", "i5", "i6", "i7"});
        table(stored, format, rows, columns, int8_ && i == 0 ? rotation(columns) : or_wrong(0));
      }
      tables.push_back(
          record({{"weight", text(stored)}, {"index", text(kIndices[which])}, {"offset", number(offset)}}));
    }
    Record fields{{"op", text("embed")}, {"out", text(define(columns, kTokens))}, {"tables", {tables}}};
    if (bytes_.ConsumeIntegralInRange(0, 7) == 7) fields.emplace_back("scale", Item{1.5});
    ops_.push_back(record(std::move(fields)));
  }

  // An input of pixels, and what is first made of it.
  void pixels() {
    const int64_t height = bytes_.ConsumeIntegralInRange<int64_t>(1, 12);
    const int64_t width = bytes_.ConsumeIntegralInRange<int64_t>(1, 12);
    const size_t grid = add_domain({"pixels", "grid", "", height * width, height, width});
    const int64_t channels = or_wrong(bytes_.PickValueInArray<int64_t>({1, 3, 4, 16, 32}));
    inputs_.push_back(record(
        {{"name", text("image")}, {"domain", text("pixels")}, {"dtype", text("f32")}, {"width", number(channels)}}));
    values_.push_back({"image", channels, grid});
    if (!wrong()) unfold(values_.back());
  }

  void operation() {
    const Value in = pick();
    if ((rows_[in.domain].kind == "grid" || wrong()) && bytes_.ConsumeBool()) return on_grid(in);
    switch (bytes_.ConsumeIntegralInRange(0, 22)) {
      case 0:
        return embed();
      case 1:
        return norm(in);
      case 2:
      case 3:
      case 4:
        return linear(in);
      case 5:
      case 6:
        if (sequences(in) || wrong()) return attention(in);
        return linear(in);
      case 7:
        return pool(in);
      case 8:
        simple("select", in, {{"domain", text("chosen")}});
        values_.back().domain = kChosen;
        return;
      case 9: {
        const int64_t begin = bytes_.ConsumeIntegralInRange<int64_t>(0, 40), width = or_wrong(sum(in.width, -begin));
        columns(in, begin, width);
        return;
      }
      case 10: {
        const Value with = pick_beside(in);
        simple("concat", in, {{"with", text(with.name)}});
        values_.back().width = sum(in.width, with.width);
        return;
      }
      case 11:
        return simple("softcap", in, {{"cap", Item{wrong() ? bytes_.ConsumeFloatingPoint<double>() : 3.0}}});
      case 12:
        return rope(in);
      case 13:
        return prepend(in);
      case 14:
      case 15:
      case 16:
        if (in.domain == kTokens || rows_[in.domain].kind == "grid" || wrong()) return along(in);
        return linear(in);
      case 17:
        return sequences(in) || wrong() ? whole(in) : linear(in);
      case 18:  // tokens are texts of any length
        return (sequences(in) && in.domain != kTokens) || wrong() ? merge(in) : linear(in);
      case 19:
        return sequences(in) || wrong() ? halt(in) : linear(in);
      case 20:
        return head_mean(in);
      case 21:
        return sequences(in) || wrong() ? summarize(in) : linear(in);
      default:
        return simple("normalize", in, {});
    }
  }

  bool sequences(const Value& in) const { return rows_[in.domain].kind == "ragged" || rows_[in.domain].kind == "grid"; }

  void on_grid(const Value& in) {
    switch (bytes_.ConsumeIntegralInRange(0, 5)) {
      case 0:
        return unfold(in);
      case 1:
      case 2:
        return depthwise(in);
      case 3:
        return fold(in);
      case 4: {
        Record options;
        int64_t taps = 0;
        const size_t to = windows(in, 4, options, taps);
        return average(in, to, std::move(options));
      }
      default: {
        const int64_t height = bytes_.ConsumeIntegralInRange<int64_t>(1, 9);
        return made(in, "resize", in.width, grid(in, height, bytes_.ConsumeIntegralInRange<int64_t>(1, 9)), {});
      }
    }
  }

  // Windows over the grid of `in` as an operator says them; their lines and pixels come out with the grid of results.
  size_t windows(const Value& in, int64_t most, Record& options, int64_t& taps) {
    const auto small = [&](int64_t low, int64_t high) { return bytes_.ConsumeIntegralInRange<int64_t>(low, high); };
    const int64_t height = small(1, most), width = small(1, most), stride = small(1, 3),
                  padding = or_wrong(small(0, 2));
    options = {{"height", number(height)},
               {"width", number(or_wrong(width))},
               {"stride", number(stride)},
               {"padding", number(padding)}};
    taps = height * width;
    const int64_t around = 2 * std::clamp<int64_t>(padding, -1, 1 << 20);
    const int64_t down = rows_[in.domain].height + around - height, across = rows_[in.domain].width + around - width;
    return grid(in, std::max<int64_t>(down, 0) / stride + 1, std::max<int64_t>(across, 0) / stride + 1);
  }

  void unfold(const Value& in) {
    Record options;
    int64_t taps = 0;
    const size_t to = windows(in, 4, options, taps);
    made(in, "unfold", in.width > 0 && in.width < (1 << 20) ? taps * in.width : 1, to, std::move(options));
  }

  void depthwise(const Value& in) {
    Record options;
    int64_t taps = 0;
    const size_t to = windows(in, 8, options, taps);
    const std::string weights = name();
    options.emplace_back("weight", text(weights));
    tensor(weights, DType::kF32, {taps, up(in.width, 16)});
    options.emplace_back("activation", text(activation()));
    if (bytes_.ConsumeBool()) options.emplace_back("bias", text(bias(weights, in.width)));
    made(in, "depthwise", in.width, to, std::move(options));
  }

  void fold(const Value& in) {
    const int64_t height = bytes_.ConsumeIntegralInRange<int64_t>(1, 3), width = bytes_.ConsumeBool() ? height : 1;
    const int64_t channels = in.width % (height * width) == 0 ? in.width / (height * width) : or_wrong(1);
    const Rows from = rows_[in.domain];
    made(in, "fold", channels, grid(in, from.height * height, from.width * width),
         {{"height", number(height)}, {"width", number(width)}});
  }

  void prepend(const Value& in) {
    const int64_t count = bytes_.ConsumeIntegralInRange<int64_t>(0, 3);
    const Rows of = rows_[in.domain];
    const size_t to = add_domain({new_domain(), "ragged", of.name, sum(of.max_rows, count), 0, 0, count});
    const std::string rows = name() + ".rows";
    tensor(rows, DType::kF32, {count, up(in.width, 16)});
    made(in, "prepend", in.width, to, {{"rows", text(rows)}});
  }

  void pool(const Value& in) {
    constexpr const char* kKinds[] = {"mean", "cls", "max", "last", "mean_sqrt", "weighted_mean"};
    Record options{{"kind", text(bytes_.PickValueInArray(kKinds))}};
    if (bytes_.ConsumeIntegralInRange(0, 3) == 3) return made(in, "pool", in.width, few(in), std::move(options));
    const bool tokens = in.domain == kTokens || wrong();
    if (tokens && bytes_.ConsumeBool()) options.emplace_back("skip", text(wrong() ? "ids" : "counts"));
    if (bytes_.ConsumeIntegralInRange(0, 3) == 3) options.emplace_back("begin", number(or_wrong(1)));
    made(in, "pool", in.width, tokens ? kTexts : add_domain({new_domain(), "one", rows_[in.domain].name}),
         std::move(options));
  }

  const char* activation() { return bytes_.PickValueInArray({"none", "gelu", "gelu_tanh", "relu", "silu", "tanh"}); }

  // Its name.
  std::string bias(const std::string& weights, int64_t width) {
    tensor(weights + ".bias", DType::kF32, {up(width, 16)});
    return weights + ".bias";
  }

  void norm(const Value& in) {
    const std::string weights = name();
    const int64_t half = in.width > 0 && in.width % 32 == 0 && bytes_.ConsumeBool() ? 2 : 1;
    tensor(weights, DType::kF32, {up(in.width / half, 16)});
    Record options{{"weight", text(weights)}, {"kind", text(bytes_.PickValueInArray({"layer", "rms"}))}};
    options.emplace_back("eps", Item{wrong() ? bytes_.ConsumeFloatingPoint<double>() : 1e-6});
    options.emplace_back("heads", number(or_wrong(half)));
    if (bytes_.ConsumeBool()) options.emplace_back("bias", text(bias(weights, in.width / half)));
    if (bytes_.ConsumeIntegralInRange(0, 3) == 3) options.emplace_back("residual", text(pick_beside(in).name));
    simple("norm", in, std::move(options));
  }

  void rope(const Value& in) {
    const bool even = in.width > 1 && in.width <= 256 && in.width % 2 == 0;
    const int64_t rotated = even ? in.width : 2;
    const std::string frequencies = name() + ".frequencies";
    tensor(frequencies, DType::kF32, {up(rotated / 2, 16)}, true);
    simple("rope", in,
           {{"head_dim", number(or_wrong(rotated))},
            {"rotated", number(or_wrong(rotated))},
            {"frequencies", text(frequencies)},
            {"factor", Item{1.0}}});
  }

  void linear(const Value& in) {
    const std::string weights = name();
    int64_t n = width();
    Record options{{"weight", text(weights)}, {"activation", text(activation())}};
    for (const char* field : {"residual", "multiply"}) {
      if (bytes_.ConsumeIntegralInRange(0, 3) != 3) continue;
      const Value other = pick_beside(in);
      options.emplace_back(field, text(other.name));
      n = or_wrong(other.width);
    }
    const char* format = floats();
    if (int8_ != wrong()) format = bytes_.PickValueInArray({"i8", "i8", "i4", "i4", "i5", "i6", "i8g", "f16"});
    weight(weights, format, n, in.width, format[0] == 'f' ? or_wrong(0) : rotation(in.width));
    if (bytes_.ConsumeBool()) options.emplace_back("bias", text(bias(weights, n)));
    simple("linear", in, std::move(options));
    values_.back().width = n;
  }

  // With the projection that it needs.
  void attention(Value in) {
    const int64_t kv_heads = bytes_.ConsumeIntegralInRange<int64_t>(1, 3);
    const int64_t heads = or_wrong(kv_heads * bytes_.ConsumeIntegralInRange<int64_t>(1, 3));
    const int64_t head_dim = bytes_.ConsumeBool() ? size() : bytes_.ConsumeIntegralInRange<int64_t>(1, 40);
    const bool sane = head_dim > 0 && head_dim <= 300 && heads > 0 && heads <= 64;
    const int64_t q = sane ? heads * head_dim : 1, k = sane ? kv_heads * head_dim : 1;
    if (sane && !wrong()) {
      const std::string weights = name();
      weight(weights, int8_ ? "i8" : floats(), q + 2 * k, in.width, 0);
      simple("linear", in, {{"weight", text(weights)}});
      values_.back().width = q + 2 * k;
      in = values_.back();
    }
    const int64_t rotate = int8_ ? rotation(head_dim) : 0;
    const auto state = [&] {
      const std::string made = "s" + std::to_string(states_.size());
      states_.push_back(record({{"name", text(made)},
                                {"domain", text(rows_[in.domain].name)},
                                {"dtype", text(int8_           ? "int8"
                                               : kv_heads == 2 ? "fp16"
                                                               : "fp32")},
                                {"heads", number(kv_heads)},
                                {"head_dim", number(head_dim)},
                                {"rotate", number(rotate)}}));
      return made;
    };
    const auto queries = [&] {
      const std::string plain = columns(in, 0, q);
      if (int8_ == wrong()) return plain;
      simple("quantize_heads", values_.back(), {{"head_dim", number(head_dim)}, {"rotate", number(rotate)}});
      return values_.back().name;
    };
    const auto store = [&](const std::string& keys, const std::string& values) {
      const std::string made = state();
      ops_.push_back(record({{"op", text("store")}, {"k", text(keys)}, {"v", text(values)}, {"state", text(made)}}));
      return made;
    };
    const std::string query = queries(), keys = columns(in, q, k), values = columns(in, q + k, k);
    Record op{{"op", text("attention")},
              {"q", text(query)},
              {"state", text(store(keys, values))},
              {"causal", {bytes_.ConsumeIntegralInRange(0, 3) == 3}},
              {"fine", {int8_ && kv_heads != 2}}};
    if (const std::string* match = match_of(in.domain)) op.emplace_back("sizes", text(*match));
    if (bytes_.ConsumeBool()) op.emplace_back("left", number(size()));
    if (bytes_.ConsumeBool()) op.emplace_back("right", number(size()));
    double scale = 0.25;
    if (wrong()) {
      scale = bytes_.ConsumeFloatingPoint<double>();
      odd_ = true;  // logits beyond 2^31 have no exact difference to their maximum
    }
    op.emplace_back("scale", Item{scale});
    switch (bytes_.ConsumeIntegralInRange(0, 7)) {
      case 0:
      case 1: {
        const std::string bias = name() + ".bias";
        const int64_t reach = rows_[in.domain].max_rows;
        op.emplace_back("bias", text(bias));
        tensor(bias, DType::kF32, {heads, up(reach > 0 && reach < (1 << 20) ? 2 * reach - 1 : 1, 16)});
        break;
      }
      case 2:
        op.emplace_back("softcap", Item{wrong() ? bytes_.ConsumeFloatingPoint<double>() : 2.5});
        break;
      case 3:
        op.emplace_back("keys", text("counts"));
        break;
      case 4:
      case 5:
        op.emplace_back("globals", number(or_wrong(2)));
        if (in.domain == kTokens && bytes_.ConsumeBool()) op.emplace_back("more_globals", text("counts"));
        if (bytes_.ConsumeBool()) op.emplace_back("global_q", text(queries()));
        if (bytes_.ConsumeBool()) op.emplace_back("global_state", text(store(values, keys)));
        break;
      case 6:
        op.emplace_back("block", number(or_wrong(3)));
        for (const char* field : {"block_window", "block_globals", "block_repeats", "block_dense"})
          if (bytes_.ConsumeBool()) op.emplace_back(field, number(size()));
        break;
      default:
        break;
    }
    op.emplace_back("out", text(define(q, in.domain)));
    ops_.push_back(record(std::move(op)));
  }

  List inputs_, states_;
  int64_t vocab_ = 0, types_ = 0, length_ = 0;
  bool int8_ = false;
};

}  // namespace pocketformer
