// Where each buffer and state lives, and where threads meet in columns. Lifetimes are known before anything runs, so
// memory does not grow with depth.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "core/cpus.h"
#include "runtime/lowering.h"

namespace pocketformer {
namespace {

// Byte ranges handed out first-fit.
class Ranges {
 public:
  size_t take(size_t bytes) {
    size_t start = 0;
    auto before = live_.begin();
    for (; before != live_.end() && before->first < start + bytes; ++before) start = before->first + before->second;
    live_.insert(before, {start, bytes});
    high_ = std::max(high_, start + bytes);
    return start;
  }

  void give_back(size_t start) {
    live_.erase(std::find_if(live_.begin(), live_.end(), [&](const auto& range) { return range.first == start; }));
  }

  size_t high() const { return high_; }

 private:
  std::vector<std::pair<size_t, size_t>> live_;  // sorted by start
  size_t high_ = 0;
};

// A buffer or state between its first and its last moment.
struct Tenant {
  int begin, end;
  size_t bytes;
  size_t* offset;
  int overwrites = kNone, index = kNone;  // may move into the place of that tenant where it ends as this one begins
};

// Places tenants that are sorted by `begin`; returns the bytes that they need together.
size_t place(std::vector<Tenant>& tenants) {
  Ranges ranges;
  std::vector<Tenant*> live;
  for (Tenant& tenant : tenants) {
    const auto ended = std::partition(live.begin(), live.end(), [&](Tenant* t) { return t->end >= tenant.begin; });
    std::for_each(ended, live.end(), [&](Tenant* t) { ranges.give_back(*t->offset); });
    live.erase(ended, live.end());
    const auto overwritten = std::find_if(live.begin(), live.end(), [&](Tenant* t) {
      return tenant.overwrites != kNone && t->index == tenant.overwrites && t->end == tenant.begin &&
             t->bytes == tenant.bytes;
    });
    if (overwritten != live.end()) {
      *tenant.offset = *(*overwritten)->offset;
      *overwritten = &tenant;
    } else {
      *tenant.offset = ranges.take(tenant.bytes);
      live.push_back(&tenant);
    }
  }
  return ranges.high();
}

// Bytes of a buffer for each row of its stage's scratch, which is at least as high as a vector has lanes.
size_t scratch_bytes(const Buffer& buffer) {
  if (buffer.held == 0) return buffer.row_bytes;
  return round_up((buffer.row_bytes * static_cast<size_t>(buffer.held) + kLanes - 1) / kLanes, kAlignment);
}

// In columns a thread may not read what another makes, nor have overwritten what another reads, before they meet. An
// epoch is the time between two meetings; a common buffer keeps its place to the end of the epoch of its last reading.
std::vector<int> meet(const Program& program, Stage& stage, int stage_index) {
  std::vector<int> epochs;
  std::vector<int> made;  // by other threads, since the last meeting
  int epoch = 0;
  for (const std::unique_ptr<Step>& step : stage.steps) {
    step->meets = std::any_of(step->reads.begin(), step->reads.end(), [&](int buffer) {
      return program.buffers[static_cast<size_t>(buffer)].stage == stage_index &&
             std::find(made.begin(), made.end(), buffer) != made.end();
    });
    if (step->meets) {
      ++epoch;
      made.clear();
    }
    if (step->split != Split::kRepeat) made.insert(made.end(), step->writes.begin(), step->writes.end());
    epochs.push_back(epoch);
  }
  return epochs;
}

// What crosses stages of one domain may lie where that of another did, which is no longer in use.
void use(Program& program, int domain, int first, int last) {
  int& begin = program.first_stage[domain];
  int& end = program.last_stage[domain];
  begin = end == 0 ? first : std::min(begin, first);  // what crosses stages does not end in the first
  end = std::max(end, last);
}

}  // namespace

void place_buffers(Program& program, const std::vector<Lifetime>& lifetimes) {
  std::vector<int> first_step, epochs;  // of each stage; of each step
  for (size_t s = 0; s < program.stages.size(); ++s) {
    first_step.push_back(static_cast<int>(epochs.size()));
    const std::vector<int> own = meet(program, program.stages[s], static_cast<int>(s));
    epochs.insert(epochs.end(), own.begin(), own.end());
  }
  // Slots of shared buffers are reused only at equal row size: then the rows of two buffers in one slot coincide, and
  // since a row is the business of one thread at a time, a slot can be taken over in the middle of a stage.
  struct Slot {
    size_t offset;
    int free_after;  // step
    int stage;
  };
  std::map<std::pair<int, size_t>, std::vector<Slot>> slots;  // by domain and row size
  for (size_t b = 0; b < program.buffers.size(); ++b) {
    Buffer& buffer = program.buffers[b];
    const Lifetime& life = lifetimes[b];
    buffer.shared = (buffer.apart || life.first_stage != life.last_stage) && buffer.input == kNone;
    if (!buffer.shared) continue;
    use(program, buffer.domain, life.first_stage, life.last_stage);
    std::vector<Slot>& free = slots[{buffer.domain, buffer.row_bytes}];
    const auto usable = std::find_if(free.begin(), free.end(), [&](const Slot& slot) {
      if (slot.free_after >= life.defined) return false;
      return slot.stage < life.first_stage ||
             epochs[static_cast<size_t>(slot.free_after)] < epochs[static_cast<size_t>(life.defined)];
    });
    if (usable != free.end()) {
      buffer.offset = usable->offset;
      *usable = {buffer.offset, life.last_used, life.last_stage};
    } else {
      buffer.offset = program.shared_row_bytes[buffer.domain];
      program.shared_row_bytes[buffer.domain] += buffer.row_bytes;
      free.push_back({buffer.offset, life.last_used, life.last_stage});
    }
  }
  for (size_t s = 0; s < program.stages.size(); ++s) {
    Stage& stage = program.stages[s];
    std::vector<Tenant> row, own, common;
    for (size_t b = 0; b < program.buffers.size(); ++b) {
      Buffer& buffer = program.buffers[b];
      const Lifetime& life = lifetimes[b];
      if (buffer.stage != static_cast<int>(s) || buffer.output) continue;
      const int index = static_cast<int>(b);
      const int end_of_stage = first_step[s] + static_cast<int>(stage.steps.size()) - 1;
      const int last = std::min(life.last_used, end_of_stage);
      if (!buffer.shared) {
        row.push_back({life.defined, last, scratch_bytes(buffer), &buffer.offset, life.overwrites, index});
      }
      if (!buffer.split) {
        own.push_back({life.defined, last, scratch_bytes(buffer), &buffer.column_offset, life.overwrites, index});
      } else if (!buffer.shared) {
        const int from = epochs[static_cast<size_t>(life.defined)], to = epochs[static_cast<size_t>(last)];
        common.push_back({from, to, buffer.row_bytes, &buffer.column_offset});
      }
    }
    stage.row_bytes = place(row);
    stage.own_row_bytes = place(own);
    stage.common_row_bytes = place(common);
  }
}

// Keys are written in one stage and read in later ones, where a fast thread already stores the next layer's.
void place_states(Program& program) {
  for (size_t d = 0; d < program.domains.size(); ++d) {
    std::vector<Tenant> tenants;
    for (State& state : program.states) {
      if (state.domain != static_cast<int>(d)) continue;
      const size_t channels = 2 * static_cast<size_t>(state.heads) * static_cast<size_t>(state.head_stride);
      const size_t scales = 2 * static_cast<size_t>(state.heads) * sizeof(float);
      state.slot_bytes = channels * state.element_bytes() + (state.int8 ? scales : 0);
      tenants.push_back({state.first_stage, state.last_stage, state.slot_bytes, &state.offset});
      use(program, state.domain, state.first_stage, state.last_stage);
    }
    std::stable_sort(tenants.begin(), tenants.end(),
                     [](const Tenant& a, const Tenant& b) { return a.begin < b.begin; });
    program.slot_bytes[d] = place(tenants);
  }
}

// A thread carries block after block of rows through a stage, and each passes all of its weights.
void weigh_stages(Program& program) {
  for (Stage& stage : program.stages) {
    for (size_t i = 0; stage.band && i < stage.band->steps.size(); ++i) {
      stage.weight_bytes += stage.band->steps[i]->work().weight_bytes;
    }
    for (const std::unique_ptr<Step>& step : stage.steps) {
      stage.weight_bytes += step->work().weight_bytes;
      stage.divisible = stage.divisible || step->split == Split::kPanels || step->split == Split::kHeads;
    }
    program.stage_weight_bytes = std::max(program.stage_weight_bytes, stage.weight_bytes);
  }
  static const size_t cache = largest_cache();
  program.weights_cached = 2 * program.stage_weight_bytes <= cache;
}

}  // namespace pocketformer
