#include "runtime/planner.h"

#include <algorithm>
#include <climits>

#include "core/aligned_buffer.h"
#include "core/errors.h"

namespace pocketformer {
namespace {

// Tenths of a row's time. A block costs its rows (fewer than three wait for their weights as long as three), the lanes
// of attention's vectors of 16 queries, and the arrival of the weights from a cache or from memory. Beyond 16 rows what
// a block writes between two operators leaves the nearest caches. Measured on one and two threads, MiniLM and
// BERT-base: docs/performance.md.
constexpr size_t kRowCost = 10, kLeastRows = 3, kCachedWeights = 3, kFetchedWeights = 30, kTallRows = 16,
                 kMaxBlockRows = 32;
constexpr size_t kKeyGroup = 4;
// In row mode every thread passes all the weights. With fewer rows than this it spends longer on fetching them than on
// multiplying, and splitting them is worth the meetings.
constexpr size_t kMinCachedRows = 8, kMinFetchedRows = 17;

size_t product(size_t count, size_t bytes) {
  size_t size = 0;
  require(!__builtin_mul_overflow(count, bytes, &size) && size < SIZE_MAX / 4,
          "the input needs more memory than can be addressed; run it in smaller batches");
  return size;
}

class Arena {
 public:
  size_t take(size_t count, size_t bytes) {
    const size_t start = bytes_;
    bytes_ += round_up(product(count, bytes), kAlignment);
    product(bytes_, 1);
    return start;
  }

  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

size_t blocks(size_t rows, size_t block) { return (rows + block - 1) / block; }

size_t block_cost(size_t rows, bool weights_cached) {
  const size_t tall = rows > kTallRows ? (rows - kTallRows) / 3 : 0;
  return kRowCost * std::max(rows, kLeastRows) + round_up(rows, kLanes) + tall +
         (weights_cached ? kCachedWeights : kFetchedWeights);
}

// A thread that begins a band makes lines that another has made for itself: long spans for few of these, but two for
// each thread where they are not short, so that none waits long for the last.
size_t band_rows(const Windows& over, size_t rows, size_t threads) {
  constexpr size_t kShort = 16;  // lines
  const size_t width = static_cast<size_t>(over.to_width), lines = rows / width;
  if (threads == 1) return rows;
  return std::max(blocks(lines, 2 * threads), std::min(kShort, blocks(lines, threads))) * width;
}

}  // namespace

size_t state_slots(size_t length) { return round_up(length, kLanes); }

size_t block_rows(size_t rows, size_t threads, bool weights_cached) {
  size_t best = kMaxBlockRows, least = SIZE_MAX;
  for (size_t block = kKeyGroup; block <= kMaxBlockRows; block += kKeyGroup) {
    const size_t cost = block_cost(block, weights_cached), whole = rows / block, rest = rows % block;
    // The thread that ends last: its whole blocks, and one that has no partner for every thread or is not full.
    const size_t last = whole % threads != 0 ? cost : rest != 0 ? block_cost(rest, weights_cached) : 0;
    const size_t time = whole / threads * cost + last;
    if (time <= least) best = block, least = time;
  }
  return best;
}

void make_plan(const Program& program, const Load& load, int threads, const Tuning& tuning, Plan& plan) {
  const size_t least = (program.weights_cached ? kMinCachedRows : kMinFetchedRows) * static_cast<size_t>(threads);
  plan.threads = 1;
  plan.stages.resize(program.stages.size());
  size_t scratch = 0;
  for (size_t s = 0; s < program.stages.size(); ++s) {
    const Stage& stage = program.stages[s];
    StagePlan& planned = plan.stages[s];
    const size_t rows = std::max<size_t>(load.rows[stage.domain], 1);
    planned.columns = !stage.band && (tuning.mode == Mode::kColumns ||
                                      (tuning.mode == Mode::kAuto && threads > 1 && stage.divisible && rows < least));
    const size_t chosen = tuning.block_rows > 0
                              ? static_cast<size_t>(tuning.block_rows)
                              : block_rows(rows, static_cast<size_t>(threads), program.weights_cached);
    const size_t block = planned.columns ? rows : std::min(rows, chosen);
    planned.block = static_cast<int>(block);
    planned.height = round_up(block, kLanes);
    const size_t span = stage.band ? band_rows(stage.band->windows, rows, static_cast<size_t>(threads)) : block;
    planned.span = static_cast<int>(span);
    const size_t useful = planned.columns ? static_cast<size_t>(threads) : blocks(rows, span);
    plan.threads = std::max(plan.threads, static_cast<int>(std::min(static_cast<size_t>(threads), useful)));
  }
  for (size_t s = 0; s < program.stages.size(); ++s) {
    const Stage& stage = program.stages[s];
    StagePlan& planned = plan.stages[s];
    const size_t common = planned.columns ? product(planned.height, stage.common_row_bytes) : 0;
    planned.stride = product(planned.height, planned.columns ? stage.own_row_bytes : stage.row_bytes);
    planned.common = product(planned.stride, static_cast<size_t>(plan.threads));
    scratch = std::max(scratch, planned.common + common);
  }

  Arena arena;
  struct Region {
    size_t offset, bytes;
    int free_after;  // stage
  } regions[kMaxDomains];
  int taken = 0;
  for (size_t i = 0; i < program.inputs.size(); ++i) {
    const Input& input = program.inputs[i];
    if (input.dtype == InputType::kIndex) plan.indices[i] = arena.take(load.rows[input.domain], sizeof(int32_t));
  }
  for (size_t d = 0; d < program.domains.size(); ++d) {
    plan.height[d] = round_up(load.rows[d], kLanes);
    if (program.domains[d].has_offsets()) plan.offsets[d] = arena.take(load.sequences + 1, sizeof(int64_t));
    if (program.domains[d].kind == DomainKind::kSelected) plan.selected[d] = arena.take(load.rows[d], sizeof(int64_t));
    if (program.slot_bytes[d] != 0) {
      plan.slots[d] = arena.take(load.sequences + 1, sizeof(int64_t));
    }
    const size_t states = round_up(product(load.slots[d], program.slot_bytes[d]), kAlignment);
    const size_t bytes = product(states + product(plan.height[d], program.shared_row_bytes[d]), 1);
    if (bytes == 0) continue;
    Region* const free = std::find_if(regions, regions + taken, [&](const Region& region) {
      return region.bytes >= bytes && region.free_after < program.first_stage[d];
    });
    if (free == regions + taken) regions[taken++] = {arena.take(bytes, 1), bytes, 0};
    free->free_after = program.last_stage[d];
    plan.states[d] = free->offset;
    plan.shared[d] = free->offset + states;
  }
  plan.scratch = arena.take(1, scratch);
  plan.bytes = arena.bytes();
}

}  // namespace pocketformer
