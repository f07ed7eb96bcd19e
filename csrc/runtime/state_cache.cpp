#include "runtime/state_cache.h"

#include <algorithm>
#include <cstring>

#include "core/errors.h"
#include "runtime/turn.h"

namespace pocketformer {
namespace {

constexpr char kInUse[] = "another thread is using this cache; give every conversation a cache of its own, by fork()";

const Domain& kept_domain(const Program& program) {
  require(program.kept_domain != kNone, "program keeps no states: it is no decoder and takes no cache");
  return program.domains[static_cast<size_t>(program.kept_domain)];
}

size_t slots_of(const State& state, int64_t capacity, int64_t chunk) {
  const size_t all = round_up(static_cast<size_t>(capacity), kLanes);
  if (state.window >= capacity) return all;
  // What lies before the window in its first split stays.
  return std::min(all, round_up(static_cast<size_t>(state.window + chunk) + kKeySplit, kLanes));
}

size_t bytes_of(const State& state, size_t slots) { return round_up(slots * state.slot_bytes, kAlignment); }

// Calls move(offset, bytes, bytes of one slot) for every run of bytes that the first `slots`, a multiple of four, fill
// in a part of `capacity` slots.
template <class Move>
void for_each_run(const State& s, size_t capacity, size_t slots, Move move) {
  const size_t heads = static_cast<size_t>(s.heads), stride = static_cast<size_t>(s.head_stride),
               row = stride * s.element_bytes();
  size_t offset = 0;
  const auto each_head = [&](size_t slot_bytes) {
    for (size_t h = 0; h < heads; ++h, offset += capacity * slot_bytes) move(offset, slots * slot_bytes, slot_bytes);
  };
  each_head(row), each_head(row);  // keys, values
  if (s.int8) each_head(sizeof(float)), each_head(sizeof(float));
}

}  // namespace

size_t StateCache::bytes(const Program& program, int64_t capacity, int64_t chunk) {
  const Domain& domain = kept_domain(program);
  require(capacity >= 1 && capacity <= domain.max_rows, "capacity is ", capacity, "; it must be 1 to ", domain.max_rows,
          ", the ", domain.name, " that the model takes");
  require(chunk >= 1 && chunk <= capacity, "chunk is ", chunk, "; it must be 1 to the capacity, ", capacity);
  size_t total = 0;
  for (const State& state : program.states) {
    if (state.kept) total += bytes_of(state, slots_of(state, capacity, chunk));
  }
  return total;
}

StateCache::StateCache(std::shared_ptr<const Program> program, int64_t capacity, int64_t chunk)
    : program_(std::move(program)), capacity_(static_cast<int>(capacity)), chunk_(static_cast<int>(chunk)) {
  bytes(*program_, capacity, chunk);
  take_memory();
}

StateCache::StateCache(const StateCache& other)
    : program_(other.program_), capacity_(other.capacity_), chunk_(other.chunk_), length_(other.length()) {
  take_memory();
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& from = other.parts_[i];
    parts_[i].base = from.base;
    if (from.data == nullptr) continue;
    const size_t used = round_up(static_cast<size_t>(length() - from.base), 4);  // untouched pages stay so
    for_each_run(program_->states[i], from.slots, used, [&](size_t offset, size_t bytes, size_t) {
      std::memcpy(parts_[i].data + offset, from.data + offset, bytes);
    });
  }
}

void StateCache::take_memory() {
  memory_.reserve(bytes(*program_, capacity_, chunk_));
  size_t offset = 0;
  for (const State& state : program_->states) {
    parts_.push_back({nullptr, 0, 0});
    if (!state.kept) continue;
    const size_t slots = slots_of(state, capacity_, chunk_);
    parts_.back() = {memory_.data() + offset, slots, 0};
    offset += bytes_of(state, slots);
  }
}

void StateCache::truncate(int64_t length) {
  const Turn turn(owner_, kInUse);
  require(length >= 0 && length <= this->length(), "length is ", length, "; it must be 0 to what the cache holds, ",
          this->length());
  for (size_t i = 0; i < parts_.size() && length > 0; ++i) {
    const int least = parts_[i].base + program_->states[i].window;
    require(parts_[i].base == 0 || length >= least, "length is ", length,
            "; a token there sees keys that a window has dropped: it must be 0 or at least ", least);
  }
  if (length == 0) {
    for (Part& part : parts_) part.base = 0;
  }
  length_.store(static_cast<int>(length), std::memory_order_relaxed);
}

std::unique_ptr<StateCache> StateCache::fork() {
  const Turn turn(owner_, kInUse);
  return std::unique_ptr<StateCache>(new StateCache(*this));
}

void StateCache::check_room(size_t sequence, int64_t rows) const {
  const Domain& domain = kept_domain(*program_);
  require(rows <= capacity_ - length(), "sequence ", sequence, " has ", rows, " ", domain.name, "; its cache holds ",
          length(), " of ", capacity_, ": truncate it, or make a larger one");
  for (const Part& part : parts_) {
    const bool fits = part.data == nullptr || part.slots >= static_cast<size_t>(capacity_) || rows <= chunk_;
    require(fits, "sequence ", sequence, " has ", rows, " ", domain.name, "; its cache takes ", chunk_,
            " in a run: give them in chunks, or make a cache of a larger chunk");
  }
}

void StateCache::make_room(int rows) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    const State& state = program_->states[i];
    if (part.data == nullptr || static_cast<size_t>(length() + rows - part.base) <= part.slots) continue;
    const int base = std::max(0, length() - state.window) / kKeySplit * kKeySplit;
    const size_t skipped = static_cast<size_t>(base - part.base),
                 kept = round_up(static_cast<size_t>(length() - part.base), 4) - skipped;
    for_each_run(state, part.slots, kept, [&](size_t offset, size_t bytes, size_t slot_bytes) {
      std::memmove(part.data + offset, part.data + offset + skipped * slot_bytes, bytes);
    });
    part.base = base;
  }
}

}  // namespace pocketformer
