// A forward pass so small that what counts is all but arithmetic: one layer of attention over 10 tokens, width 32, four
// heads, between two tables of 1,000 words: 67,072 parameters. One JSON object a line.
//   fixed_cost SECONDS
#include <cstdlib>
#include <memory>

#include "core/aligned_buffer.h"
#include "core/dispatch.h"
#include "runtime/session.h"
#include "timing.h"

namespace pocketformer {
namespace {

constexpr int kVocabulary = 1000, kWidth = 32, kHeads = 4, kTokens = 10;

// Tensors in memory of their own; their values do not matter, so most are zero.
class Weights {
 public:
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape) {
    size_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
    auto& buffer = buffers_.emplace_back(std::make_unique<AlignedBuffer>());
    const size_t bytes = round_up(count * (dtype == DType::kI8 ? 1 : 4), kAlignment);
    buffer->reserve(bytes);
    for (size_t i = 0; i < bytes; ++i) buffer->data()[i] = static_cast<std::byte>(dtype == DType::kI8 ? i % 127 : 0);
    tensors_.add(name, {buffer->data(), dtype, std::move(shape)});
  }

  void linear(const std::string& name, int64_t n, bool int8) {
    const int64_t panels = (n + kLanes - 1) / kLanes;
    if (!int8) return add(name + ".weight", DType::kF32, {panels, kWidth, kLanes});
    add(name + ".weight", DType::kI8, {panels, kWidth / 4, kLanes, 4});
    add(name + ".scale", DType::kF32, {panels * kLanes});
    add(name + ".colsum", DType::kI32, {panels * kLanes});
  }

  const Tensors& tensors() const { return tensors_; }

 private:
  std::vector<std::unique_ptr<AlignedBuffer>> buffers_;
  Tensors tensors_;
};

Item record(Record fields) { return {std::move(fields)}; }
Item text(const char* value) { return {std::string(value)}; }
Item number(int64_t value) { return {value}; }

Item weight(const char* format, int64_t n, int64_t rotate, const char* layout) {
  return record({{"format", text(format)},
                 {"n", number(n)},
                 {"k", number(kWidth)},
                 {"rotate", number(rotate)},
                 {"layout", text(layout)}});
}

Item columns(const char* out, int64_t begin) {
  return record({{"op", text("columns")},
                 {"in", text("qkv")},
                 {"out", text(out)},
                 {"begin", number(begin)},
                 {"width", number(kWidth)}});
}

Item toy(bool int8) {
  const char* format = int8 ? "i8" : "f32";
  const int64_t rotate = int8 ? 32 : 0, head_dim = kWidth / kHeads;
  const List tables{record({{"weight", text("words")}, {"index", text("ids")}})};
  List ops{record({{"op", text("embed")}, {"out", text("x")}, {"tables", {tables}}}),
           record({{"op", text("linear")}, {"in", text("x")}, {"out", text("qkv")}, {"weight", text("qkv")}}),
           columns("q", 0),
           columns("k", kWidth),
           columns("v", 2 * kWidth),
           record({{"op", text("store")}, {"k", text("k")}, {"v", text("v")}, {"state", text("s")}})};
  if (int8) {
    ops.push_back(record(
        {{"op", text("quantize_heads")}, {"in", text("q")}, {"out", text("rounded")}, {"head_dim", number(head_dim)}}));
  }
  ops.push_back(record({{"op", text("attention")},
                        {"q", text(int8 ? "rounded" : "q")},
                        {"state", text("s")},
                        {"out", text("y")},
                        {"scale", {0.35}}}));
  ops.push_back(record({{"op", text("linear")}, {"in", text("y")}, {"out", text("z")}, {"weight", text("head")}}));
  return record(
      {{"domains", {List{record({{"name", text("tokens")}, {"kind", text("ragged")}, {"max_rows", number(64)}})}}},
       {"inputs",
        {List{record({{"name", text("ids")},
                      {"domain", text("tokens")},
                      {"dtype", text("i32")},
                      {"limit", number(kVocabulary)}})}}},
       {"weights", record({{"words", weight(format, kVocabulary, 0, "rows")},
                           {"qkv", weight(format, 3 * kWidth, rotate, "panels")},
                           {"head", weight(format, kVocabulary, rotate, "panels")}})},
       {"states",
        {List{record({{"name", text("s")},
                      {"domain", text("tokens")},
                      {"dtype", text(int8 ? "int8" : "fp32")},
                      {"heads", number(kHeads)},
                      {"head_dim", number(head_dim)}})}}},
       {"ops", {ops}},
       {"output", text("z")}});
}

void time_passes(bool int8, double seconds) {
  Weights weights;
  weights.add("words.weight", int8 ? DType::kI8 : DType::kF32, {kVocabulary, kWidth});
  if (int8) weights.add("words.scale", DType::kF32, {(kVocabulary + kLanes - 1) / kLanes * kLanes});
  weights.linear("qkv", 3 * kWidth, int8);
  weights.linear("head", kVocabulary, int8);
  const auto program = std::make_shared<const Program>(toy(int8), weights.tensors(), kernels());
  Session session(program, {});
  std::vector<int32_t> ids(kTokens);
  for (int i = 0; i < kTokens; ++i) ids[static_cast<size_t>(i)] = i * 97;
  const int64_t offsets[] = {0, kTokens};
  Feeds feeds;
  feeds.inputs[0] = {ids.data(), kTokens};
  feeds.domains[0] = {offsets, 2};
  std::vector<float> out(static_cast<size_t>(kTokens) * kVocabulary);
  const double middle = median_seconds(seconds, 1, [&] { session.run(feeds, 1, out.data()); });
  std::printf("{\"weights\": \"%s\", \"isa\": \"%s\", \"seconds\": %.9g}\n", int8 ? "int8" : "fp32", kernels().isa,
              middle);
}

}  // namespace
}  // namespace pocketformer

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.5;
  for (const bool int8 : {true, false}) pocketformer::time_passes(int8, seconds);
}
