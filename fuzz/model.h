// A small encoder with every kind of operator, for the drivers that need one without Python.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "runtime/session.h"

struct Model {
  explicit Model(bool int8) : int8_(int8) {
    using namespace pocketformer;
    const List domains{record({{"name", text("tokens")}, {"kind", text("ragged")}, {"max_rows", number(24)}}),
                       record({{"name", text("texts")}, {"kind", text("one")}, {"of", text("tokens")}})};
    const List inputs{
        record({{"name", text("ids")}, {"domain", text("tokens")}, {"dtype", text("i32")}, {"limit", number(40)}})};
    table("words", 40);
    table("positions", 26);
    const List tables{record({{"weight", text("words")}, {"index", text("ids")}}),
                      record({{"weight", text("positions")}, {"index", text("positions")}, {"offset", number(2)}})};
    op({{"op", text("embed")}, {"out", text("words")}, {"tables", {tables}}});
    tensor("bias", DType::kF32, {kHeads, 48});
    std::string in = "words";
    for (const char* layer : {"a", "b"}) {
      const std::string name = layer;
      linear(name + ".qkv", in, 3 * kHeads * kHeadDim, kHidden);
      attention(name);
      linear(name + ".out", name + ".mixed", kHidden, kHeads * kHeadDim, {{"residual", text(in)}});
      tensor(name + ".norm", DType::kF32, {48});
      op({{"op", text("norm")},
          {"in", text(name + ".out")},
          {"out", text(name + ".normed")},
          {"weight", text(name + ".norm")},
          {"kind", text("layer")},
          {"eps", {1e-6}}});
      linear(name + ".up", name + ".normed", kFfn, kHidden, {{"activation", text("gelu")}});
      linear(name + ".down", name + ".up", kHidden, kFfn, {{"residual", text(name + ".normed")}});
      in = name + ".down";
    }
    op({{"op", text("pool")},
        {"in", text(in)},
        {"out", text("pooled")},
        {"domain", text("texts")},
        {"kind", text("mean")}});
    op({{"op", text("normalize")}, {"in", text("pooled")}, {"out", text("out")}});
    for (int64_t i = 0; i < offsets_[kSequences]; ++i) ids_.push_back(static_cast<int32_t>(i * 7 % 40));
    graph_ = record({{"domains", {domains}},
                     {"inputs", {inputs}},
                     {"weights", {weights_}},
                     {"states", {states_}},
                     {"ops", {ops_}},
                     {"output", text("out")}});
  }

  std::shared_ptr<const pocketformer::Program> compile(const pocketformer::KernelTable& kernels) const {
    return std::make_shared<const pocketformer::Program>(graph_, tensors_, kernels);
  }

  // [sequences][hidden]
  std::vector<float> run(pocketformer::Session& session, int threads) const {
    std::vector<float> out(kSequences * kHidden);
    pocketformer::Feeds feeds;
    feeds.inputs[0] = {ids_.data(), ids_.size()};
    feeds.domains[0] = {offsets_, kSequences + 1};
    session.run(feeds, threads, out.data());
    return out;
  }

 private:
  static constexpr int64_t kHidden = 36, kHeads = 3, kHeadDim = 10, kFfn = 41;
  static constexpr size_t kSequences = 6;

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  static pocketformer::Item record(pocketformer::Record fields) { return {std::move(fields)}; }
  static pocketformer::Item text(const std::string& value) { return {value}; }
  static pocketformer::Item number(int64_t value) { return {value}; }
  void op(pocketformer::Record fields) { ops_.push_back(record(std::move(fields))); }

  void tensor(const std::string& name, pocketformer::DType dtype, std::vector<int64_t> shape) {
    if (tensors_.has(name)) return;
    size_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
    void* memory = nullptr;
    if (posix_memalign(&memory, pocketformer::kAlignment, count * 4) != 0) throw std::bad_alloc();
    memory_.emplace_back(memory);
    std::memset(memory, 0, count * 4);  // sums of channels, which nothing here depends on, stay 0
    for (size_t i = 0; i < count; ++i) {
      const int value = static_cast<int>((i * 2654435761u >> 12) % 255) - 127;
      const float real = static_cast<float>(name.find(".scale") != std::string::npos ? std::abs(value) : value) / 256;
      if (dtype == pocketformer::DType::kI8) static_cast<int8_t*>(memory)[i] = static_cast<int8_t>(value);
      if (dtype == pocketformer::DType::kF32) static_cast<float*>(memory)[i] = real;
    }
    tensors_.add(name, {memory, dtype, std::move(shape)});
  }

  void weight(const std::string& name, int64_t n, int64_t k, const char* layout) {
    weights_.emplace_back(
        name,
        record({{"format", text(int8_ ? "i8" : "f32")}, {"n", number(n)}, {"k", number(k)}, {"layout", text(layout)}}));
    if (int8_) tensor(name + ".scale", pocketformer::DType::kF32, {(n + 15) / 16 * 16});
  }

  void table(const std::string& name, int64_t rows) {
    weight(name, rows, kHidden, "rows");
    while (rows * kHidden * (int8_ ? 1 : 4) % 64 != 0) ++rows;
    tensor(name + ".weight", int8_ ? pocketformer::DType::kI8 : pocketformer::DType::kF32, {rows, kHidden});
  }

  void linear(const std::string& out, const std::string& in, int64_t n, int64_t k,
              const pocketformer::Record& options = {}) {
    using pocketformer::DType;
    const int64_t panels = (n + 15) / 16;
    weight(out, n, k, "panels");
    if (int8_) {
      tensor(out + ".weight", DType::kI8, {panels, (k + 3) / 4, 16, 4});
      tensor(out + ".colsum", DType::kI32, {panels * 16});
    } else {
      tensor(out + ".weight", DType::kF32, {panels, k, 16});
    }
    pocketformer::Record fields{{"op", text("linear")}, {"in", text(in)}, {"out", text(out)}, {"weight", text(out)}};
    fields.insert(fields.end(), options.begin(), options.end());
    op(std::move(fields));
  }

  void attention(const std::string& name) {
    constexpr int64_t kWidth = kHeads * kHeadDim;
    const char* parts[] = {".q", ".k", ".v"};
    for (int64_t i = 0; i < 3; ++i) {
      op({{"op", text("columns")},
          {"in", text(name + ".qkv")},
          {"out", text(name + parts[i])},
          {"begin", number(i * kWidth)},
          {"width", number(kWidth)}});
    }
    states_.push_back(record({{"name", text(name)},
                              {"domain", text("tokens")},
                              {"dtype", text(int8_ ? "int8" : "fp32")},
                              {"heads", number(kHeads)},
                              {"head_dim", number(kHeadDim)}}));
    op({{"op", text("store")}, {"k", text(name + ".k")}, {"v", text(name + ".v")}, {"state", text(name)}});
    if (int8_) {
      op({{"op", text("quantize_heads")},
          {"in", text(name + ".q")},
          {"out", text(name + ".rounded")},
          {"head_dim", number(kHeadDim)}});
    }
    op({{"op", text("attention")},
        {"q", text(name + (int8_ ? ".rounded" : ".q"))},
        {"state", text(name)},
        {"out", text(name + ".mixed")},
        {"bias", text("bias")},
        {"left", number(5)},
        {"scale", {0.3}}});
  }

  bool int8_;
  pocketformer::Item graph_;
  pocketformer::List states_, ops_;
  pocketformer::Record weights_;
  pocketformer::Tensors tensors_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  std::vector<int32_t> ids_;
  int64_t offsets_[kSequences + 1] = {0, 24, 25, 40, 47, 70, 90};
};
