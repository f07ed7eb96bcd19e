#include "runtime/random_features.h"

#include <algorithm>
#include <cstring>

#include "runtime/row_products.h"

namespace pocketformer {
namespace {

constexpr int kRows = LinearAttention::kRows;

size_t up(int n) { return static_cast<size_t>((n + kLanes - 1) / kLanes * kLanes); }

// Entries of each lane are added in order, then the lanes.
float squares(const float* x, int count) {
  float sums[kLanes] = {};
  for (int i = 0; i < count; ++i) sums[i % kLanes] += x[i] * x[i];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

class Head {
 public:
  Head(const KernelTable& kernels, const LinearAttention& a, float* memory)
      : kernels_(kernels),
        a_(a),
        m_(static_cast<size_t>(a.count)),
        ld_(m_ + kLanes),
        width_(up(a.value_dim + 1)),
        projection_(take(memory, m_ * static_cast<size_t>(a.head_dim))),
        queries_(take(memory, kRows * ld_)),
        keys_(take(memory, kRows * ld_)),
        panels_(take(memory, kRows * m_)),
        values_(take(memory, kRows * width_)),
        turned_(take(memory, kRows * width_)),
        sums_(take(memory, m_ * width_)),
        state_(take(memory, m_ * width_)),
        result_(take(memory, kRows * width_)),
        scores_(take(memory, static_cast<size_t>(kRows) * kRows)) {}

  void run() {
    pack_rows(a_.features, static_cast<size_t>(a_.head_dim), a_.count, a_.head_dim, projection_);
    for (size_t i = 0; i < m_ * static_cast<size_t>(a_.head_dim); ++i) projection_[i] *= a_.root;
    std::fill_n(state_, m_ * width_, 0.0f);
    float top = 0;
    for (int row = 0; row < a_.rows; row += kRows) {
      const int count = project(a_.k, a_.ldk, row, keys_);
      for (int i = 0; i < count; ++i) {
        const float most = largest(keys_ + i * ld_);
        top = row + i == 0 ? most : std::max(top, most);
      }
    }
    for (int row = 0; row < a_.rows; row += kRows) {
      const int count = project(a_.k, a_.ldk, row, keys_);
      for (int i = 0; i < count; ++i) raise(a_.k + static_cast<size_t>(row + i) * a_.ldk, keys_ + i * ld_, top);
      take_values(row, count);
      if (a_.causal) answer(row, count);
      // sums[c] = Σ v[c] φ(k): the transpose of what queries are multiplied by.
      pack_columns(keys_, ld_, count, a_.count, panels_);
      multiply(kernels_, {turned_, kRows, a_.value_dim + 1, count, panels_, a_.count, sums_, m_, row > 0});
      if (a_.causal || row + kRows >= a_.rows) pack_rows(sums_, m_, a_.value_dim + 1, a_.count, state_);
    }
    for (int row = 0; !a_.causal && row < a_.rows; row += kRows) answer(row, std::min(kRows, a_.rows - row));
  }

 private:
  static float* take(float*& memory, size_t floats) {
    float* const taken = memory;
    memory += (floats + kLanes - 1) / kLanes * kLanes;
    return taken;
  }

  // out[i] = ω · x[row + i] · √scale; returns how many rows there are.
  int project(const float* x, size_t ld, int row, float* out) {
    const int count = std::min(kRows, a_.rows - row);
    const float* const from = x + static_cast<size_t>(row) * ld;
    multiply(kernels_, {from, ld, count, a_.head_dim, projection_, a_.count, out, ld_});
    return count;
  }

  float largest(const float* feature) const {
    float most[kLanes];
    std::memcpy(most, feature, sizeof(most));
    for (size_t i = kLanes; i < m_; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) most[lane] = std::max(most[lane], feature[i + lane]);
    }
    return *std::max_element(most, most + kLanes);
  }

  // exp(feature − shift) + eps, by a softmax in which the shift itself, which none exceeds, has its place too.
  void raise(const float* x, float* feature, float top) {
    feature[m_] = squares(x, a_.head_dim) * a_.scale * 0.5f + top;
    kernels_.softmax({feature, ld_, feature, ld_, 1, a_.count + 1});
    const float sum = 1.0f / feature[m_];
    for (size_t i = 0; i < m_; ++i) feature[i] = feature[i] * sum + a_.eps;
  }

  // Values beside a column of ones, whose sums are the denominators, and the transpose of both.
  void take_values(int row, int count) {
    const float* const from = a_.v + static_cast<size_t>(row) * a_.ldv;
    std::fill_n(turned_, kRows * width_, 0.0f);
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < a_.value_dim; ++c) turned_[c * kRows + i] = from[static_cast<size_t>(i) * a_.ldv + c];
      turned_[a_.value_dim * kRows + i] = 1;
    }
    if (a_.causal) pack_rows(turned_, kRows, a_.value_dim + 1, count, values_);
  }

  void answer(int row, int count) {
    project(a_.q, a_.ldq, row, queries_);
    for (int i = 0; i < count; ++i) {
      float* const feature = queries_ + i * ld_;
      raise(a_.q + static_cast<size_t>(row + i) * a_.ldq, feature, largest(feature));
    }
    multiply(kernels_, {queries_, ld_, count, a_.count, state_, a_.value_dim + 1, result_, width_});
    if (a_.causal) {
      pack_rows(keys_, ld_, count, a_.count, panels_);
      multiply(kernels_, {queries_, ld_, count, a_.count, panels_, count, scores_, kRows});
      for (int i = 0; i < count; ++i) std::fill(scores_ + i * kRows + i + 1, scores_ + (i + 1) * kRows, 0.0f);
      multiply(kernels_, {scores_, kRows, count, count, values_, a_.value_dim + 1, result_, width_, true});
    }
    for (int i = 0; i < count; ++i) {
      const float* const sums = result_ + i * width_;
      float* const out = a_.out + static_cast<size_t>(row + i) * a_.ldo;
      for (int c = 0; c < a_.value_dim; ++c) out[c] = sums[c] / sums[a_.value_dim];
    }
  }

  const KernelTable& kernels_;
  const LinearAttention& a_;
  const size_t m_, ld_, width_;  // features, a row of them and a number more, values and one
  float *projection_, *queries_, *keys_, *panels_, *values_, *turned_, *sums_, *state_, *result_, *scores_;
};

}  // namespace

size_t linear_attention_memory(int head_dim, int value_dim, int count) {
  const size_t m = static_cast<size_t>(count), width = up(value_dim + 1);
  return m * (static_cast<size_t>(head_dim) + 3 * kRows + 2 * width) + kRows * (3 * width + kRows + 2 * kLanes);
}

void linear_attention(const KernelTable& kernels, const LinearAttention& a, float* memory) {
  Head(kernels, a, memory).run();
}

}  // namespace pocketformer
