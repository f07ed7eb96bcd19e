#include "runtime/executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/aligned_buffer.h"

namespace pocketformer {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kInterruptPeriod{50};

struct Shared {
  const Execution& execution;
  alignas(64) std::atomic<int> next_block{0};
  std::atomic<bool> stop{false};
  Clock::time_point next_poll = Clock::now() + kInterruptPeriod;
};

// Part `part` of `parts` of [0, count), in whole units of `unit`.
struct Span {
  int begin, end;
};
Span split(int count, int part, int parts, int unit = 1) {
  const int64_t units = (count + unit - 1) / unit;
  return {std::min<int>(count, static_cast<int>(units * part / parts) * unit),
          std::min<int>(count, static_cast<int>(units * (part + 1) / parts) * unit)};
}

class Worker {
 public:
  Worker(Shared& shared, int thread, int threads, Barrier& barrier)
      : shared_(shared),
        execution_(shared.execution),
        program_(execution_.program),
        plan_(execution_.plan),
        kernels_(*program_.kernels),
        thread_(thread),
        threads_(threads),
        barrier_(barrier),
        scratch_(execution_.arena + plan_.scratch +
                 (plan_.columns ? 0 : plan_.scratch_stride * static_cast<size_t>(thread))),
        offsets_(table<int64_t>(plan_.offsets)),
        slots_(table<int64_t>(plan_.slots)) {}

  void run() {
    for (const Stage& stage : program_.stages) {
      plan_.columns ? run_columns(stage) : run_rows(stage);
      if (stopped()) return;
    }
  }

