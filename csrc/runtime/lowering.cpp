// What operators ask of the lowering while they lower themselves.
#include "runtime/lowering.h"

#include <algorithm>

namespace pocketformer {

// --- what operators name ---------------------------------------------------------------------------------------------

const Value& Lowering::value(const char* field, const std::string& name) const {
  const Value* const found = known(name);
  check(found != nullptr, field, "names ", brief({name}), ", which no earlier operator writes");
  return *found;
}

const Value& Lowering::floats(const char* field, const std::string& name) const {
  const Value& found = value(field, name);
  check(!found.heads(), field, "names ", brief({name}), ", which holds int8 heads");
  check(found.sizes == 0, field, "names ", brief({name}), ", which is of `match`, for `merge` and `attention` alone");
  check(found.halted == kNone, field, "names ", brief({name}),
        ", which is of `halt`, for `keep` and `contribute` alone");
  return found;
}

const Value& Lowering::dense(const char* field, const std::string& name) const {
  const Value& found = floats(field, name);
  const Buffer& buffer = program_.buffers[static_cast<size_t>(found.rows.buffer)];
  const bool whole = found.rows.column == 0 && found.rows.width == buffer.width && buffer.ld % kLanes == 0;
  check(whole || (buffer.ld % kLanes == 0 && found.rows.column % kLanes == 0 && found.rows.width % kLanes == 0), field,
        "names ", brief({name}), ", columns that are no whole vectors of ", kLanes);
  return found;
}

const Weight& Lowering::weight(const char* field, const std::string& name) {
  const Weight* const found = known_weight(name);
  check(found != nullptr, field, "names ", brief({name}), ", which is not among the weights");
  return *found;
}

const Value* Lowering::known(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

const Weight* Lowering::known_weight(const std::string& name) const {
  const auto found = weights_.find(name);
  return found == weights_.end() ? nullptr : &found->second;
}

const float* Lowering::vector(const std::string& name, int64_t channels) {
  return tensors_.take_floats(place_, name, {padded(channels)});
}

const float* Lowering::optional_vector(const std::string& name, int64_t channels) {
  return name.empty() ? nullptr : vector(name, channels);
}

const Input& Lowering::input(const char* field, const std::string& name) const {
  const int found = index_of(program_.inputs, name);
  check(found != kNone && program_.inputs[static_cast<size_t>(found)].dtype == InputType::kIndex, field, "names ",
        brief({name}), ", which is no input of indices");
  return program_.inputs[static_cast<size_t>(found)];
}

int Lowering::sequence_input(const char* field, const std::string& name, const Value& of) const {
  const Input& found = input(field, name);
  const Domain& over = program_.domains[static_cast<size_t>(found.domain)];
  check(over.kind == DomainKind::kOne && over.of == of.domain, field, "names ", brief({name}),
        ", which has no index for each sequence of '", domain_of(of).name, "'");
  return static_cast<int>(&found - program_.inputs.data());
}

int Lowering::domain(const char* field, const std::string& name) const {
  const int found = index_of(program_.domains, name);
  check(found != kNone, field, "names ", brief({name}), ", which is no domain");
  return found;
}

// Every grid has a place for each pixel of every sequence of the run, whatever it is said to be made from.
int Lowering::grid(const char* field, const std::string& name) const {
  const int found = domain(field, name);
  check(program_.domains[static_cast<size_t>(found)].kind == DomainKind::kGrid, field, "names ", brief({name}),
        ", which is no grid");
  return found;
}

int Lowering::state(const char* field, const std::string& name) const {
  const int found = index_of(program_.states, name);
  check(found != kNone, field, "names ", brief({name}), ", which is no state");
  return found;
}

int Lowering::made_domain(const char* field, const std::string& name, const Value& from, DomainKind kind) const {
  const int found = domain(field, name);
  const Domain& made = program_.domains[static_cast<size_t>(found)];
  check(made.kind == kind && made.of == from.domain, field, "names ", brief({name}), ", which is not made from '",
        domain_of(from).name, "' in this way");
  return found;
}

int Lowering::root_of(int domain) const {
  while (program_.domains[static_cast<size_t>(domain)].of != kNone)
    domain = program_.domains[static_cast<size_t>(domain)].of;
  return domain;
}

bool Lowering::has_row_of_sequence(int domain, int of) const {
  return program_.domains[static_cast<size_t>(domain)].kind == DomainKind::kOne && root_of(domain) == root_of(of);
}

int Lowering::sequences(const char* field, const std::string& name, int of) const {
  const int found = domain(field, name);
  check(has_row_of_sequence(found, of), field, "names ", brief({name}), ", which has no row for each sequence of '",
        program_.domains[static_cast<size_t>(of)].name, "'");
  return found;
}

void Lowering::row_of_sequence(const char* field, const std::string& name, const Value& value, int of) const {
  check(has_row_of_sequence(value.domain, of), field, "names ", brief({name}),
        ", which has no row for each sequence of '", program_.domains[static_cast<size_t>(of)].name, "'");
}

void Lowering::same_shape(const char* field, const std::string& name, const Value& value, int of, int64_t width) const {
  check(value.domain == of && value.rows.width == width, field, "names '", name, "', which is ", domain_of(value).name,
        " × ", value.rows.width, "; the result is ", program_.domains[static_cast<size_t>(of)].name, " × ", width);
}

const Value& Lowering::matches(const char* field, const std::string& name, int of) const {
  const Value& found = value(field, name);
  const Domain& made = program_.domains[static_cast<size_t>(of)];
  check(found.sizes != 0 && found.sizes == made.max_rows && root_of(found.domain) == root_of(of), field, "names ",
        brief({name}), ", which is no `match` that makes the ", made.max_rows, " rows of '", made.name, "'");
  return found;
}

const Value& Lowering::halts(const char* field, const std::string& name, int of) const {
  const Value& found = value(field, name);
  check(of != kNone && found.halted == of, field, "names ", brief({name}),
        ", which is no `halt` that looked at these tokens");
  return found;
}

// --- what they write -------------------------------------------------------------------------------------------------

void Lowering::define(const std::string& name, Value value) {
  check(!name.empty() && values_.count(name) == 0, "out", "is ", brief({name}), "; it must be a new name");
  values_.emplace(name, value);
}

Operand Lowering::write(const std::string& name, int domain, int64_t width, Operand overwrites) {
  check(width >= 1 && width <= kMaxWidth, "out", "has ", width, " columns; at most ", kMaxWidth, " are possible");
  const Operand rows = scratch(domain, static_cast<int>(width), static_cast<int>(padded(width)), sizeof(float));
  if (makes_band_) {
    const Windows& over = program_.stages.back().band->windows;
    buffer(rows.buffer).held = buffer(rows.buffer).ring = over.height * over.from_width;
  }
  lifetimes_.back().overwrites = overwrites.buffer;
  define(name, {rows, domain, {}});
  return rows;
}

Operand Lowering::write_apart(const std::string& name, int domain, int64_t width) {
  const Operand rows = write(name, domain, width);
  buffer(rows.buffer).apart = true;
  return rows;
}

// Scratch is at least as high as a vector has lanes.
Operand Lowering::working(int domain, size_t bytes) {
  const size_t row = round_up((bytes + kLanes - 1) / kLanes, kAlignment);
  check(row <= kMaxWidth, "in", "needs ", bytes, " bytes of working memory; it has too many rows or columns");
  const Operand memory = scratch(domain, static_cast<int>(row), static_cast<int>(row), 1);
  buffer(memory.buffer).working = true;
  return memory;
}

Operand Lowering::scratch(int domain, int width, int ld, size_t element_bytes) {
  const int stage = static_cast<int>(program_.stages.size()) - 1, index = static_cast<int>(program_.buffers.size());
  program_.buffers.push_back({.domain = domain,
                              .width = width,
                              .ld = ld,
                              .row_bytes = static_cast<size_t>(ld) * element_bytes,
                              .stage = stage});
  lifetimes_.push_back({steps_, steps_, stage, stage, kNone});
  writes_.push_back(index);
  if (makes_band_) {
    program_.buffers.back().held = Band::kRows;
    gathered_.emplace_back(index, stage);  // a line outlives the block that it was made for
  }
  return {index, 0, width};
}

// --- steps and stages ------------------------------------------------------------------------------------------------

void Lowering::enter(int domain) {
  if (makes_band_) return;
  if (program_.stages.empty() || program_.stages.back().domain != domain) begin_stage(domain);
}

void Lowering::begin_stage(int domain) {
  const Domain& rows = program_.domains[static_cast<size_t>(domain)];
  check(!rows.halting || rows.settled_by != kNone, "domain", "is '", rows.name, "', before `keep` has made its rows");
  // Gathering steps that follow one another share the stage.
  if (!program_.stages.empty() && program_.stages.back().domain == domain && program_.stages.back().steps.empty())
    return;
  program_.stages.push_back({});
  program_.stages.back().domain = domain;
  quantized_.clear();
}

// What earlier stages have written is whole: its rows may be gathered in the middle of a stage too.
void Lowering::enter_to_gather(int domain, const Operand& from) {
  const int stage = static_cast<int>(program_.stages.size()) - 1;
  buffer(from.buffer).stage == stage ? begin_stage(domain) : enter(domain);
}

void Lowering::begin_band(int domain, int from, const Windows& windows) {
  begin_stage(domain);
  program_.stages.back().band = std::make_unique<Band>(Band{from, windows, {}});
  makes_band_ = true;
}

void Lowering::end_band() {
  makes_band_ = false;
  quantized_.clear();  // of rows of a line
}

Operand Lowering::read(const Operand& operand) {
  if (!operand) return operand;
  // Threads make lines of their bands from rows of any other.
  if (makes_band_) gathered_.emplace_back(operand.buffer, static_cast<int>(program_.stages.size()) - 1);
  Lifetime& life = lifetimes_[static_cast<size_t>(operand.buffer)];
  life.last_used = steps_;
  life.last_stage = static_cast<int>(program_.stages.size()) - 1;
  reads_.push_back(operand.buffer);
  return operand;
}

Operand Lowering::gather(const Operand& operand, bool may_be_empty) {
  const Domain& from = program_.domains[static_cast<size_t>(buffer(operand.buffer).domain)];
  check(may_be_empty || !from.halting, "in", "names rows of '", from.name, "', whose sequences may be empty");
  gathers_ = true;
  gathered_.emplace_back(operand.buffer, static_cast<int>(program_.stages.size()) - 1);
  return read(operand);
}

void Lowering::settle(const char* field, int domain, const Value& halts) {
  Domain& settled = program_.domains[static_cast<size_t>(domain)];
  check(settled.halting, field, "is '", settled.name, "', which is not halting");
  check(settled.settled_by == kNone || settled.settled_by == halts.rows.buffer, field, "is '", settled.name,
        "', whose rows another `halt` counts");
  if (settled.settled_by != kNone) return;
  settled.settled_by = halts.rows.buffer;
  program_.stages[static_cast<size_t>(buffer(halts.rows.buffer).stage)].settled.push_back({domain, halts.rows});
}

void Lowering::store(int state) {
  State& stored = program_.states[static_cast<size_t>(state)];
  check(stored.first_stage == kNone, "state", "is '", stored.name, "', which is stored a second time");
  stored.first_stage = static_cast<int>(program_.stages.size()) - 1;
}

void Lowering::attend(int state, const KeyRange& range) {
  State& attended = program_.states[static_cast<size_t>(state)];
  const int stage = static_cast<int>(program_.stages.size()) - 1;
  check(attended.first_stage != kNone && attended.first_stage < stage, "state", "is '", attended.name,
        "', which no earlier operator stores");
  check(!attended.kept || range.right == 0, "causal", "is false, but the state '", attended.name,
        "' is kept: later keys may not have come yet");
  attended.last_stage = stage;
  attended.window = std::max(attended.window, range.left);
  gathers_ = true;
}

bool Lowering::write_to_caller(const Value& result) {
  Buffer& written = buffer(result.rows.buffer);
  Lifetime& life = lifetimes_[static_cast<size_t>(result.rows.buffer)];
  const bool last = life.defined == steps_ - 1 && life.last_used == life.defined;
  const bool whole = result.rows.column == 0 && result.rows.width == written.width;
  if (!last || !whole || !written.split || written.input != kNone) return false;
  if (program_.stages.back().steps.back()->split != Split::kPanels) return false;
  life.overwrites = kNone;
  written.output = true;
  written.ld = written.width;
  written.row_bytes = static_cast<size_t>(written.width) * sizeof(float);
  return true;
}

void Lowering::add(std::unique_ptr<Step> step) {
  std::vector<const char*>& kinds = program_.kinds;
  const auto same = [&](const char* kind) { return std::string(kind) == step->kind; };
  const auto known = std::find_if(kinds.begin(), kinds.end(), same);
  step->kind_index = static_cast<int>(known - kinds.begin());
  if (known == kinds.end()) kinds.push_back(step->kind);
  step->reads.swap(reads_);
  step->writes.swap(writes_);
  step->gathers = std::exchange(gathers_, false);
  if (makes_band_) return program_.stages.back().band->steps.push_back(std::move(step));
  for (const int index : step->writes) {
    buffer(index).split = step->split != Split::kRepeat && !buffer(index).working;
  }
  program_.stages.back().steps.push_back(std::move(step));
  ++steps_;
}

int Program::domain(const std::string& name) const { return index_of(domains, name); }

Program::Program(const Item& graph, Tensors tensors, const KernelTable& table) : kernels(&table) {
  Lowering(*this, tensors).run(graph);
}

}  // namespace pocketformer
