// Bytes as a graph and its tensors: mostly one that makes sense, so that what runs is deep; now and then a field that
// does not.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "runtime/lowering.h"
#include "runtime/operators/registry.h"
#include "runtime/session.h"

namespace pocketformer {

class Decoder {
 public:
  explicit Decoder(FuzzedDataProvider& bytes) : bytes_(bytes) {}

  Item graph() {
    vocab_ = size(), types_ = bytes_.ConsumeIntegralInRange<int64_t>(0, 3), length_ = size();
    int8_ = bytes_.ConsumeBool();
    domains_ = {record({{"name", text("tokens")}, {"kind", text("ragged")}, {"max_rows", number(length_)}}),
                record({{"name", text("texts")}, {"kind", text("one")}, {"of", text("tokens")}}),
                record({{"name", text("chosen")}, {"kind", text("selected")}, {"of", text("tokens")}})};
    inputs_ = {index("ids", "tokens", vocab_, false)};
    if (types_ > 0) inputs_.push_back(index("types", "tokens", types_, true));
    inputs_.push_back(index("counts", "texts", or_wrong(40), true));
    embed();
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

  const Tensors& tensors() const { return tensors_; }
  bool odd() const { return odd_; }

 private:
  struct Value {
    std::string name;
    int64_t width;
  };
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  static constexpr size_t kMaxTensorBytes = 1 << 18;

  static Item record(Record fields) { return {std::move(fields)}; }
  static Item text(const std::string& value) { return {value}; }
  static Item number(int64_t value) { return {value}; }
  static Item index(const char* name, const char* domain, int64_t limit, bool optional) {
    return record({{"name", text(name)},
                   {"domain", text(domain)},
                   {"dtype", text("i32")},
                   {"limit", number(limit)},
                   {"optional", {optional}}});
  }

  // True once in sixteen times, and false when the bytes run out.
  bool wrong() { return bytes_.ConsumeIntegral<uint8_t>() >= 240; }

  int64_t size() {
    constexpr int64_t kOdd[] = {0,   -1,  15,  16,      17,      63,      64,       65,       128,       256,
                                257, 512, 768, 1 << 20, 1 << 24, 1 << 30, 1L << 31, 1L << 32, INT64_MAX, INT64_MIN};
    const int byte = bytes_.ConsumeIntegral<uint8_t>();
    return byte < 232 ? 1 + byte % 116 : kOdd[static_cast<size_t>(byte - 232) % std::size(kOdd)];
  }

  // Wraps: widths may be any number.
  static int64_t sum(int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }
  int64_t or_wrong(int64_t right) { return wrong() ? size() : right; }

  Value pick() {
    const size_t last = values_.size() - 1, back = bytes_.ConsumeIntegralInRange<size_t>(0, 15);
    return values_[last - (back < 8 ? 0 : std::min(last, back - 8))];
  }

  std::string define(int64_t width) {
    const std::string name = wrong() && !values_.empty() ? values_[0].name : "v" + std::to_string(values_.size());
    values_.push_back({name, width});
    return name;
  }

  std::string name() {  // parameters are shared now and then
    if (!wrong()) ++names_;
    return "w" + std::to_string(names_);
  }

  int64_t rotation(int64_t k) {
    constexpr int64_t kBlocks[] = {0, 2, 4, 8, 16, 32, 64, 128};
    const int64_t block = bytes_.PickValueInArray(kBlocks);
    return block != 0 && k > 0 && k % block == 0 ? block : or_wrong(0);
  }

  static int64_t up(int64_t value, int64_t multiple) {
    return value < 0 || value > (1 << 30) ? 0 : (value + multiple - 1) / multiple * multiple;
  }

  // One field of one record becomes something else, or goes.
  void lie(Item& item) {
    if (Record* fields = std::get_if<Record>(&item.value); fields != nullptr && !fields->empty()) {
      auto& [key, value] = (*fields)[bytes_.ConsumeIntegralInRange<size_t>(0, fields->size() - 1)];
      if (bytes_.ConsumeBool()) return lie(value);
      if (bytes_.ConsumeBool()) key += "x";
      value = bytes_.ConsumeBool() ? number(size()) : text(values_.front().name);
    } else if (List* list = std::get_if<List>(&item.value); list != nullptr && !list->empty()) {
      lie((*list)[bytes_.ConsumeIntegralInRange<size_t>(0, list->size() - 1)]);
    } else {
      item = number(size());
    }
  }

  // What the writer of a file would not write is `odd()`: worthless, and perhaps not the same everywhere.
  void tensor(const std::string& name, DType dtype, std::vector<int64_t> shape, bool positive = false) {
    if (wrong()) return;
    if (wrong() && !shape.empty()) shape[bytes_.ConsumeIntegralInRange<size_t>(0, shape.size() - 1)] = size();
    if (wrong()) dtype = bytes_.PickValueInArray({DType::kF32, DType::kI8, DType::kU8, DType::kI32, DType::kOther});
    const bool narrow = dtype == DType::kI8 || dtype == DType::kU8;
    size_t bytes = narrow ? 1 : 4;
    for (int64_t& extent : shape) {
      if (extent < 0 || extent > (1 << 20) || bytes * static_cast<size_t>(extent) > kMaxTensorBytes) extent = 1;
      bytes *= static_cast<size_t>(extent);
    }
    if (tensors_.has(name)) return;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<size_t>(bytes, 1)) != 0) std::abort();
    memory_.emplace_back(memory);
    fill(static_cast<char*>(memory), bytes, dtype, positive);
    made_[name] = {memory, dtype, shape};
    tensors_.add(name, {memory, dtype, std::move(shape)});
  }