 private:
  void run_rows(const Stage& stage) {
    const int rows = execution_.rows[static_cast<int>(stage.domain)],
              block = plan_.block[static_cast<int>(stage.domain)];
    const int blocks = static_cast<int>((static_cast<int64_t>(rows) + block - 1) / block);
    for (int b; !stopped() && (b = shared_.next_block.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      begin_ = scratch_begin_ = b * block;
      end_ = std::min(rows, begin_ + block);
      for (const Step& step : stage.steps) visit(step);
      poll();  // a stage of a large batch takes seconds
    }
    poll();
    meet();
  }

  // Products split their panels and attention its heads; everything else its rows.
  void run_columns(const Stage& stage) {
    const int rows = execution_.rows[static_cast<int>(stage.domain)];
    const Span mine = split(rows, thread_, threads_);
    scratch_begin_ = 0;
    part_ = thread_;
    parts_ = threads_;
    for (const Step& step : stage.steps) {
      const bool whole = std::holds_alternative<LinearI8Step>(step) || std::holds_alternative<LinearF32Step>(step) ||
                         std::holds_alternative<AttendStep>(step);
      begin_ = whole ? 0 : mine.begin;
      end_ = whole ? rows : mine.end;
      if (begin_ < end_) visit(step);
      if (&step == &stage.steps.back()) poll();
      meet();
    }
  }

  void meet() {
    barrier_.wait([&] { shared_.next_block.store(0, std::memory_order_relaxed); });
  }

  bool stopped() const { return shared_.stop.load(std::memory_order_relaxed); }

  void poll() {
    const Interrupt& interrupt = execution_.interrupt;
    if (thread_ != 0 || interrupt.requested == nullptr) return;
    const Clock::time_point now = Clock::now();
    if (now < shared_.next_poll) return;
    shared_.next_poll = now + kInterruptPeriod;
    if (interrupt.requested(interrupt.context)) shared_.stop.store(true, std::memory_order_relaxed);
  }

  void visit(const Step& step) {
    const auto call = [&] { std::visit([&](const auto& s) { run(s); }, step); };
    if (execution_.times == nullptr) return call();
    const Clock::time_point start = Clock::now();
    call();
    const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
    execution_.times[thread_].nanoseconds[step.index()] += spent.count();
  }

  // --- memory --------------------------------------------------------------------------------------------------------

  template <typename T>
  T* table(size_t offset) const {
    return reinterpret_cast<T*>(execution_.arena + offset);
  }

  const Buffer& buffer(int index) const { return program_.buffers[static_cast<size_t>(index)]; }

  std::byte* base(const Buffer& b) const {
    const int d = static_cast<int>(b.domain);
    return b.shared ? execution_.arena + plan_.shared[d] + b.offset * plan_.height[d]
                    : scratch_ + b.offset * plan_.scratch_rows;
  }

  // Row `row` of its domain.
  template <typename T = float>
  T* at(int index, int row) const {
    const Buffer& b = buffer(index);
    const int first = b.shared ? 0 : scratch_begin_;
    return reinterpret_cast<T*>(base(b) + static_cast<size_t>(row - first) * b.row_bytes);
  }

  size_t ld(int index) const { return static_cast<size_t>(buffer(index).ld); }
  int width(int index) const { return buffer(index).width; }
  int rows() const { return end_ - begin_; }

  // The parts of [begin_, end_) that lie in one sequence each: piece(sequence, first token, tokens).
  template <typename Piece>
  void for_each_piece(Piece piece) const {
    const int sequences = execution_.rows[static_cast<int>(Domain::kSequences)];
    const int64_t* after = std::upper_bound(offsets_, offsets_ + sequences + 1, static_cast<int64_t>(begin_));
    int sequence = static_cast<int>(after - offsets_) - 1;
    for (int row = begin_; row < end_; ++sequence) {
      const int stop = static_cast<int>(std::min<int64_t>(end_, offsets_[sequence + 1]));
      piece(sequence, row, stop - row);
      row = stop;
    }
  }

  int length(int sequence) const { return static_cast<int>(offsets_[sequence + 1] - offsets_[sequence]); }
  int position(int sequence, int row) const { return row - static_cast<int>(offsets_[sequence]); }

  // int8: [tokens][heads][head_stride] bytes, then [tokens][heads] scales.
  int8_t* queries_i8(const AttentionShape& s, int row) const {
    return table<int8_t>(plan_.query[s.query_buffer]) +
           static_cast<size_t>(row) * static_cast<size_t>(s.heads * s.head_stride);
  }
  float* query_scales(const AttentionShape& s, int row) const {
    const size_t tokens = plan_.height[static_cast<int>(Domain::kTokens)];
    return reinterpret_cast<float*>(queries_i8(s, 0) + tokens * static_cast<size_t>(s.heads * s.head_stride)) +
           static_cast<size_t>(row) * static_cast<size_t>(s.heads);
  }
  float* queries_f32(const AttentionShape& s, int row) const {
    return table<float>(plan_.query[s.query_buffer]) +
           static_cast<size_t>(row) * static_cast<size_t>(s.heads * s.head_stride);
  }

  KeyValuesI8 cache_i8(const AttentionShape& s) const {
    std::byte* start = execution_.arena + plan_.cache[s.cache_buffer];
    const size_t scales = static_cast<size_t>(s.kv_heads) * execution_.slots,
                 elements = scales * static_cast<size_t>(s.head_stride);
    KeyValuesI8 kv;
    kv.k = reinterpret_cast<uint8_t*>(start);
    kv.v = reinterpret_cast<int8_t*>(start + elements);
    kv.k_scale = reinterpret_cast<float*>(start + 2 * elements);
    kv.v_scale = kv.k_scale + scales;
    kv.capacity = execution_.slots;
    return kv;
  }
  KeyValuesF32 cache_f32(const AttentionShape& s) const {
    float* start = table<float>(plan_.cache[s.cache_buffer]);
    return {start, start + static_cast<size_t>(s.kv_heads) * execution_.slots * static_cast<size_t>(s.head_stride),
            execution_.slots};
  }

  // --- steps ---------------------------------------------------------------------------------------------------------

  void run(const EmbedStep& step) {
    int32_t* const index = at<int32_t>(step.index, begin_);
    bool accumulate = false;
    for (const Lookup& lookup : step.lookups) {
      fill_index(lookup, index);
      kernels_.embed({lookup.table, lookup.scale, lookup.panels, index, rows(), width(step.out), lookup.rotate,
                      accumulate, at(step.out, begin_), ld(step.out)});
      accumulate = true;
    }
  }

  void fill_index(const Lookup& lookup, int32_t* index) const {
    if (lookup.index == Index::kPositions) {
      for_each_piece([&](int sequence, int row, int count) {
        const int first = position(sequence, row) + lookup.offset;
        for (int i = 0; i < count; ++i) index[row - begin_ + i] = first + i;
      });
    } else if (lookup.index == Index::kTypes && !execution_.has_types) {
      std::fill_n(index, rows(), 0);
    } else {
      std::copy_n(table<int32_t>(lookup.index == Index::kIds ? plan_.ids : plan_.types) + begin_, rows(), index);
    }
  }

  void run(const NormStep& step) {
    kernels_.norm({at(step.in, begin_), ld(step.in), step.weight, step.bias, at(step.out, begin_), ld(step.out), rows(),
                   width(step.in), step.eps, step.kind});
  }

  void run(const QuantizeStep& step) {
    kernels_.quantize_rows({at(step.in, begin_), ld(step.in), at<uint8_t>(step.q, begin_), ld(step.q),
                            at(step.scale, begin_), rows(), width(step.in), step.rotate});
  }

  template <typename Linear>
  Epilogue epilogue(const Linear& step) const {
    const bool adds = step.residual != kNone;
    return {.bias = step.bias,
            .residual = adds ? at(step.residual, begin_) : nullptr,
            .ld_residual = adds ? ld(step.residual) : 0,
            .activation = step.activation,
            .precise = std::is_same_v<Linear, LinearF32Step>};
  }

  template <typename Linear>
  void multiply(const Linear& step, const void* x, size_t ldx, const float* x_scale, const WeightView& weight) {
    const Span mine = split(step.panels, part_, parts_);
    if (mine.begin == mine.end) return;
    kernels_.gemm[static_cast<int>(weight.format)]({.x = x,
                                                    .ldx = ldx,
                                                    .x_scale = x_scale,
                                                    .weight = weight,
                                                    .out = at(step.out, begin_),
                                                    .ldo = ld(step.out),
                                                    .m = rows(),
                                                    .panel_begin = mine.begin,
                                                    .panel_end = mine.end,
                                                    .epilogue = epilogue(step)});
  }

  void run(const LinearI8Step& step) {
    multiply(step, at<uint8_t>(step.q, begin_), ld(step.q), at(step.q_scale, begin_),
             {.format = Format::kI8,
              .panels = step.weight,
              .scale = step.scale,
              .colsum = step.colsum,
              .n = width(step.out),
              .k = step.k});
  }

  void run(const LinearF32Step& step) {
    multiply(step, at(step.in, begin_), ld(step.in), nullptr,
             {.format = Format::kF32, .panels = step.weight, .n = width(step.out), .k = step.k});
  }

  void run(const StoreStep& step) {
    const AttentionShape& s = step.shape;
    for_each_piece([&](int sequence, int row, int count) {
      const size_t slot = static_cast<size_t>(slots_[sequence]) + static_cast<size_t>(position(sequence, row));
      const size_t unused =
          position(sequence, row) + count == length(sequence) ? slot + static_cast<size_t>(count) : SIZE_MAX;
      const size_t slots_end = static_cast<size_t>(slots_[sequence + 1]);
      const float *q = at(step.in, row), *k = q + s.heads * s.head_dim, *v = k + s.kv_heads * s.head_dim;
      const size_t ldx = ld(step.in);
      if (s.int8) {
        const KeyValuesI8 kv = cache_i8(s);
        kernels_.quantize_heads(
            {q, ldx, count, s.heads, s.head_dim, s.head_stride, 0, queries_i8(s, row), query_scales(s, row)});
        kernels_.store_i8({k, ldx, v, ldx, count, s.kv_heads, s.head_dim, s.head_stride, 0, slot, kv});
        for (int h = 0; h < s.kv_heads; ++h) {
          clear(kv.k_scale + static_cast<size_t>(h) * kv.capacity, unused, slots_end, 1);
          clear(kv.v_scale + static_cast<size_t>(h) * kv.capacity, unused, slots_end, 1);
        }
      } else {
        const KeyValuesF32 kv = cache_f32(s);
        kernels_.store_f32({k, ldx, v, ldx, count, s.kv_heads, s.head_dim, s.head_stride, slot, kv});
        for (int i = 0; i < count; ++i)
          std::memcpy(queries_f32(s, row + i), q + static_cast<size_t>(i) * ldx,
                      static_cast<size_t>(s.heads * s.head_dim) * sizeof(float));
        const size_t stride = static_cast<size_t>(s.head_stride);
        for (int h = 0; h < s.kv_heads; ++h) {
          clear(kv.k + static_cast<size_t>(h) * kv.capacity * stride, unused, slots_end, stride);
          clear(kv.v + static_cast<size_t>(h) * kv.capacity * stride, unused, slots_end, stride);
        }
      }
    });
  }

  // Unused slots must be finite, and the arena holds whatever an earlier run with other lengths left there.
  static void clear(float* x, size_t begin, size_t end, size_t stride) {
    if (begin < end) std::memset(x + begin * stride, 0, (end - begin) * stride * sizeof(float));
  }

  void run(const AttendStep& step) {
    const AttentionShape& s = step.shape;
    // Heads first; with more threads than heads, each head's queries are split too.
    const int head_parts = std::min(parts_, s.heads), query_parts = parts_ / head_parts;
    const Span heads = split(s.heads, part_ % head_parts, head_parts);
    const int query_part = part_ / head_parts;
    if (query_part >= query_parts) return;
    for_each_piece([&](int sequence, int row, int count) {
      const Span queries = split(count, query_part, query_parts);
      if (queries.begin == queries.end) return;
      const int first = row + queries.begin;
      AttentionArgs common{};
      common.queries = queries.end - queries.begin;
      common.first_position = position(sequence, first);
      common.keys = length(sequence);
      common.segment_slot = static_cast<size_t>(slots_[sequence]);
      common.heads = s.heads;
      common.kv_heads = s.kv_heads;
      common.head_dim = s.head_dim;
      common.head_stride = s.head_stride;
      common.head_begin = heads.begin;
      common.head_end = heads.end;
      common.scale = step.scale;
      common.range = step.range;
      common.bias = step.bias;
      common.ld_bias = step.ld_bias;
      common.bias_center = step.bias_center;
      common.out = at(step.out, first);
      common.ldo = ld(step.out);
      if (s.int8) {
        kernels_.attention_i8({queries_i8(s, first), query_scales(s, first), cache_i8(s), common});
      } else {
        kernels_.attention_f32(
            {queries_f32(s, first), static_cast<size_t>(s.heads * s.head_stride), cache_f32(s), common});
      }
      const size_t padding = common.ldo - static_cast<size_t>(width(step.out));
      if (padding == 0 || heads.end != s.heads) return;
      for (int i = 0; i < common.queries; ++i) {
        std::memset(common.out + static_cast<size_t>(i + 1) * common.ldo - padding, 0, padding * sizeof(float));
      }
    });
  }

  void run(const PoolStep& step) {
    for (int sequence = begin_; sequence < end_; ++sequence) {
      kernels_.pool({at(step.in, static_cast<int>(offsets_[sequence])), ld(step.in), length(sequence), width(step.in),
                     step.kind, at(step.out, sequence)});
    }
  }

  void run(const SelectStep& step) {
    const int64_t* const selected = table<int64_t>(plan_.selected);
    for (int row = begin_; row < end_; ++row) {
      std::memcpy(at(step.out, row), at(step.in, static_cast<int>(selected[row])), buffer(step.out).row_bytes);
    }
  }

  void run(const NormalizeStep& step) {
    kernels_.l2_normalize(
        {at(step.in, begin_), ld(step.in), at(step.out, begin_), ld(step.out), rows(), width(step.in)});
  }

  void run(const OutputStep& step) {
    const size_t columns = static_cast<size_t>(width(step.in));
    for (int row = begin_; row < end_; ++row) {
      std::memcpy(execution_.out + static_cast<size_t>(row) * columns, at(step.in, row), columns * sizeof(float));
    }
  }

  Shared& shared_;
  const Execution& execution_;
  const Program& program_;
  const Plan& plan_;
  const KernelTable& kernels_;
  const int thread_, threads_;
  Barrier& barrier_;
  std::byte* const scratch_;
  const int64_t* const offsets_;
  const int64_t* const slots_;
  int begin_ = 0, end_ = 0;   // rows of the stage's domain at hand
  int scratch_begin_ = 0;     // the row that scratch buffers begin with
  int part_ = 0, parts_ = 1;  // share of the panels or heads
};

}  // namespace

bool execute(const Execution& execution) {
  Shared shared{execution};
  const auto job = [](void* context, int thread, int threads, Barrier& barrier) {
    Worker(*static_cast<Shared*>(context), thread, threads, barrier).run();
  };
  ThreadPool::instance().run(execution.plan.threads, job, &shared);
  return !shared.stop.load(std::memory_order_relaxed);
}

}  // namespace pocketformer
