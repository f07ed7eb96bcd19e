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
    tensors_[name] = {buffer->data(), dtype, std::move(shape)};
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

void time_passes(bool int8, double seconds) {
  Weights weights;
  weights.add("words.weight", int8 ? DType::kI8 : DType::kF32, {kVocabulary, kWidth});
  if (int8) weights.add("words.scale", DType::kF32, {(kVocabulary + kLanes - 1) / kLanes * kLanes});
  weights.linear("qkv", 3 * kWidth, int8);
  weights.linear("head", kVocabulary, int8);
  Graph graph;
  graph.ops = {
      EmbedSpec{"x", kWidth, {{"words", "ids", kVocabulary, 0, 0}}},
      LinearSpec{"x", "qkv", "qkv", "none", "", 3 * kWidth, kWidth, int8 ? 32 : 0},
      AttentionSpec{"qkv", "y", int8 ? "int8" : "fp32", "", kHeads, kHeads, kWidth / kHeads, -1, -1, 0.35, false},
      LinearSpec{"y", "z", "head", "none", "", kVocabulary, kWidth, int8 ? 32 : 0}};
  graph.output = "z";
  graph.vocab_size = kVocabulary;
  graph.type_vocab_size = 0;
  graph.max_length = 64;
  const auto program = std::make_shared<const Program>(graph, weights.tensors(), kernels());
  Session session(program, {});
  std::vector<int32_t> ids(kTokens);
  for (int i = 0; i < kTokens; ++i) ids[static_cast<size_t>(i)] = i * 97;
  const int64_t offsets[] = {0, kTokens};
  const Input input{ids.data(), nullptr, offsets, nullptr, kTokens, 1, 0};
  std::vector<float> out(static_cast<size_t>(kTokens) * kVocabulary);
  const double middle = median_seconds(seconds, 1, [&] { session.run(input, 1, out.data()); });
  std::printf("{\"weights\": \"%s\", \"isa\": \"%s\", \"seconds\": %.9g}\n", int8 ? "int8" : "fp32", kernels().isa,
              middle);
}

}  // namespace
}  // namespace pocketformer

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.5;
  for (const bool int8 : {true, false}) pocketformer::time_passes(int8, seconds);
}
