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
// multiplying, and splitting them is worth a barrier after every step.
constexpr size_t kMinCachedRows = 8, kMinFetchedRows = 17;

class Arena {
 public:
  size_t take(size_t count, size_t bytes) {
    size_t size = 0;
    const size_t start = bytes_;
    require(!__builtin_mul_overflow(count, bytes, &size) && size < SIZE_MAX / 4 && bytes_ < SIZE_MAX / 4,
            "the input needs more memory than can be addressed; run it in smaller batches");
    bytes_ += round_up(size, kAlignment);
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

}  // namespace

size_t cache_slots(size_t length) { return round_up(length, kLanes); }

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

Plan make_plan(const Program& program, const Load& load, int threads, const Tuning& tuning) {
  Plan plan{};
  const size_t tokens = load.rows[static_cast<int>(Domain::kTokens)];
  const size_t least = program.weights_cached ? kMinCachedRows : kMinFetchedRows;
  const bool few = threads > 1 && tokens < least * static_cast<size_t>(threads);
  plan.columns = tuning.mode == Mode::kColumns || (tuning.mode == Mode::kAuto && few);
  size_t most_blocks = 1, tallest = 1;
  for (int d = 0; d < kDomains; ++d) {
    const size_t rows = std::max<size_t>(load.rows[d], 1);
    const size_t chosen = tuning.block_rows > 0
                              ? static_cast<size_t>(tuning.block_rows)
                              : block_rows(rows, static_cast<size_t>(threads), program.weights_cached);
    const size_t block = plan.columns ? rows : std::min(rows, chosen);
    plan.block[d] = static_cast<int>(block);
    plan.height[d] = round_up(load.rows[d], kLanes);
    if (d != static_cast<int>(Domain::kRows) || program.selects) {
      most_blocks = std::max(most_blocks, blocks(rows, block));
      tallest = std::max(tallest, block);
    }
  }
  plan.threads = plan.columns ? threads : static_cast<int>(std::min<size_t>(static_cast<size_t>(threads), most_blocks));
  plan.scratch_rows = round_up(tallest, kLanes);

  Arena arena;
  plan.ids = arena.take(tokens, sizeof(int32_t));
  plan.types = arena.take(tokens, sizeof(int32_t));
  plan.selected = arena.take(load.rows[static_cast<int>(Domain::kRows)], sizeof(int64_t));
  plan.offsets = arena.take(load.rows[static_cast<int>(Domain::kSequences)] + 1, sizeof(int64_t));
  plan.slots = arena.take(load.rows[static_cast<int>(Domain::kSequences)] + 1, sizeof(int64_t));
  for (int d = 0; d < kDomains; ++d) plan.shared[d] = arena.take(plan.height[d], program.shared_row_bytes[d]);
  for (int i = 0; i < 2; ++i) {
    plan.query[i] = arena.take(plan.height[static_cast<int>(Domain::kTokens)], program.query_row_bytes[i]);
    plan.cache[i] = arena.take(load.slots, program.cache_slot_bytes[i]);
  }
  plan.scratch_stride = plan.scratch_rows * program.scratch_row_bytes;
  plan.scratch = arena.take(plan.columns ? 1 : static_cast<size_t>(plan.threads), plan.scratch_stride);
  plan.bytes = arena.bytes();
  return plan;
}

}  // namespace pocketformer
