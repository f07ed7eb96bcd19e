// Keys and values into a state, from which attention reads them.
#pragma once

#include "runtime/lowering.h"
#include "runtime/operators/key_values.h"
#include "runtime/worker.h"

namespace pocketformer {

class StoreStep final : public Step {
 public:
  StoreStep(int state, Operand k, Operand v) : Step("store", Split::kRows), state_(state), k_(k), v_(v) {}

  void run(const Worker& w) const override {
    const State& s = w.program().states[static_cast<size_t>(state_)];
    w.for_each_piece(s.domain, [&](int sequence, int row, int count) {
      const int position = w.position(s.domain, sequence, row);
      const StoredState stored = w.stored(state_, sequence);
      const size_t slot = stored.first_slot + static_cast<size_t>(position - stored.base);
      // Unused slots must be finite, and there is whatever an earlier run or a longer conversation left.
      const bool last = position + count == w.keys(s.domain, sequence);
      const size_t unused = last ? slot + static_cast<size_t>(count) : SIZE_MAX;
      const size_t end = round_up(slot + static_cast<size_t>(count), kLanes);
      const StoreArgs common{.k = w.at(k_, row),
                             .ldk = w.ld(k_),
                             .v = w.at(v_, row),
                             .ldv = w.ld(v_),
                             .rows = count,
                             .kv_heads = s.heads,
                             .head_dim = s.head_dim,
                             .head_stride = s.head_stride,
                             .slot = slot};
      if (s.int8) {
        const KeyValuesI8 kv = key_values_i8(s, stored);
        w.kernels().store_i8({.common = common, .rotate = s.rotate, .kv = kv});
        clear(s, kv.k_scale, kv.capacity, unused, end, 1);
        clear(s, kv.v_scale, kv.capacity, unused, end, 1);
      } else {
        const KeyValuesF32 kv = key_values_f32(s, stored);
        w.kernels().store_f32({.common = common, .kv = kv});
        const size_t stride = static_cast<size_t>(s.head_stride);
        if (s.half) {
          clear(s, kv.half_k, kv.capacity, unused, end, stride);
          clear(s, kv.half_v, kv.capacity, unused, end, stride);
        } else {
          clear(s, kv.k, kv.capacity, unused, end, stride);
          clear(s, kv.v, kv.capacity, unused, end, stride);
        }
      }
    });
  }

  Work work() const override { return {.elements = static_cast<double>(k_.width) + v_.width}; }

 private:
  template <typename T>
  static void clear(const State& s, T* x, size_t capacity, size_t begin, size_t end, size_t stride) {
    if (begin >= end) return;
    for (size_t head = 0; head < static_cast<size_t>(s.heads); ++head) {
      std::memset(x + (head * capacity + begin) * stride, 0, (end - begin) * stride * sizeof(T));
    }
  }

  int state_;
  Operand k_, v_;
};

struct Store {
  std::string k, v, state;

  static constexpr const char* kName = "store";
  static constexpr const char* kDoc =
      "`state = k, v`; keys are rotated as the state says, and both are rounded to its dtype";
  static constexpr auto fields() {
    return std::tuple{name("k", &Store::k, "rows of the state's heads side by side"), name("v", &Store::v, "likewise"),
                      name("state", &Store::state, "stored once")};
  }

  void lower(Lowering& l) const {
    const int index = l.state("state", state);
    const State& s = l.program().states[static_cast<size_t>(index)];
    const Value keys = take(l, "k", k, s), values = take(l, "v", v, s);
    l.enter(s.domain);
    l.store(index);
    l.emit<StoreStep>(index, l.read(keys.rows), l.read(values.rows));
  }

 private:
  static const Value& take(Lowering& l, const char* field, const std::string& name, const State& s) {
    const Value& value = l.floats(field, name);
    const int64_t width = static_cast<int64_t>(s.heads) * s.head_dim;
    l.check(value.domain == s.domain && value.rows.width == width, field, "names '", name, "', which is ",
            l.domain_of(value).name, " × ", value.rows.width, "; the state takes ",
            l.program().domains[static_cast<size_t>(s.domain)].name, " × ", width);
    return value;
  }
};

}  // namespace pocketformer