  void fill(char* memory, size_t bytes, DType dtype, bool positive) {
    const uint8_t seed = bytes_.ConsumeIntegral<uint8_t>();
    if (seed >= 250) {
      odd_ = true;
      std::memset(memory, seed % 2 ? 0xFF : 0x80, bytes);
      return;
    }
    const bool narrow = dtype == DType::kI8 || dtype == DType::kU8;
    uint32_t state = seed + 1u;
    for (size_t i = 0; i < bytes; i += narrow ? 1 : 4) {
      const int32_t value = static_cast<int32_t>(((state = state * 1664525u + 1013904223u) >> 16) % 255) - 127;
      const float real = static_cast<float>(positive ? std::abs(value) : value) / (positive ? 1 << 14 : 1 << 9);
      if (narrow) {
        memory[i] = static_cast<char>(value);
      } else if (dtype == DType::kF32) {
        std::memcpy(memory + i, &real, 4);
      } else {
        std::memcpy(memory + i, &value, 4);
      }
    }
  }

  // The true sums of a weight's channels, if it is one.
  void colsum(const std::string& name, int64_t n) {
    tensor(name + ".colsum", DType::kI32, {up(n, 16)});
    const auto weight = made_.find(name + ".weight"), sums = made_.find(name + ".colsum");
    if (weight == made_.end() || sums == made_.end() || sums->second.dtype != DType::kI32) return;
    const std::vector<int64_t>& shape = weight->second.shape;
    if (weight->second.dtype != DType::kI8 || shape.size() != 4) return;
    if (sums->second.shape != std::vector<int64_t>{shape[0] * shape[2]}) return;
    if (wrong()) {
      odd_ = true;
      return;
    }
    auto* to = static_cast<int32_t*>(const_cast<void*>(sums->second.data));
    const auto* from = static_cast<const int8_t*>(weight->second.data);
    std::fill_n(to, shape[0] * shape[2], 0);
    for (int64_t p = 0; p < shape[0]; ++p) {
      for (int64_t i = 0; i < shape[1] * shape[2] * shape[3]; ++i)
        to[p * shape[2] + i / shape[3] % shape[2]] += *from++;
    }
  }

  // A weight in panels, of any format.
  void weight(const std::string& name, const std::string& format, int64_t n, int64_t k, int64_t rotate) {
    constexpr int64_t kGroups[] = {0, 16, 32, 64, 128};
    const int64_t group = format == "i4" ? bytes_.PickValueInArray(kGroups) : 0;
    const int64_t used = group != 0 && k > 0 && k % group == 0 ? group : or_wrong(0);
    facts(name, format, n, k, rotate, used, "panels");
    if (format == "f32") return tensor(name + ".weight", DType::kF32, {up(n, 16) / 16, k, 16});
    if (format == "i8") {
      tensor(name + ".weight", DType::kI8, {up(n, 16) / 16, up(k, 4) / 4, 16, 4});
      colsum(name, n);
    } else {
      tensor(name + ".weight", DType::kU8, {up(n, 16) / 16, up(k, 8) / 8, 16, 4});
      tensor(name + ".codebook", DType::kI8, {64});
    }
    const std::vector<int64_t> shape =
        used > 0 ? std::vector<int64_t>{up(n, 16) / 16, k / used, 16} : std::vector<int64_t>{up(n, 16)};
    tensor(name + ".scale", DType::kF32, shape, true);
    if (format == "i4" && bytes_.ConsumeBool()) tensor(name + ".minimum", DType::kF32, shape);
  }

