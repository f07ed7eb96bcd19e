// Where each buffer lives. Lifetimes are known before anything runs, so memory does not grow with depth.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "core/cpus.h"
#include "runtime/program.h"

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

// Slots for one domain, reused only at equal row size: then the rows of two buffers in one slot coincide, and since a
// row is the business of one thread at a time, a slot can be taken over in the middle of a stage.
class Slots {
 public:
  size_t take(size_t row_bytes) {
    std::vector<size_t>& free = free_[row_bytes];
    if (free.empty()) {
      high_ += row_bytes;
      return high_ - row_bytes;
    }
    const size_t slot = free.back();
    free.pop_back();
    return slot;
  }

  void give_back(size_t slot, size_t row_bytes) { free_[row_bytes].push_back(slot); }
  size_t high() const { return high_; }

 private:
  std::map<size_t, std::vector<size_t>> free_;
  size_t high_ = 0;
};

}  // namespace

void place_buffers(Program& program, const std::vector<Lifetime>& lifetimes, const std::vector<int>& in_place) {
  Ranges scratch;
  Slots shared[kDomains];
  std::vector<std::pair<int, int>> live;  // (last use, buffer), buffers that hold a place
  const auto release = [&](const Buffer& buffer) {
    if (buffer.shared) {
      shared[static_cast<int>(buffer.domain)].give_back(buffer.offset, buffer.row_bytes);
    } else {
      scratch.give_back(buffer.offset);
    }
  };
  for (size_t b = 0; b < program.buffers.size(); ++b) {  // in the order in which they are defined
    Buffer& buffer = program.buffers[b];
    const Lifetime& life = lifetimes[b];
    buffer.shared = life.first_stage != life.last_stage;
    const auto dead = std::partition(live.begin(), live.end(), [&](auto& held) { return held.first >= life.defined; });
    std::for_each(dead, live.end(), [&](auto& held) { release(program.buffers[held.second]); });
    live.erase(dead, live.end());

    const auto overwritten = std::find_if(live.begin(), live.end(), [&](auto& held) {
      const Buffer& other = program.buffers[held.second];
      return held.second == in_place[b] && held.first == life.defined && other.domain == buffer.domain &&
             other.shared == buffer.shared && other.row_bytes == buffer.row_bytes;
    });
    if (overwritten != live.end()) {
      buffer.offset = program.buffers[overwritten->second].offset;
      *overwritten = {life.last_used, static_cast<int>(b)};
      continue;
    }
    buffer.offset =
        buffer.shared ? shared[static_cast<int>(buffer.domain)].take(buffer.row_bytes) : scratch.take(buffer.row_bytes);
    live.push_back({life.last_used, static_cast<int>(b)});
  }
  program.scratch_row_bytes = scratch.high();
  for (int d = 0; d < kDomains; ++d) program.shared_row_bytes[d] = shared[d].high();
}

// Keys and values alternate between two buffers: a fast thread stores the next layer's while a slow one still reads
// this layer's. Queries are row-local, so one buffer does unless layers differ in shape and rows would not coincide.
void place_attention(Program& program) {
  std::vector<AttentionShape*> shapes;
  for (Stage& stage : program.stages) {
    for (Step& step : stage.steps) {
      if (StoreStep* store = std::get_if<StoreStep>(&step)) shapes.push_back(&store->shape);
      if (AttendStep* attend = std::get_if<AttendStep>(&step)) shapes.push_back(&attend->shape);
    }
  }
  const auto query_bytes = [](const AttentionShape& s) {
    const size_t row = static_cast<size_t>(s.heads) * static_cast<size_t>(s.head_stride);
    return s.int8 ? row + static_cast<size_t>(s.heads) * sizeof(float) : row * sizeof(float);
  };
  const bool uniform = std::all_of(shapes.begin(), shapes.end(), [&](const AttentionShape* s) {
    return s->heads == shapes[0]->heads && s->head_stride == shapes[0]->head_stride && s->int8 == shapes[0]->int8;
  });
  for (size_t i = 0; i < shapes.size(); ++i) {  // store, attend, store, attend, …
    AttentionShape& s = *shapes[i];
    s.cache_buffer = static_cast<int>(i / 2 % 2);
    s.query_buffer = uniform ? 0 : s.cache_buffer;
    const size_t row = 2 * static_cast<size_t>(s.kv_heads) * static_cast<size_t>(s.head_stride);
    const size_t slot = s.int8 ? row + static_cast<size_t>(s.kv_heads) * 2 * sizeof(float) : row * sizeof(float);
    program.cache_slot_bytes[s.cache_buffer] = std::max(program.cache_slot_bytes[s.cache_buffer], slot);
    program.query_row_bytes[s.query_buffer] = std::max(program.query_row_bytes[s.query_buffer], query_bytes(s));
  }
}

// A thread carries block after block of rows through a stage, and each passes all of its weights.
void weigh_stages(Program& program) {
  for (const Stage& stage : program.stages) {
    size_t bytes = 0;
    for (const Step& step : stage.steps) {
      if (const auto* linear = std::get_if<LinearI8Step>(&step)) {
        bytes += static_cast<size_t>(linear->panels) * kLanes * static_cast<size_t>(linear->k);
      } else if (const auto* wide = std::get_if<LinearF32Step>(&step)) {
        bytes += static_cast<size_t>(wide->panels) * kLanes * static_cast<size_t>(wide->k) * sizeof(float);
      }
    }
    program.stage_weight_bytes = std::max(program.stage_weight_bytes, bytes);
  }
  static const size_t cache = largest_cache();
  program.weights_cached = 2 * program.stage_weight_bytes <= cache;
}

}  // namespace pocketformer
