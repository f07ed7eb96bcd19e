#include "runtime/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/errors.h"
#include "core/thread_pool.h"
#include "runtime/feeds.h"
#include "runtime/state_cache.h"
#include "runtime/turn.h"

namespace pocketformer {

int checked_threads(int64_t threads) {
  require(threads >= 1 && threads <= kMaxThreads, "threads is ", threads, "; it must be 1 to ", kMaxThreads);
  return static_cast<int>(threads);
}

namespace {

constexpr char kInUse[] = "this session is running in another thread; give each thread a Session of its own";

// Has the turn of every cache of a run.
class Turns {
 public:
  Turns(const Program& program, StateCache* const* caches, size_t count) : caches_(caches) {
    for (size_t i = 0; i < count; ++i) {
      require(caches[i]->program() == &program, "caches[", i, "] belongs to another Program; make it from this one");
      const size_t twice = static_cast<size_t>(std::find(caches, caches + i, caches[i]) - caches);
      require(twice == i, "caches[", i, "] is caches[", twice,
              "] again; every sequence needs a cache of its own, by fork()");
    }
    for (; taken_ < count; ++taken_) {
      if (Turn::take(caches[taken_]->owner())) continue;
      const size_t held = taken_;
      give_back();
      throw std::runtime_error(
          concat("caches[", held, "] is in use by another thread; give it one of its own, by ", "fork()"));
    }
  }
  ~Turns() { give_back(); }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

 private:
  void give_back() {
    while (taken_ > 0) Turn::give_back(caches_[--taken_]->owner());
  }

  StateCache* const* caches_;
  size_t taken_ = 0;
};

}  // namespace

size_t Session::output_rows(const Feeds& feeds) const {
  return inspect(*program_, feeds).rows[program_->output_domain];
}

// Copies indices and offsets before it checks them: what the kernels index with cannot be changed by the caller's other
// threads.
void Session::prepare(const Feeds& feeds, const Load& load, const Caches& caches) {
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
  const Load again = inspect(*program_, copied, !caches.empty());
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
  for (size_t s = 0; s < caches.count; ++s) {
    const int64_t* const offsets = at(plan_.offsets[program_->kept_domain], wide);
    caches.data[s]->check_room(s, offsets[s + 1] - offsets[s]);
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

bool Session::run(const Feeds& feeds, int threads, float* out, Interrupt interrupt, Caches caches) {
  const Turn turn(owner_, kInUse);
  require(caches.empty() || program_->kept_domain != kNone, "caches were given; this model keeps no states, leave ",
          "them out");
  const Load load = inspect(*program_, feeds, !caches.empty());
  require(caches.empty() || caches.count == load.sequences, "caches has ", caches.count, " entries; there are ",
          load.sequences, " sequences, and each needs one");
  const Turns turns(*program_, caches.data, caches.count);
  if (caches.empty() && load.rows[program_->output_domain] == 0) return true;
  make_plan(*program_, load, threads, tuning_, plan_);
  arena_.reserve(plan_.bytes);
  prepare(feeds, load, caches);
  const auto rows_of = [&](size_t sequence) {
    const auto* const offsets = reinterpret_cast<const int64_t*>(arena_.data() + plan_.offsets[program_->kept_domain]);
    return static_cast<int>(offsets[sequence + 1] - offsets[sequence]);
  };
  for (size_t s = 0; s < caches.count; ++s) caches.data[s]->make_room(rows_of(s));
  if (profile_ && times_.size() < static_cast<size_t>(plan_.threads)) times_.resize(static_cast<size_t>(plan_.threads));
  Execution execution{.program = *program_,
                      .plan = plan_,
                      .arena = arena_.data(),
                      .sequences = static_cast<int>(load.sequences),
                      .rows = {},
                      .slots = {},
                      .given = {},
                      .inputs = {},
                      .caches = caches.data,
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
  if (!execute(execution)) return false;
  std::copy(std::begin(execution.rows), std::end(execution.rows), rows_);
  for (size_t s = 0; s < caches.count; ++s) caches.data[s]->grow(rows_of(s));
  return true;
}

void Session::trim() {
  const Turn turn(owner_, kInUse);
  arena_.release();
}

std::map<std::string, int> Session::rows() {
  const Turn turn(owner_, kInUse);
  std::map<std::string, int> rows;
  for (size_t d = 0; d < program_->domains.size(); ++d) rows[program_->domains[d].name] = rows_[d];
  return rows;
}

void Session::set_profile(bool on) {
  const Turn turn(owner_, kInUse);
  profile_ = on;
  if (on) times_.clear();
}

std::map<std::string, double> Session::phases() {
  const Turn turn(owner_, kInUse);
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