  void facts(const std::string& name, const std::string& format, int64_t n, int64_t k, int64_t rotate, int64_t group,
             const char* layout) {
    if (!known_.insert({name, true}).second) return;
    weights_.emplace_back(name, record({{"format", text(format)},
                                        {"n", number(or_wrong(n))},
                                        {"k", number(k)},
                                        {"rotate", number(rotate)},
                                        {"group", number(group)},
                                        {"layout", text(layout)}}));
  }

  void embed() {
    const int64_t width = size();
    constexpr const char* kIndices[] = {"ids", "positions", "types"};
    List tables;
    for (int count = bytes_.ConsumeIntegralInRange(0, 3), i = 0; i < count; ++i) {
      const int which = wrong() ? bytes_.ConsumeIntegralInRange(0, 2) : i;
      const int64_t offset = which == 1 ? bytes_.ConsumeIntegralInRange<int64_t>(0, 4) : or_wrong(0);
      const int64_t reach[] = {vocab_, length_, types_};
      const int64_t rows =
          or_wrong(std::clamp<int64_t>(reach[which], -1, 1 << 30) + std::clamp<int64_t>(offset, -1, 8));
      const std::string table = name();
      if (i == 0 && bytes_.ConsumeBool()) {
        weight(table, int8_ ? "i8" : "f32", rows, width, int8_ ? rotation(width) : 0);
      } else {
        const char* format = !int8_ ? "f32" : bytes_.PickValueInArray({"i8", "i8", "i3", "i4", "i5", "i6", "i7"});
        const int bits = int8_ ? format[1] - '0' : 32;
        facts(table, format, rows, width, int8_ && i == 0 ? rotation(width) : or_wrong(0), 0, "rows");
        const bool possible = width > 0 && width < (1 << 20);
        const int64_t columns = possible && bits < 8 ? up(width, 16) / 8 * bits : width;
        const int64_t padded = possible ? up(rows, table_row_multiple(columns * (int8_ ? 1 : 4))) : rows;
        tensor(table + ".weight", bits == 32 ? DType::kF32 : bits == 8 ? DType::kI8 : DType::kU8, {padded, columns});
        if (bits < 8) tensor(table + ".codebook", DType::kI8, {bits == 7 ? 128 : 64});
        if (int8_) tensor(table + ".scale", DType::kF32, {up(rows, 16)}, true);
      }
      tables.push_back(record({{"weight", text(table)}, {"index", text(kIndices[which])}, {"offset", number(offset)}}));
    }
    ops_.push_back(record({{"op", text("embed")}, {"out", text(define(width))}, {"tables", {tables}}}));
  }

  void operation() {
    const Value in = pick();
    switch (bytes_.ConsumeIntegralInRange(0, 11)) {
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
        return attention(in);
      case 7:
        return pool(in);
      case 8:
        return simple("select", in, {{"domain", text("chosen")}});
      case 9: {
        const int64_t begin = bytes_.ConsumeIntegralInRange<int64_t>(0, 40), width = or_wrong(sum(in.width, -begin));
        columns(in, begin, width);
        return;
      }
      case 10: {
        const Value with = pick();
        simple("concat", in, {{"with", text(with.name)}});
        values_.back().width = sum(in.width, with.width);
        return;
      }
      default:
        return simple("normalize", in, {});
    }
  }

  void pool(const Value& in) {
    constexpr const char* kKinds[] = {"mean", "cls", "max", "last", "mean_sqrt", "weighted_mean"};
    Record options{{"domain", text("texts")}, {"kind", text(bytes_.PickValueInArray(kKinds))}};
    if (bytes_.ConsumeBool()) options.emplace_back("skip", text(wrong() ? "ids" : "counts"));
    simple("pool", in, std::move(options));
  }

  void simple(const char* kind, const Value& in, Record options) {
    Record fields{{"op", text(kind)}, {"in", text(in.name)}, {"out", text(define(in.width))}};
    fields.insert(fields.end(), options.begin(), options.end());
    ops_.push_back(record(std::move(fields)));
  }

  std::string columns(const Value& in, int64_t begin, int64_t width) {
    const std::string out = define(width);
    ops_.push_back(record({{"op", text("columns")},
                           {"in", text(in.name)},
                           {"out", text(out)},
                           {"begin", number(begin)},
                           {"width", number(width)}}));
    return out;
  }

