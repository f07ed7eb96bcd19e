// Attention by random features: runtime/random_features.h, for every sequence and head.
#pragma once

#include <cmath>

#include "runtime/lowering.h"
#include "runtime/random_features.h"
#include "runtime/worker.h"

namespace pocketformer {

class LinearAttentionStep final : public Step {
 public:
  LinearAttentionStep(int domain, Operand q, Operand k, Operand v, Operand out, Operand memory, int heads,
                      const LinearAttention& shape)
      : Step("linear_attention", Split::kHeads),
        domain_(domain),
        q_(q),
        k_(k),
        v_(v),
        out_(out),
        memory_(memory),
        heads_(heads),
        shape_(shape) {}

  void run(const Worker& w) const override {
    const Span heads = w.mine(heads_);
    const size_t padding = w.ld(out_) - static_cast<size_t>(out_.width);
    for (int sequence = w.begin(); sequence < w.end() && !heads.empty(); ++sequence) {
      const int row = static_cast<int>(w.offsets(domain_)[sequence]);
      LinearAttention a = shape_;
      a.rows = w.length(domain_, sequence);
      for (int head = heads.begin; head < heads.end; ++head) {
        a.q = w.at(q_, row) + head * a.head_dim, a.ldq = w.ld(q_);
        a.k = w.at(k_, row) + head * a.head_dim, a.ldk = w.ld(k_);
        a.v = w.at(v_, row) + head * a.value_dim, a.ldv = w.ld(v_);
        a.out = w.at(out_, row) + head * a.value_dim, a.ldo = w.ld(out_);
        linear_attention(w.kernels(), a, w.working(memory_));
      }
      if (heads.end != heads_) continue;
      for (int i = 0; i < a.rows; ++i) std::memset(w.at(out_, row + i) + out_.width, 0, padding * sizeof(float));
    }
  }

  Work work() const override {
    const double products = 3.0 * shape_.head_dim + 2.0 * (shape_.value_dim + 1);
    const double within = shape_.causal ? LinearAttention::kRows * (shape_.count + shape_.value_dim + 1.0) : 0.0;
    return {.multiply_adds = heads_ * (shape_.count * products + within),
            .elements = 2.0 * heads_ * shape_.count,
            .rows = domain_};
  }

 private:
  int domain_;
  Operand q_, k_, v_, out_, memory_;
  int heads_;
  LinearAttention shape_;
};

struct LinearAttentionOp {
  std::string q, k, v, out, sequences, features;
  int64_t heads = 0, count = 0;
  double scale = 0, eps = 0;
  bool causal = false;

  static constexpr const char* kName = "linear_attention";
  static constexpr const char* kDoc =
      "`out[i] = φ(q[i]) · Σ_j φ(k[j]) v[j] / (φ(q[i]) · Σ_j φ(k[j]))` over the rows j of i's sequence, in float32, "
      "with "
      "the random features of FAVOR+: `φ(x) = exp(ω · x · √scale − ‖x‖² · scale / 2 − c) + eps`, where c is the "
      "largest "
      "ω · x · √scale of a query, or of all keys of the sequence";
  static constexpr auto fields() {
    using Op = LinearAttentionOp;
    return std::tuple{
        name("q", &Op::q, "rows of heads side by side"),
        name("k", &Op::k, "likewise, as wide"),
        name("v", &Op::v, "rows of as many heads, of any width"),
        name("out", &Op::out, "rows like those of `v`"),
        name("sequences", &Op::sequences, "a domain: `one` of that of `q`; threads share its rows and heads"),
        name("features", &Op::features, "tensor f32 [count, columns of a head of `q`]: ω, of every head"),
        integer("heads", &Op::heads, 1, kMaxWidth, "parts of a row"),
        integer("count", &Op::count, 16, 1 << 14, "features, a multiple of 16"),
        number_above("scale", &Op::scale, 0, "of q · k"),
        number_above("eps", &Op::eps, 0, "added to every feature"),
        flag("causal", &Op::causal, "no later key is seen")};
  }

  void lower(Lowering& l) const {
    const Value queries = l.floats("q", q), keys = l.floats("k", k), values = l.floats("v", v);
    const int one = l.made_domain("sequences", sequences, queries, DomainKind::kOne);
    l.check(keys.domain == queries.domain && keys.rows.width == queries.rows.width, "k", "names '", k,
            "', which is not of the domain and the width of '", q, "'");
    l.check(values.domain == queries.domain, "v", "names '", v, "', which is not of the domain of '", q, "'");
    l.check(queries.rows.width % heads == 0 && values.rows.width % heads == 0, "heads", "is ", heads,
            ", which does not divide the ", queries.rows.width, " columns of '", q, "' and the ", values.rows.width,
            " of '", v, "'");
    l.check(count % kLanes == 0, "count", "is ", count, "; it must be a multiple of ", kLanes);
    const int parts = static_cast<int>(heads);
    LinearAttention shape{};
    shape.head_dim = queries.rows.width / parts, shape.value_dim = values.rows.width / parts;
    shape.features = l.tensors().take_floats(l.place(), features, {count, shape.head_dim});
    shape.count = static_cast<int>(count);
    shape.scale = static_cast<float>(scale), shape.root = static_cast<float>(std::sqrt(scale));
    shape.eps = static_cast<float>(eps);
    shape.causal = causal;
    const size_t floats = linear_attention_memory(shape.head_dim, shape.value_dim, shape.count);
    l.begin_stage(one);
    const Operand from_q = l.gather(queries.rows), from_k = l.gather(keys.rows), from_v = l.gather(values.rows);
    const Operand memory = l.working(one, floats * sizeof(float));
    const Operand to = l.write_apart(out, queries.domain, values.rows.width);
    l.emit<LinearAttentionStep>(queries.domain, from_q, from_k, from_v, to, memory, parts, shape);
  }
};

}  // namespace pocketformer
