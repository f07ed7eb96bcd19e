#include "runtime/planner.h"

#include <algorithm>
#include <climits>

#include "core/aligned_buffer.h"
#include "core/errors.h"

namespace pocketformer {
namespace {

// A block's widest moment (an FFN's activations in fp32 and int8, the residual: about 12 KB a row at width 384) should
// stay in a second-level cache of 1 MB together with the weight panels in flight. 64 rows do, and hold a whole number
// of attention's vectors of 16 queries and of the groups of four keys in a value panel. 30 to 128 rows differ by 2%.
constexpr size_t kMaxBlockRows = 64;
// With several threads: two vectors of 16 queries, so that attention leaves no lane idle, and enough blocks that the
// threads finish a stage together. Measured on 2 threads against 52 to 56 rows: 6% less time at 8 × 128 tokens, 8% at
// 512.
constexpr size_t kSharedBlockRows = 32;
constexpr size_t kKeyGroup = 4;
// In row mode each thread streams all the weights. With fewer rows than this a thread spends longer on reading them
// (one byte per weight and row block) than on multiplying, and splitting the weights is worth a barrier after every
// step.
constexpr size_t kMinThreadRows = 16;

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

// A whole number of blocks for each thread, all of nearly the same size.
size_t block_rows(size_t rows, size_t threads, const Tuning& tuning) {
  if (tuning.block_rows > 0) return static_cast<size_t>(tuning.block_rows);
  if (threads == 1) return kMaxBlockRows;
  const size_t count = std::max<size_t>(1, round_up(blocks(rows, kSharedBlockRows), threads));
  return std::max(kKeyGroup, round_up(blocks(rows, count), kKeyGroup));
}

}  // namespace

size_t cache_slots(size_t length) { return round_up(length, kLanes); }

Plan make_plan(const Program& program, const Load& load, int threads, const Tuning& tuning) {
  Plan plan{};
  const size_t tokens = load.rows[static_cast<int>(Domain::kTokens)];
  const bool few = threads > 1 && tokens <= kMinThreadRows * static_cast<size_t>(threads);
  plan.columns = tuning.mode == Mode::kColumns || (tuning.mode == Mode::kAuto && few);
  size_t most_blocks = 1, tallest = 1;
  for (int d = 0; d < kDomains; ++d) {
    const size_t rows = std::max<size_t>(load.rows[d], 1);
    const size_t block = plan.columns ? rows : std::min(rows, block_rows(rows, static_cast<size_t>(threads), tuning));
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
