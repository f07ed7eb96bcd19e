#include "runtime/executor.h"

#include "runtime/worker.h"

namespace pocketformer {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kInterruptPeriod{50};

}  // namespace

void Worker::run() {
  for (size_t s = 0; s < program_.stages.size(); ++s) {
    const Stage& stage = program_.stages[s];
    const StagePlan& planned = plan_.stages[s];
    std::byte* const scratch = execution_.arena + plan_.scratch;
    stage_ = static_cast<int>(s);
    columns_ = planned.columns;
    height_ = planned.height;
    scratch_ = scratch + planned.stride * static_cast<size_t>(thread_);
    common_ = scratch + planned.common;
    columns_ ? run_columns(stage) : run_rows(stage, planned);
    if (stopped()) return;
  }
}

void Worker::run_rows(const Stage& stage, const StagePlan& planned) {
  const int rows = execution_.rows[stage.domain], span = planned.span;
  const int spans = static_cast<int>((static_cast<int64_t>(rows) + span - 1) / span);
  part_ = 0;
  parts_ = 1;
  for (int b; !stopped() && (b = progress_.next_block.fetch_add(1, std::memory_order_relaxed)) < spans;) {
    const int first = b * span, last = std::min(rows, first + span);
    for (end_ = first; end_ < last && !stopped();) {
      begin_ = scratch_begin_ = end_;
      end_ = std::min(last, begin_ + planned.block);
      if (stage.band) fill(*stage.band, first);
      for (const auto& s : stage.steps) step(*s);
      poll();  // a stage of a large batch takes seconds
    }
  }
  poll();
  end_stage();
}

// Ends the rows in hand with their line, and makes the lines of the map that their windows are the first to see of
// those from row `first` on.
void Worker::fill(const Band& band, int first) {
  const Windows& over = band.windows;
  const int begin = begin_, line = begin / over.to_width, y = line % over.to_height;
  const int end = std::min(end_, (line + 1) * over.to_width);
  if (begin == first || begin % over.to_width == 0) {
    const int top = y * over.stride - over.padding, seen = top - over.stride + over.height;
    const int least = begin == first || y == 0 ? 0 : std::clamp(seen, 0, over.from_height);
    const int bottom = std::min(top + over.height, over.from_height);
    for (int made = std::max(top, least); made < bottom; ++made) {
      const int row = over.row(line / over.to_height, made, 0);
      for (end_ = row; end_ < row + over.from_width;) {
        begin_ = scratch_begin_ = end_;
        end_ = std::min(row + over.from_width, begin_ + Band::kRows);
        for (const auto& s : band.steps) step(*s);
      }
    }
  }
  begin_ = scratch_begin_ = begin;
  end_ = end;
}

void Worker::run_columns(const Stage& stage) {
  const int rows = execution_.rows[stage.domain];
  const Span own_rows = share(rows, thread_, threads_);
  scratch_begin_ = 0;
  part_ = thread_;
  parts_ = threads_;
  for (const auto& s : stage.steps) {
    if (s->meets) meet();
    const bool by_rows = s->split == Split::kRows;
    begin_ = by_rows ? own_rows.begin : 0;
    end_ = by_rows ? own_rows.end : rows;
    if (begin_ < end_) step(*s);
    if (s->split == Split::kRepeat) publish(*s, own_rows);
  }
  poll();
  end_stage();
}

// What a thread has made for itself and later stages read: each row by its owner.
void Worker::publish(const Step& step, Span rows) {
  if (rows.empty()) return;
  for (const int index : step.writes) {
    const Buffer& b = program_.buffers[static_cast<size_t>(index)];
    if (!b.shared) continue;
    const size_t first = static_cast<size_t>(rows.begin) * b.row_bytes;
    std::memcpy(shared(b) + first, base(b) + first, static_cast<size_t>(rows.end - rows.begin) * b.row_bytes);
  }
}

void Worker::step(const Step& step) {
  if (execution_.times == nullptr) return step.run(*this);
  const Clock::time_point start = Clock::now();
  step.run(*this);
  const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
  execution_.times[thread_].nanoseconds[step.kind_index] += spent.count();
}

void Worker::meet() {
  barrier_.wait([&] { progress_.next_block.store(0, std::memory_order_relaxed); });
}

void Worker::end_stage() {
  barrier_.wait([&] {
    progress_.next_block.store(0, std::memory_order_relaxed);
    if (stopped()) return;
    for (const Settled& settled : program_.stages[static_cast<size_t>(stage_)].settled) settle(settled);
  });
}

void Worker::settle(const Settled& settled) {
  const Buffer& counts = buffer(settled.counts);
  int64_t* const offsets = table<int64_t>(plan_.offsets[settled.domain]);
  for (int s = 0; s < sequences(); ++s) {
    const auto* const row = reinterpret_cast<const float*>(shared(counts) + static_cast<size_t>(s) * counts.row_bytes);
    offsets[s + 1] = offsets[s] + static_cast<int64_t>(row[settled.counts.column]);
  }
  execution_.rows[settled.domain] = static_cast<int>(offsets[sequences()]);
}

void Worker::poll() {
  const Interrupt& interrupt = execution_.interrupt;
  if (thread_ != 0 || interrupt.requested == nullptr) return;
  const Clock::time_point now = Clock::now();
  if (now < progress_.next_poll) return;
  progress_.next_poll = now + kInterruptPeriod;
  if (interrupt.requested(interrupt.context)) progress_.stop.store(true, std::memory_order_relaxed);
}

bool execute(Execution& execution) {
  struct Run {
    Execution& execution;
    SharedProgress progress;
  } run{execution, {}};
  run.progress.next_poll = Clock::now() + kInterruptPeriod;
  const auto job = [](void* context, int thread, int threads, Barrier& barrier) {
    Run& run = *static_cast<Run*>(context);
    Worker(run.execution, run.progress, thread, threads, barrier).run();
  };
  ThreadPool::instance().run(execution.plan.threads, job, &run);
  return !run.progress.stop.load(std::memory_order_relaxed);
}

}  // namespace pocketformer
