#include "runtime/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "core/thread_pool.h"
#include "runtime/feeds.h"

namespace pocketformer {

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

size_t Session::output_rows(const Feeds& feeds) const {
  return inspect(*program_, feeds).rows[program_->output_domain];
}

// Copies indices and offsets before it checks them: what the kernels index with cannot be changed by the caller's other
// threads.
void Session::prepare(const Feeds& feeds, const Load& load) {
  const auto copy = [&](const Feed& feed, auto* to) {
    std::memcpy(to, feed.data, feed.size * sizeof(*to));
    return to;
  };
  const auto at = [&]<typename T>(size_t offset, T*) { return reinterpret_cast<T*>(arena_.data() + offset); };
  int64_t* const wide = nullptr;
  Feeds copied = feeds;
  for (size_t d = 0; d < program_->domains.size(); ++d) {
    const Domain& domain = program_->domains[d];
    if (domain.kind == DomainKind::kSelected) {
      const int64_t* rows = copy(feeds.domains[d], at(plan_.selected[d], wide));
      check_indices(domain.name.c_str(), rows, feeds.domains[d].size, static_cast<int64_t>(load.rows[domain.of]),
                    "a row of the batch");
      copied.domains[d].data = rows;
    } else if (domain.has_offsets() && domain.of == kNone && domain.kind == DomainKind::kRagged) {
      copied.domains[d].data = copy(feeds.domains[d], at(plan_.offsets[d], wide));
    }
  }
  const Load again = inspect(*program_, copied);
  require(std::equal(std::begin(load.rows), std::end(load.rows), again.rows) &&
              std::equal(std::begin(load.slots), std::end(load.slots), again.slots),
          "offsets changed during the call; do not write to them meanwhile");
  for (size_t d = 0; d < program_->domains.size(); ++d) {
    const Domain& domain = program_->domains[d];
    if (!domain.has_offsets()) continue;
    int64_t* const offsets = at(plan_.offsets[d], wide);
    const int64_t* of = domain.of == kNone ? nullptr : at(plan_.offsets[domain.of], wide);
    if (domain.of != kNone || domain.kind == DomainKind::kGrid) {
      fill_offsets(*program_, d, load.sequences, of, offsets);
    }
    if (program_->slot_bytes[d] == 0) continue;
    int64_t* const slots = at(plan_.slots[d], wide);
    slots[0] = 0;
    for (size_t s = 0; s < load.sequences; ++s) {
      slots[s + 1] = slots[s] + static_cast<int64_t>(state_slots(static_cast<size_t>(offsets[s + 1] - offsets[s])));
    }
  }
  for (size_t i = 0; i < program_->inputs.size(); ++i) {
    const Input& input = program_->inputs[i];
    const Feed& feed = feeds.inputs[i];
    if (feed.data == nullptr) continue;
    if (input.dtype == InputType::kIndex) {
      check_indices(input.name.c_str(), copy(feed, at(plan_.indices[i], static_cast<int32_t*>(nullptr))), feed.size,
                    input.limit, input.optional ? "or leave it out" : "use the model's own tokenizer");
    } else {
      const auto* const numbers = static_cast<const float*>(feed.data);
      const size_t count = feed.size * static_cast<size_t>(input.width);
      for (size_t n = 0; n < count; ++n) {
        require(std::isfinite(numbers[n]), input.name, "[", n / static_cast<size_t>(input.width), "] holds ",
                numbers[n], "; every number must be finite");
      }
    }
  }
}

bool Session::run(const Feeds& feeds, int threads, float* out, Interrupt interrupt) {
  const Lock lock(owner_);
  const Load load = inspect(*program_, feeds);
  if (load.rows[program_->output_domain] == 0) return true;
  make_plan(*program_, load, threads, tuning_, plan_);
  arena_.reserve(plan_.bytes);
  prepare(feeds, load);
  if (profile_ && times_.size() < static_cast<size_t>(plan_.threads)) times_.resize(static_cast<size_t>(plan_.threads));
  Execution execution{.program = *program_,
                      .plan = plan_,
                      .arena = arena_.data(),
                      .sequences = static_cast<int>(load.sequences),
                      .rows = {},
                      .slots = {},
                      .given = {},
                      .inputs = {},
                      .out = out,
                      .times = profile_ ? times_.data() : nullptr,
                      .interrupt = interrupt};
  for (size_t d = 0; d < program_->domains.size(); ++d) {
    execution.rows[d] = static_cast<int>(load.rows[d]);
    execution.slots[d] = load.slots[d];
  }
  for (size_t i = 0; i < program_->inputs.size(); ++i) {
    execution.inputs[i] = feeds.inputs[i].data;
    execution.given[i] = feeds.inputs[i].data != nullptr;
  }
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
    for (size_t kind = 0; kind < program_->kinds.size(); ++kind) {
      if (times.nanoseconds[kind] != 0) {
        seconds[program_->kinds[kind]] += static_cast<double>(times.nanoseconds[kind]) * 1e-9;
      }
    }
  }
  return seconds;
}

}  // namespace pocketformer
