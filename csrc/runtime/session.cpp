#include "runtime/session.h"

#include <algorithm>
#include <climits>

#include "core/errors.h"

namespace pocketformer {
namespace {

void check_length(const Program& program, size_t sequence, int64_t length) {
  require(length >= 1, "sequence ", sequence, " has ", length,
          " tokens; every sequence needs at least 1, drop empty ones");
  require(length <= program.max_length, "sequence ", sequence, " has ", length, " tokens; the model takes at most ",
          program.max_length, ", truncate it");
}

void check_total(size_t tokens, size_t sequences, size_t rows) {
  const size_t most = std::max({tokens, sequences, rows});
  require(most <= INT_MAX / 2, "the input has ", most, " rows; at most ", INT_MAX / 2,
          " can be run at once, use smaller batches");
}

// One past the largest index is `limit`.
template <typename T>
void check_indices(const char* name, const T* indices, size_t count, int64_t limit, const char* remedy) {
  for (size_t i = 0; i < count; ++i) {
    require(indices[i] >= 0 && indices[i] < limit, name, "[", i, "] is ", indices[i], "; it must be 0 to ", limit - 1,
            ", ", remedy);
  }
}

}  // namespace

Load measure(const Program& program, const int64_t* lengths, size_t sequences, size_t rows) {
  Load load{{0, sequences, rows}, 0};
  for (size_t s = 0; s < sequences; ++s) {
    check_length(program, s, lengths[s]);
    load.rows[0] += static_cast<size_t>(lengths[s]);
    load.slots += cache_slots(static_cast<size_t>(lengths[s]));
  }
  check_total(load.rows[0], sequences, rows);
  return load;
}

int checked_threads(int64_t threads) {
  require(threads >= 1 && threads <= kMaxThreads, "threads is ", threads, "; it must be 1 to ", kMaxThreads);
  return static_cast<int>(threads);
}

// A session has one user at a time. The owner is named by the pool's generation, so that a child forked in the middle
// of another thread's run does not wait for a thread it does not have.
class Session::Lock {
 public:
  explicit Lock(std::atomic<uint32_t>& owner) : owner_(owner) {
    const uint32_t generation = ThreadPool::instance().generation();
    uint32_t seen = owner_.load(std::memory_order_relaxed);
    do {
      if (seen == generation) {
        throw std::runtime_error("this session is running in another thread; give each thread a Session of its own");
      }
    } while (!owner_.compare_exchange_weak(seen, generation, std::memory_order_acquire));
  }
  ~Lock() { owner_.store(0, std::memory_order_release); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::atomic<uint32_t>& owner_;
};

size_t Session::output_rows(const Input& input) const {
  switch (program_->buffers[static_cast<size_t>(program_->output)].domain) {
    case Domain::kTokens:
      return input.tokens;
    case Domain::kSequences:
      return input.sequences;
    case Domain::kRows:
      break;
  }
  return input.rows_count;
}

Load Session::inspect(const Input& input) const {
  check_total(input.tokens, input.sequences, input.rows_count);
  require(program_->selects == (input.rows != nullptr),
          program_->selects ? "rows is None; this model works on chosen token rows, give their indices"
                            : "rows was given; this model does not choose token rows, leave it out");
  require(input.offsets[0] == 0, "offsets[0] is ", input.offsets[0], "; it must be 0");
  Load load{{input.tokens, input.sequences, input.rows_count}, 0};
  for (size_t s = 0; s < input.sequences; ++s) {
    const int64_t begin = input.offsets[s], end = input.offsets[s + 1];
    require(end >= begin && end <= static_cast<int64_t>(input.tokens), "offsets[", s + 1, "] is ", end,
            "; offsets must not decrease and must end with the number of ids, ", input.tokens);
    check_length(*program_, s, end - begin);
    load.slots += cache_slots(static_cast<size_t>(end - begin));
  }
  require(input.offsets[input.sequences] == static_cast<int64_t>(input.tokens), "offsets ends with ",
          input.offsets[input.sequences], "; it must end with the number of ids, ", input.tokens);
  return load;
}

// Copies the tables before it checks them: what the kernels index with cannot be changed by the caller's other threads.
void Session::prepare(const Input& input, const Load& load, const Plan& plan) {
  const auto copy = [&](const auto* from, size_t count, size_t offset) {
    auto* to = reinterpret_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(arena_.data() + offset);
    std::copy_n(from, count, to);
    return to;
  };
  check_indices("ids", copy(input.ids, input.tokens, plan.ids), input.tokens, program_->vocab_size,
                "use the model's own tokenizer");
  if (input.types != nullptr) {
    check_indices("types", copy(input.types, input.tokens, plan.types), input.tokens, program_->type_vocab_size,
                  "or leave types out");
  }
  if (input.rows != nullptr) {
    check_indices("rows", copy(input.rows, input.rows_count, plan.selected), input.rows_count,
                  static_cast<int64_t>(input.tokens), "an index into ids");
  }
  Input copied = input;
  copied.offsets = copy(input.offsets, input.sequences + 1, plan.offsets);
  require(inspect(copied).slots == load.slots, "offsets changed during the call; do not write to it meanwhile");
  int64_t* const slots = reinterpret_cast<int64_t*>(arena_.data() + plan.slots);
  slots[0] = 0;
  for (size_t s = 0; s < input.sequences; ++s) {
    slots[s + 1] =
        slots[s] + static_cast<int64_t>(cache_slots(static_cast<size_t>(copied.offsets[s + 1] - copied.offsets[s])));
  }
}

bool Session::run(const Input& input, int threads, float* out, Interrupt interrupt) {
  const Lock lock(owner_);
  const Load load = inspect(input);
  if (output_rows(input) == 0) return true;
  const Plan plan = make_plan(*program_, load, threads, tuning_);
  arena_.reserve(plan.bytes);
  prepare(input, load, plan);
  if (profile_ && times_.size() < static_cast<size_t>(plan.threads)) times_.resize(static_cast<size_t>(plan.threads));
  const Execution execution{
      *program_,
      plan,
      arena_.data(),
      {static_cast<int>(input.tokens), static_cast<int>(input.sequences), static_cast<int>(input.rows_count)},
      load.slots,
      input.types != nullptr,
      out,
      profile_ ? times_.data() : nullptr,
      interrupt};
  return execute(execution);
}

void Session::trim() {
  const Lock lock(owner_);
  arena_.release();
}

void Session::set_profile(bool on) {
  const Lock lock(owner_);
  profile_ = on;
  if (on) times_.clear();
}

std::map<std::string, double> Session::phases() {
  const Lock lock(owner_);
  std::map<std::string, double> seconds;
  for (const StepTimes& times : times_) {
    for (size_t kind = 0; kind < std::size(kStepNames); ++kind) {
      if (times.nanoseconds[kind] != 0)
        seconds[kStepNames[kind]] += static_cast<double>(times.nanoseconds[kind]) * 1e-9;
    }
  }
  return seconds;
}

}  // namespace pocketformer
