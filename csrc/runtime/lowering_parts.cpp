// The parts of a graph: domains, inputs, weights, states and operators, in this order, then its output.
#include <algorithm>
#include <climits>
#include <cstring>

#include "runtime/lowering.h"
#include "runtime/operators/band.h"
#include "runtime/operators/registry.h"

namespace pocketformer {
namespace {

constexpr size_t kMaxOps = 1 << 14;
constexpr size_t kMaxWeights = 1 << 14;

const List& list_of(const Item* item, const char* field, size_t least, size_t most) {
  static const Item kMissing;
  const List* list = item == nullptr ? nullptr : item->as<List>();
  require(list != nullptr, "graph: field '", field, "' is ", brief(item == nullptr ? kMissing : *item),
          "; it must be a list");
  require(list->size() >= least && list->size() <= most, "graph: field '", field, "' has ", list->size(),
          " entries; it must have ", least, "…", most);
  return *list;
}

int rotation(const Place& place, int64_t rotate, int64_t k) {
  require((rotate & (rotate - 1)) == 0 && (rotate == 0 || k % rotate == 0), place.text(), ": field 'rotate' is ",
          rotate, "; it must be 0 or a power of two that divides ", k);
  return static_cast<int>(rotate);
}

// Inputs 2j and 2j + 1 of a channel lie side by side in a panel. As fast as memory can be read, with any compiler.
bool pairs_bounded(const int8_t* values, size_t bytes) {
  uint16_t most[32] = {};
  for (const int8_t* end = values + bytes; values != end; values += 64) {
    uint8_t sizes[64];
    for (int i = 0; i < 64; ++i) {
      const uint8_t value = static_cast<uint8_t>(values[i]);
      sizes[i] = std::min(value, static_cast<uint8_t>(-value));
    }
    uint16_t pairs[32];
    std::memcpy(pairs, sizes, sizeof(pairs));
    for (int i = 0; i < 32; ++i) {
      most[i] = std::max(most[i], static_cast<uint16_t>((pairs[i] & 0xFF) + (pairs[i] >> 8)));
    }
  }
  return *std::max_element(most, most + 32) <= kPairBound;
}

}  // namespace

void Lowering::run(const Item& graph) {
  const Record* record = graph.as<Record>();
  require(record != nullptr, "graph is ", brief(graph), "; it must be an object");
  for (const auto& [key, value] : *record) {
    const bool known =
        key == "domains" || key == "inputs" || key == "weights" || key == "states" || key == "ops" || key == "output";
    require(known, "graph: field ", brief({key}), " is unknown");
  }
  take_domains(find(*record, "domains"));
  take_inputs(find(*record, "inputs"));
  take_weights(find(*record, "weights"));
  take_states(find(*record, "states"));
  take_operators(find(*record, "ops"), find(*record, "output"));
  finish(find(*record, "output"));
  tensors_.refuse_unused();
  place_states(program_);
  place_buffers(program_, lifetimes_);
  weigh_stages(program_);
}

void Lowering::take_domains(const Item* items) {
  for (const Item& item : list_of(items, "domains", 1, kMaxDomains)) {
    place_ = Place(concat("domain ", program_.domains.size()));
    const auto spec = parse<DomainSpec>(item, place_);
    check(index_of(program_.domains, spec.name) == kNone, "name", "is '", spec.name, "' a second time");
    const bool ragged = spec.kind == DomainKind::kRagged, grid = spec.kind == DomainKind::kGrid;
    Domain domain{spec.name,  spec.kind,    kNone,          1, 1, spec.prepended, spec.merged, spec.height,
                  spec.width, spec.halting, spec.summarized};
    check(spec.prepended == 0 || (ragged && !spec.of.empty()), "prepended", "is ", spec.prepended,
          "; only a ragged domain made from another has such rows");
    check(spec.merged == 0 || (ragged && !spec.of.empty() && spec.prepended == 0), "merged", "is ", spec.merged,
          "; only a ragged domain made from another has fewer rows, and none before them");
    check(!spec.halting || (ragged && !spec.of.empty() && spec.prepended + spec.merged == 0), "halting",
          "is true; only a ragged domain made from another is, and without rows more or fewer");
    check(spec.summarized == 0 || (ragged && !spec.of.empty() && spec.prepended + spec.merged == 0 && !spec.halting),
          "summarized", "is ", spec.summarized,
          "; only a ragged domain made from another has such rows, and no other rows more or fewer");
    check(grid ? spec.height >= 1 && spec.width >= 1 : spec.height == 0 && spec.width == 0, "height", "is ",
          spec.height, " and 'width' ", spec.width, "; both are at least 1 for a grid, and only for a grid");
    if (spec.of.empty()) {
      check(ragged || grid, "of", "is null; only ragged domains and grids are filled by the caller");
      check(grid == (spec.max_rows == 0), "max_rows", "is ", spec.max_rows,
            "; it is at least 1 for a ragged domain that the caller fills, and only for such");
      domain.max_rows = grid ? spec.height * spec.width : spec.max_rows;
      domain.least_rows = grid ? domain.max_rows : 1;
    } else {
      domain.of = index_of(program_.domains, spec.of);
      check(domain.of != kNone, "of", "names '", spec.of, "', which is no earlier domain");
      check(spec.max_rows == 0, "max_rows", "is ", spec.max_rows, "; it follows from '", spec.of, "'");
      const Domain& of = program_.domains[static_cast<size_t>(domain.of)];
      check(of.has_offsets(), "of", "names '", spec.of, "', which has no sequences");
      check(!of.halting || spec.halting || spec.kind == DomainKind::kOne, "of", "names '", spec.of,
            "', which is halting; only another such domain, or a row a sequence, is made from it");
      check(spec.merged == 0 || (of.least_rows == of.max_rows && spec.merged < of.max_rows), "merged", "is ",
            spec.merged, "; '", spec.of, "' must have more rows in every sequence, and as many in each");
      if (ragged) domain.max_rows = domain.rows_for(of.max_rows);
      if (ragged) domain.least_rows = domain.rows_for(of.least_rows);
      if (spec.halting) domain.least_rows = 0;
      if (grid) domain.max_rows = domain.least_rows = spec.height * spec.width;
      if (spec.kind == DomainKind::kSelected) domain.max_rows = of.max_rows;
    }
    program_.domains.push_back(std::move(domain));
  }
}

void Lowering::take_inputs(const Item* items) {
  for (const Item& item : list_of(items, "inputs", 1, kMaxInputs)) {
    place_ = Place(concat("input ", program_.inputs.size()));
    const auto spec = parse<InputSpec>(item, place_);
    check(index_of(program_.inputs, spec.name) == kNone && index_of(program_.domains, spec.name) == kNone, "name",
          "is '", spec.name, "' a second time");
    const int of = domain("domain", spec.domain);
    const bool rows = spec.dtype == InputType::kRows;
    const Domain& filled = program_.domains[static_cast<size_t>(of)];
    check(filled.of == kNone || (filled.kind == DomainKind::kOne && !rows), "domain", "is '", spec.domain,
          "', which the caller does not fill");
    check(rows == (spec.limit == 0), "limit", "is ", spec.limit, "; it is at least 1 for i32, and only for i32");
    check(rows == (spec.width != 0), "width", "is ", spec.width, "; it is at least 1 for f32, and only for f32");
    check(!rows || !spec.optional, "optional", "is true; only an index may be left out");
    const int width = static_cast<int>(spec.width), index = static_cast<int>(program_.inputs.size());
    Input input{spec.name, of, spec.dtype, spec.limit, width, spec.optional, kNone};
    if (rows) {
      input.buffer = static_cast<int>(program_.buffers.size());
      program_.buffers.push_back({.domain = of,
                                  .width = width,
                                  .ld = width,
                                  .row_bytes = static_cast<size_t>(width) * sizeof(float),
                                  .stage = kNone,
                                  .input = index});
      lifetimes_.push_back({kNone, kNone, kNone, kNone, kNone});
      define(spec.name, {{input.buffer, 0, width}, of, {}});
    }
    program_.inputs.push_back(std::move(input));
  }
}

void Lowering::take_weights(const Item* items) {
  const Record* record = items == nullptr ? nullptr : items->as<Record>();
  require(record != nullptr && record->size() <= kMaxWeights, "graph: field 'weights' must be an object of at most ",
          kMaxWeights);
  for (const auto& [name, item] : *record) {
    place_ = Place(concat("weight ", brief({name})));
    require(!name.empty() && weights_.count(name) == 0, place_.text(), " must be a new, non-empty name");
    load(name, parse<WeightSpec>(item, place_));
  }
}

void Lowering::load(const std::string& name, const WeightSpec& spec) {
  const int64_t n = padded(spec.n), panels = n / kLanes, k = spec.k, group = spec.group;
  const bool by_rows = spec.layout == Layout::kRows, int4 = spec.format == Format::kI4 && !by_rows;
  const bool planes = !by_rows && (spec.format == Format::kI5 || spec.format == Format::kI6);
  const int bits = WeightSpec::bits(spec.format);
  Weight weight{{}, spec.layout};
  weight.view.format = spec.format;
  weight.view.n = static_cast<int>(spec.n);
  weight.view.k = static_cast<int>(k);
  weight.view.rotate = rotation(place_, spec.rotate, k);
  const bool groups = int4 || planes || (spec.format == Format::kI8 && !by_rows);
  check(group == 0 || (groups && (group == 16 || group == 32 || group == 64 || group == 128) && k % group == 0),
        "group", "is ", group, "; it must be 0, or for integers in panels one of 16, 32, 64 and 128 that divides ", k);
  weight.view.group = static_cast<int>(group);
  const bool by_row = spec.inputs == Inputs::kRow, halves = spec.inputs == Inputs::kHalfGroup;
  weight.view.inputs = by_row ? 0 : static_cast<int>(halves ? group / 2 : group);
  check(!halves || group != 16, "inputs", "is 'half_group'; halves of a group of 16 are too short");
  check(group != 0 || (spec.scales == Scales::kF32 && by_row), "group",
        "is 0; only with a group are 'scales' other than f32, or 'inputs' other than row");
  check(spec.rotate == 0 || (by_row && (group == 0 || int4 || planes)), "rotate", "is ", spec.rotate,
        "; inputs that are rounded by group, and those of i8 in groups, are not rotated");
  check(!spec.bounded_pairs || (spec.format == Format::kI8 && !by_rows && group == 0), "bounded_pairs",
        "is true; only i8 weights in panels without a group have such pairs");
  weight.view.bounded_pairs = spec.bounded_pairs;
  const int64_t groups_of_k = group == 0 ? 1 : k / group;
  check(spec.scales == Scales::kF32 || groups_of_k <= kMostGroups, "scales", "are not f32; of ", groups_of_k,
        " groups they must be, ", kMostGroups, " are the most that are not");
  check(spec.scales != Scales::kTwoLevel || k % kBlockK == 0, "scales", "is 'two_level'; ", k,
        " inputs are no multiple of ", kBlockK);
  const bool floats = is_float(spec.format);
  check(spec.rotate == 0 || !floats, "rotate", "is ", spec.rotate, "; f32 and f16 weights are not rotated");
  check(by_rows || floats || bits == 8 || bits == 4 || (planes && group != 0), "layout", "is 'panels'; numbers of ",
        bits, " bits are those of tables by rows", planes ? ", or have a group" : "");
  check(!planes || k <= kLookedUpK, "k", "is ", k, "; of 5 and 6 bits in panels there are at most ", kLookedUpK,
        ", use i8 weights");
  const auto whole_lines = [&](int64_t entries, int64_t size) {  // more panels, that its bytes are lines of 64
    const int64_t multiple = table_row_multiple(entries * kLanes * size);
    return std::vector<int64_t>{(panels + multiple - 1) / multiple * multiple, entries, kLanes};
  };
  const std::string stored = name + ".weight";
  if (by_rows) {
    const int64_t size = floats ? bits / 8 : 1, columns = bits < 8 ? padded(k) / 8 * bits : k;
    const int64_t multiple = table_row_multiple(columns * size);
    const std::vector<int64_t> shape{(spec.n + multiple - 1) / multiple * multiple, columns};
    if (bits == 32) {
      weight.view.panels = tensors_.take<float>(place_, stored, shape);
    } else if (bits == 16) {
      weight.view.panels = tensors_.take<uint16_t>(place_, stored, shape);
    } else if (bits == 8) {
      weight.view.panels = tensors_.take<int8_t>(place_, stored, shape);
    } else {
      weight.view.panels = tensors_.take<uint8_t>(place_, stored, shape);
    }
  } else if (spec.format == Format::kF32) {
    weight.view.panels = tensors_.take<float>(place_, stored, {panels, k, kLanes});
  } else if (spec.format == Format::kF16) {
    weight.view.panels = tensors_.take<uint16_t>(place_, stored, whole_lines(k, sizeof(uint16_t)));
  } else if (spec.format == Format::kI8) {
    check(k <= kMaxInt8K, "k", "is ", k, "; int8 products overflow int32 beyond ", kMaxInt8K, ", use f32 weights");
    weight.view.panels = tensors_.take<int8_t>(place_, stored, {panels, (k + 3) / 4, kLanes, 4});
    // Everywhere, though few ISAs rely on it: a file runs on all or none.
    require(!spec.bounded_pairs || weight.view.panels == nullptr ||
                pairs_bounded(static_cast<const int8_t*>(weight.view.panels),
                              static_cast<size_t>(panels * ((k + 3) / 4) * kLanes * 4)),
            place_.text(), ": tensor '", stored,
            "' holds two inputs 2j and 2j + 1 of a channel whose magnitudes add up to ", "more than ", kPairBound,
            ", against its 'bounded_pairs'");
    if (group == 0) weight.view.colsum = tensors_.take<int32_t>(place_, name + ".colsum", {n});
    for (int64_t i = 0; weight.view.colsum != nullptr && i < n; ++i) {
      const int64_t sum = weight.view.colsum[i];
      require(sum >= -128 * k && sum <= 128 * k, place_.text(), ": tensor '", name, ".colsum' holds ", sum,
              ", more than ", k, " int8 weights can sum to");
    }
  } else {
    check(k <= kMaxInt8K, "k", "is ", k, "; 4-bit products overflow int32 beyond ", kMaxInt8K, ", use f32 weights");
    weight.view.panels = tensors_.take<uint8_t>(place_, stored, {panels, (k + 7) / 8, kLanes, 4});
    const int64_t step = bits == 5 ? 32 : 16;
    if (planes)
      weight.view.high = tensors_.take<uint8_t>(place_, name + ".high", {panels, (k + step - 1) / step, kLanes, 4});
  }
  if (bits < 8) {
    const int entries = 1 << bits;
    weight.view.codebook = tensors_.take<int8_t>(place_, name + ".codebook", {std::max(entries, 64)});
    for (int i = 0; weight.view.codebook != nullptr && i < entries; ++i) {
      require(weight.view.codebook[i] != -128, place_.text(), ": tensor '", name,
              ".codebook' holds -128; its entries are within ±127");
      require(!planes || weight.view.codebook[i] == weight.view.codebook[0] + i, place_.text(), ": tensor '", name,
              ".codebook' has ", int{weight.view.codebook[i]}, " at ", i, "; in panels of ", bits,
              " bits its entries are consecutive");
    }
  }
  if (!floats) {
    const std::vector<int64_t> shape =
        group == 0 ? std::vector<int64_t>{n} : std::vector<int64_t>{panels, k / group, kLanes};
    const bool minimum = (int4 || group != 0) && tensors_.has(name + ".minimum");
    if (spec.scales == Scales::kF32) {
      weight.view.scale = tensors_.take_floats(place_, name + ".scale", shape, group == 0 ? 0.0f : -INFINITY);
      if (minimum) weight.view.minimum = tensors_.take_floats(place_, name + ".minimum", shape);
    } else {
      const bool two = spec.scales == Scales::kTwoLevel;
      const std::vector<int64_t> halves = whole_lines(two ? k / kBlockK : k / group, sizeof(uint16_t));
      const std::vector<int64_t> multiples = whole_lines(k / group, sizeof(int8_t));
      weight.view.half_scale = tensors_.take_halves(place_, name + ".scale", halves);
      if (two) weight.view.subscale = tensors_.take<int8_t>(place_, name + ".subscale", multiples);
      if (minimum) weight.view.half_minimum = tensors_.take_halves(place_, name + ".minimum", halves);
      if (minimum && two) weight.view.subminimum = tensors_.take<int8_t>(place_, name + ".subminimum", multiples);
    }
  }
  weights_[name] = weight;
}

void Lowering::take_states(const Item* items) {
  if (items == nullptr) return;
  for (const Item& item : list_of(items, "states", 0, kMaxOps)) {
    place_ = Place(concat("state ", program_.states.size()));
    const auto spec = parse<StateSpec>(item, place_);
    check(index_of(program_.states, spec.name) == kNone, "name", "is '", spec.name, "' a second time");
    const int of = domain("domain", spec.domain);
    check(program_.domains[static_cast<size_t>(of)].has_offsets(), "domain", "is '", spec.domain,
          "', which has no sequences");
    check(spec.rotate == 0 || spec.dtype == Keys::kI8, "rotate", "is ", spec.rotate, "; only int8 keys are rotated");
    State state{};
    state.name = spec.name;
    state.domain = of;
    state.int8 = spec.dtype == Keys::kI8;
    state.half = spec.dtype == Keys::kF16;
    state.kept = spec.kept;
    state.heads = static_cast<int>(spec.heads);
    state.head_dim = static_cast<int>(spec.head_dim);
    state.head_stride = static_cast<int>(padded(spec.head_dim));
    state.rotate = rotation(place_, spec.rotate, spec.head_dim);
    if (spec.kept) keep(of);
    program_.states.push_back(std::move(state));
  }
}

// A run's rows of this domain follow those of the caches, which hold all of its states.
void Lowering::keep(int of) {
  const Domain& domain = program_.domains[static_cast<size_t>(of)];
  check(domain.kind == DomainKind::kRagged && domain.of == kNone, "domain", "is '", domain.name,
        "'; kept states are of a ragged domain that the caller fills");
  check(program_.kept_domain == kNone || program_.kept_domain == of, "domain", "is '", domain.name,
        "'; other states are kept of another domain");
  for (const Domain& made : program_.domains) {
    check(made.kind != DomainKind::kRagged || made.of != of, "domain", "is '", domain.name, "', of which '", made.name,
          "' is made: its rows would not follow what a cache holds");
  }
  program_.kept_domain = of;
}

void Lowering::take_operators(const Item* items, const Item* output) {
  const List& ops = list_of(items, "ops", 1, kMaxOps);
  NameCounts names;
  for (const Item& op : ops) count_names(op, names);
  if (output != nullptr) count_names(*output, names);
  for (size_t i = 0; i < ops.size(); ++i) {
    place_ = Place(concat("op ", i));
    const bool band = i + 1 < ops.size() && begins_band(*this, ops[i], ops[i + 1], names);
    lower_operator(*this, ops[i], place_);
    if (band) end_band();
  }
  place_ = Place("graph");
}

void Lowering::finish(const Item* output) {
  const std::string* name = output == nullptr ? nullptr : output->as<std::string>();
  check(name != nullptr, "output", "is missing; it must be a name");
  const Value result = floats("output", *name);
  program_.output_domain = result.domain;
  check(!domain_of(result).halting, "output", "is '", *name, "', of which it is not known how many rows it has");
  program_.output_width = result.rows.width;
  write_output(*this, result);
  for (const auto& [buffer, stage] : gathered_) {  // other threads may still read their rows' neighbours
    const Stage& last = program_.stages[static_cast<size_t>(stage)];
    Lifetime& life = lifetimes_[static_cast<size_t>(buffer)];
    int end = 0;
    for (int s = 0; s <= stage; ++s) end += static_cast<int>(program_.stages[static_cast<size_t>(s)].steps.size());
    if (!last.steps.empty()) life.last_used = std::max(life.last_used, end - 1);
  }
  for (const State& state : program_.states) {
    check(state.last_stage != kNone, "states", "has '", state.name, "', which no operator attends to");
    check(state.kept || state.domain != program_.kept_domain, "states", "has '", state.name,
          "', which is not kept, beside others of its domain that are");
  }
}

}  // namespace pocketformer
