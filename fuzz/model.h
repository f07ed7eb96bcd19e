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
    EmbedSpec embed{"words", kHidden, {{"words", "ids", 40, 0, 0}, {"positions", "positions", 26, 2, 0}}};
    tensor("words.weight", int8 ? DType::kI8 : DType::kF32, {40, kHidden});
    if (int8) tensor("words.scale", DType::kF32, {48});
    tensor("positions.weight", int8 ? DType::kI8 : DType::kF32, {26, kHidden});
    if (int8) tensor("positions.scale", DType::kF32, {32});
    graph_.ops.emplace_back(embed);
    std::string in = "words";
    for (const char* layer : {"a", "b"}) {
      const std::string name = layer;
      linear(name + ".qkv", in, 3 * kHeads * kHeadDim, kHidden, "none", "");
      tensor("bias", DType::kF32, {kHeads, 48});
      graph_.ops.emplace_back(AttentionSpec{name + ".qkv", name + ".mixed", int8 ? "int8" : "fp32", "bias", kHeads,
                                            kHeads, kHeadDim, 5, -1, 0.3, false});
      linear(name + ".out", name + ".mixed", kHidden, kHeads * kHeadDim, "none", in);
      tensor(name + ".norm.weight", DType::kF32, {48});
      graph_.ops.emplace_back(NormSpec{name + ".out", name + ".normed", name + ".norm", "layer", kHidden, 1e-6});
      linear(name + ".up", name + ".normed", kFfn, kHidden, "gelu", "");
      linear(name + ".down", name + ".up", kHidden, kFfn, "none", name + ".normed");
      in = name + ".down";
    }
    graph_.ops.emplace_back(PoolSpec{in, "pooled", "mean"});
    graph_.ops.emplace_back(NormalizeSpec{"pooled", "out"});
    for (int64_t i = 0; i < offsets_[kSequences]; ++i) ids_.push_back(static_cast<int32_t>(i * 7 % 40));
  }

  std::shared_ptr<const pocketformer::Program> compile(const pocketformer::KernelTable& kernels) const {
    return std::make_shared<const pocketformer::Program>(graph_, tensors_, kernels);
  }

  // [sequences][hidden]
  std::vector<float> run(pocketformer::Session& session, int threads) const {
    std::vector<float> out(kSequences * kHidden);
    session.run({ids_.data(), nullptr, offsets_, nullptr, ids_.size(), kSequences, 0}, threads, out.data());
    return out;
  }

 private:
  static constexpr int64_t kHidden = 36, kHeads = 3, kHeadDim = 10, kFfn = 41;
  static constexpr size_t kSequences = 6;

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  void tensor(const std::string& name, pocketformer::DType dtype, std::vector<int64_t> shape) {
    if (tensors_.count(name) != 0) return;
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
    tensors_[name] = {memory, dtype, std::move(shape)};
  }

  void linear(const std::string& out, const std::string& in, int64_t n, int64_t k, const std::string& activation,
              const std::string& residual) {
    using pocketformer::DType;
    const int64_t panels = (n + 15) / 16;
    if (int8_) {
      tensor(out + ".weight", DType::kI8, {panels, (k + 3) / 4, 16, 4});
      tensor(out + ".scale", DType::kF32, {panels * 16});
      tensor(out + ".colsum", DType::kI32, {panels * 16});
    } else {
      tensor(out + ".weight", DType::kF32, {panels, k, 16});
    }
    graph_.ops.emplace_back(pocketformer::LinearSpec{in, out, out, activation, residual, n, k, 0});
  }

  bool int8_;
  pocketformer::Graph graph_{{}, "out", 40, 2, 24};
  pocketformer::Tensors tensors_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  std::vector<int32_t> ids_;
  int64_t offsets_[kSequences + 1] = {0, 24, 25, 40, 47, 70, 90};
};