  void norm(const Value& in) {
    const std::string weight = name();
    tensor(weight, DType::kF32, {up(in.width, 16)});
    Record options{{"weight", text(weight)}, {"kind", text(bytes_.PickValueInArray({"layer", "rms"}))}};
    options.emplace_back("eps", Item{wrong() ? bytes_.ConsumeFloatingPoint<double>() : 1e-6});
    if (bytes_.ConsumeBool()) {
      options.emplace_back("bias", text(weight + ".bias"));
      tensor(weight + ".bias", DType::kF32, {up(in.width, 16)});
    }
    simple("norm", in, std::move(options));
  }

  void linear(const Value& in) {
    const std::string weights = name();
    int64_t n = size();
    Record options{{"weight", text(weights)}};
    const char* activation = bytes_.PickValueInArray({"none", "gelu", "gelu_tanh", "relu", "silu", "tanh"});
    options.emplace_back("activation", text(activation));
    for (const char* field : {"residual", "multiply"}) {
      if (!bytes_.ConsumeBool()) continue;
      const Value other = pick();
      options.emplace_back(field, text(other.name));
      n = or_wrong(other.width);
    }
    const char* format = !int8_ || wrong() ? "f32" : bytes_.PickValueInArray({"i8", "i8", "i4"});
    weight(weights, format, n, in.width, format[0] == 'f' ? or_wrong(0) : rotation(in.width));
    if (bytes_.ConsumeBool()) {
      options.emplace_back("bias", text(weights + ".bias"));
      tensor(weights + ".bias", DType::kF32, {up(n, 16)});
    }
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
      weight(weights, int8_ ? "i8" : "f32", q + 2 * k, in.width, 0);
      simple("linear", in, {{"weight", text(weights)}});
      values_.back().width = q + 2 * k;
      in = values_.back();
    }
    const int64_t rotate = int8_ ? rotation(head_dim) : 0;
    std::string query = columns(in, 0, q);
    const std::string keys = columns(in, q, k), values = columns(in, q + k, k);
    const std::string state = "s" + std::to_string(states_.size());
    states_.push_back(record({{"name", text(state)},
                              {"domain", text("tokens")},
                              {"dtype", text(int8_ ? "int8" : "fp32")},
                              {"heads", number(kv_heads)},
                              {"head_dim", number(head_dim)},
                              {"rotate", number(rotate)}}));
    ops_.push_back(record({{"op", text("store")}, {"k", text(keys)}, {"v", text(values)}, {"state", text(state)}}));
    if (int8_ != wrong()) {
      const std::string rounded = define(q);
      ops_.push_back(record({{"op", text("quantize_heads")},
                             {"in", text(query)},
                             {"out", text(rounded)},
                             {"head_dim", number(head_dim)},
                             {"rotate", number(rotate)}}));
      query = rounded;
    }
    Record op{
        {"op", text("attention")}, {"q", text(query)}, {"state", text(state)}, {"causal", {bytes_.ConsumeBool()}}};
    if (bytes_.ConsumeBool()) op.emplace_back("left", number(size()));
    if (bytes_.ConsumeBool()) op.emplace_back("right", number(size()));
    double scale = 0.25;
    if (wrong()) {
      scale = bytes_.ConsumeFloatingPoint<double>();
      odd_ = true;  // logits beyond 2^31 have no exact difference to their maximum
    }
    op.emplace_back("scale", Item{scale});
    if (bytes_.ConsumeBool()) {
      const std::string bias = name() + ".bias";
      op.emplace_back("bias", text(bias));
      tensor(bias, DType::kF32, {heads, up(length_ > 0 && length_ < (1 << 20) ? 2 * length_ - 1 : 1, 16)});
    }
    if (bytes_.ConsumeIntegralInRange(0, 3) == 3) op.emplace_back("keys", text("counts"));
    op.emplace_back("out", text(define(q)));
    ops_.push_back(record(std::move(op)));
  }

  FuzzedDataProvider& bytes_;
  List domains_, inputs_, states_, ops_;
  Record weights_;
  Tensors tensors_;
  std::map<std::string, Tensor> made_;
  std::map<std::string, bool> known_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  std::vector<Value> values_;
  int64_t vocab_ = 0, types_ = 0, length_ = 0;
  bool int8_ = false, odd_ = false;
  int names_ = 0;
};

}  // namespace pocketformer
