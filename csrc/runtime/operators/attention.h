// Attention of queries over a state's keys and values.
#pragma once

#include <algorithm>

#include "runtime/lowering.h"
#include "runtime/operators/key_values.h"
#include "runtime/worker.h"

namespace pocketformer {

class AttentionStep final : public Step {
 public:
  struct Shape {
    int heads;
    float scale;
    KeyRange range;
    const float* bias;
    size_t ld_bias;
    int bias_center;
  };

  AttentionStep(int state, const State& s, Operand q, Operand q_scale, Operand out, const Shape& shape, int keys)
      : Step("attention", Split::kHeads),
        state_(state),
        q_(q),
        q_scale_(q_scale),
        out_(out),
        shape_(shape),
        keys_(keys) {
    work_.int8 = s.int8;
    work_.scores = shape.heads;
    work_.score_multiply_adds = 2.0 * s.head_dim;
    work_.left = shape.range.left;
    work_.right = shape.range.right;
  }

  void run(const Worker& w) const override {
    const State& s = w.program().states[static_cast<size_t>(state_)];
    const int32_t* const first_keys = keys_ == kNone ? nullptr : w.indices(keys_);
    // Heads first; with more threads than heads, each head's queries are split too.
    const int head_parts = std::min(w.parts(), shape_.heads), query_parts = w.parts() / head_parts;
    const Span heads = share(shape_.heads, w.part() % head_parts, head_parts);
    const int query_part = w.part() / head_parts;
    if (query_part >= query_parts) return;
    w.for_each_piece(s.domain, [&](int sequence, int row, int count) {
      const Span queries = share(count, query_part, query_parts);
      if (queries.empty()) return;
      const int first = row + queries.begin;
      const StoredState stored = w.stored(state_, sequence);
      const int keys = w.keys(s.domain, sequence) - stored.base;
      const AttentionArgs common{.queries = queries.end - queries.begin,
                                 .first_position = w.position(s.domain, sequence, first) - stored.base,
                                 .keys = seen_keys(first_keys == nullptr ? 0 : first_keys[sequence], keys),
                                 .segment_slot = stored.first_slot,
                                 .heads = shape_.heads,
                                 .kv_heads = s.heads,
                                 .head_dim = s.head_dim,
                                 .head_stride = s.head_stride,
                                 .head_begin = heads.begin,
                                 .head_end = heads.end,
                                 .scale = shape_.scale,
                                 .range = shape_.range,
                                 .bias = shape_.bias,
                                 .ld_bias = shape_.ld_bias,
                                 .bias_center = shape_.bias_center,
                                 .out = w.at(out_, first),
                                 .ldo = w.ld(out_)};
      if (s.int8) {
        w.kernels().attention_i8({w.at<int8_t>(q_, first), w.at(q_scale_, first), key_values_i8(s, stored), common});
      } else {
        w.kernels().attention_f32({w.at(q_, first), w.ld(q_), key_values_f32(s, stored), common});
      }
      const size_t padding = common.ldo - static_cast<size_t>(out_.width);
      if (padding == 0 || heads.end != shape_.heads) return;
      for (int i = 0; i < common.queries; ++i) {
        std::memset(common.out + static_cast<size_t>(i + 1) * common.ldo - padding, 0, padding * sizeof(float));
      }
    });
  }

  Work work() const override { return work_; }

 private:
  // Of a sequence whose first `count` keys alone are seen: no fewer than its last query needs to see one.
  int seen_keys(int count, int length) const {
    return count == 0 ? length : std::min(std::max(count, length - shape_.range.left), length);
  }

  int state_;
  Operand q_, q_scale_, out_;
  Shape shape_;
  int keys_;  // an input of indices, or kNone
  Work work_;
};

struct Attention {
  std::string q, state, out, bias, keys;
  double scale = 0;
  bool causal = false;
  int64_t left = -1, right = -1;

  static constexpr const char* kName = "attention";
  static constexpr const char* kDoc =
      "`out = softmax(q · kᵀ · scale + bias) · v` over the keys of the query's sequence that it sees";
  static constexpr auto fields() {
    return std::tuple{
        name("q", &Attention::q, "queries: from `quantize_heads` for an int8 state, rows of heads for fp32"),
        name("state", &Attention::state, "keys and values, each head for as many query heads in a row"),
        name("out", &Attention::out, "rows of heads side by side"),
        number_above("scale", &Attention::scale, 0, "of q · k, before rotation"),
        flag("causal", &Attention::causal, "no later key is seen"),
        optional_integer("left", &Attention::left, -1, kMaxRows, "keys seen before the query's own; −1: all"),
        optional_integer("right", &Attention::right, -1, kMaxRows, "keys seen after it; −1: all"),
        optional_name("bias", &Attention::bias,
                      "tensor f32 [heads, 2 · max_rows − 1 up to 16s], entry (query − key) + max_rows − 1"),
        optional_name(
            "keys", &Attention::keys,
            "an input of indices, one a sequence: its queries see no keys but the first so many, of which there are at "
            "least as many as leave one within `left` of the last query; 0: all")};
  }

  void lower(Lowering& l) const {
    const int index = l.state("state", state);
    const State& s = l.program().states[static_cast<size_t>(index)];
    const Value from = s.int8 ? l.value("q", q) : l.floats("q", q);
    l.check(from.heads() == s.int8 && (!s.int8 || (from.head_dim == s.head_dim && from.rotate == s.rotate)), "q",
            "names '", q, "', which is not from a `quantize_heads` of head_dim ", s.head_dim, " and rotate ", s.rotate);
    l.check(from.domain == s.domain, "q", "names '", q, "', of another domain than the state");
    const int heads = s.int8 ? from.scale.width : from.rows.width / s.head_dim;
    l.check(heads % s.heads == 0 && (s.int8 || heads * s.head_dim == from.rows.width), "q", "names '", q, "' of ",
            heads, " heads; they must be a multiple of the state's ", s.heads);
    AttentionStep::Shape shape{};
    shape.heads = heads;
    // Queries and keys that are both rotated have a product as many times as large.
    shape.scale = static_cast<float>(scale) / static_cast<float>(std::max(s.rotate, 1));
    shape.range = {left < 0 ? kUnlimited : static_cast<int>(left), causal      ? 0
                                                                   : right < 0 ? kUnlimited
                                                                               : static_cast<int>(right)};
    if (!bias.empty()) {
      const int64_t reach = l.domain_of(from).max_rows, length = padded(2 * reach - 1);
      shape.bias = l.tensors().take_floats(l.place(), bias, {heads, length});
      shape.ld_bias = static_cast<size_t>(length);
      shape.bias_center = static_cast<int>(reach) - 1;
    }
    const int limit = keys.empty() ? kNone : l.sequence_input("keys", keys, from);
    l.check(limit == kNone || !s.kept, "keys", "is '", keys, "'; a kept state has keys of earlier runs");
    l.begin_stage(s.domain);
    l.attend(index, shape.range);
    const Operand to = l.write(out, s.domain, static_cast<int64_t>(heads) * s.head_dim);
    l.emit<AttentionStep>(index, s, l.read(from.rows), l.read(from.scale), to, shape, limit);
  }
};

}  // namespace pocketformer
