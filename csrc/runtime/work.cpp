#include "runtime/work.h"

#include <algorithm>

#include "runtime/feeds.h"

namespace pocketformer {
namespace {

double seen_in_blocks(int64_t length, int64_t together, const BlockPattern& blocks) {
  KeySpan spans[BlockPattern::kSpans];
  double keys = 0;
  for (int64_t begin = 0, block = 0; begin < length; begin += blocks.size, ++block) {
    const int64_t queries = std::min(blocks.size, length - begin), count = blocks.spans(block, length, spans);
    for (int64_t i = 0; i < count; ++i)
      keys += static_cast<double>((queries + together - 1) / together * (spans[i].end - spans[i].begin));
  }
  return keys;
}

// Keys that groups of `together` queries look at, of a sequence that attends to itself.
double seen_keys(int64_t length, int64_t together, const Work& work) {
  if (work.blocks.holds(length)) return seen_in_blocks(length, together, work.blocks);
  const int64_t globals = std::min(work.globals, length);
  double keys = static_cast<double>((globals + together - 1) / together * length);
  for (int64_t first = globals; first < length; first += together) {
    const int64_t last = std::min(first + together, length) - 1;
    const int64_t begin = std::max(first - work.left, globals), end = std::min(last + work.right, length - 1) + 1;
    keys += static_cast<double>(globals + end - begin + (work.summarized == 0 ? 0 : length / work.summarized));
  }
  return keys;
}

}  // namespace

std::vector<StepWork> count_work(const Program& program, const std::vector<int64_t>& lengths, size_t selected) {
  const Load load = plan_load(program, lengths.data(), lengths.size(), selected);
  std::vector<StepWork> all;
  for (size_t s = 0; s < program.stages.size(); ++s) {
    const Stage& stage = program.stages[s];
    const auto count = [&](const Step* step, int domain) {
      const size_t d = static_cast<size_t>(domain);
      const Work work = step->work();
      const double rows = static_cast<double>(load.rows[work.rows == kNone ? d : static_cast<size_t>(work.rows)]);
      StepWork total{.kind = step->kind,
                     .stage = s,
                     .rows = rows,
                     .multiply_adds = rows * work.multiply_adds,
                     .int8 = work.int8,
                     .bounded_pairs = work.bounded_pairs,
                     .weight_bytes = work.weight_bytes,
                     .zeros = work.zeros,
                     .elements = rows * work.elements,
                     .rotated = rows * work.rotated,
                     .activated = rows * work.activated,
                     .scores = 0,
                     .score_lanes = 0};
      for (size_t i = 0; work.scores != 0 && i < lengths.size(); ++i) {
        const int64_t length = sequence_rows(program, d, lengths[i]);
        const auto keys = [&](int64_t together) {
          if (work.keys == kNone) return seen_keys(length, together, work);
          const int64_t others = sequence_rows(program, static_cast<size_t>(work.keys), lengths[i]);
          return static_cast<double>((length + together - 1) / together * others);
        };
        total.scores += work.scores * keys(1);
        total.score_lanes += work.scores * kLanes * keys(kLanes);
      }
      total.multiply_adds += total.scores * work.score_multiply_adds;
      all.push_back(total);
    };
    if (stage.band) {
      for (const auto& step : stage.band->steps) count(step.get(), stage.band->domain);
    }
    for (const auto& step : stage.steps) count(step.get(), stage.domain);
  }
  return all;
}

}  // namespace pocketformer
