#include "runtime/feeds.h"

#include <algorithm>
#include <climits>

namespace pocketformer {
namespace {

void check_length(const Domain& domain, size_t sequence, int64_t length) {
  require(length >= 1, "sequence ", sequence, " has no ", domain.name,
          "; every sequence needs at least 1, drop empty ones");
  require(length <= domain.max_rows, "sequence ", sequence, " has ", length, " ", domain.name,
          "; the model takes at most ", domain.max_rows, ", truncate it");
}

// Rows of the domains that have as many in every sequence.
void derive(const Program& program, Load& load) {
  for (size_t d = 0; d < program.domains.size(); ++d) {
    const Domain& domain = program.domains[d];
    if (domain.kind == DomainKind::kOne) load.rows[d] = load.sequences;
    if (domain.kind == DomainKind::kGrid) {
      load.rows[d] = load.sequences * static_cast<size_t>(domain.height * domain.width);
    }
    require(load.rows[d] <= INT_MAX / 2, "the input has ", load.rows[d], " ", domain.name, "; at most ", INT_MAX / 2,
            " can be run at once, use smaller batches");
  }
}

// The domain that `d` is made from in the end; itself where the caller fills it.
size_t root_of(const Program& program, size_t d) {
  while (program.domains[d].of != kNone) d = static_cast<size_t>(program.domains[d].of);
  return d;
}

// Slots of the domains made from `root`, and rows of those that it does not fill, for one of its sequences.
void add_rows(const Program& program, size_t root, int64_t length, Load& load) {
  for (size_t d = 0; d < program.domains.size(); ++d) {
    if (!program.domains[d].has_offsets() || root_of(program, d) != root) continue;
    const size_t rows = static_cast<size_t>(sequence_rows(program, d, length));
    load.slots[d] += state_slots(rows);
    if (d != root && program.domains[d].kind == DomainKind::kRagged) load.rows[d] += rows;
  }
}

}  // namespace

int64_t sequence_rows(const Program& program, size_t d, int64_t length) {
  const Domain& domain = program.domains[d];
  return domain.rows_for(domain.of == kNone ? length : sequence_rows(program, static_cast<size_t>(domain.of), length));
}

Load plan_load(const Program& program, const int64_t* lengths, size_t sequences, size_t selected) {
  Load load;
  load.sequences = sequences;
  for (size_t d = 0; d < program.domains.size(); ++d) {
    const Domain& domain = program.domains[d];
    if (domain.kind == DomainKind::kSelected) load.rows[d] = selected;
    if (domain.of != kNone) continue;
    for (size_t s = 0; s < sequences; ++s) {
      const int64_t length = domain.kind == DomainKind::kGrid ? domain.max_rows : lengths[s];
      check_length(domain, s, length);
      load.rows[d] += static_cast<size_t>(length);
      add_rows(program, d, length, load);
    }
  }
  derive(program, load);
  return load;
}

Load inspect(const Program& program, const Feeds& feeds, bool cached) {
  Load load;
  bool counted = false;
  const auto count = [&](size_t sequences, const std::string& name) {
    require(!counted || sequences == load.sequences, name, " has ", sequences, " sequences, another input ",
            load.sequences, "; they must be as many");
    load.sequences = sequences;
    counted = true;
  };
  for (size_t d = 0; d < program.domains.size(); ++d) {
    const Domain& domain = program.domains[d];
    const Feed& feed = feeds.domains[d];
    if (domain.of != kNone || domain.kind != DomainKind::kRagged) continue;
    require(feed.data != nullptr && feed.size >= 1, domain.name, " is missing or empty; give the offsets of the ",
            "sequences, one more than there are sequences");
    count(feed.size - 1, domain.name);
  }
  for (const Input& input : program.inputs) {  // a grid is as long as what fills it
    const Domain& domain = program.domains[static_cast<size_t>(input.domain)];
    const Feed& feed = feeds.inputs[&input - program.inputs.data()];
    require(feed.data != nullptr || input.optional, input.name, " is missing; the model needs it");
    if (domain.kind != DomainKind::kGrid || feed.data == nullptr) continue;
    const size_t size = static_cast<size_t>(domain.max_rows);
    require(feed.size % size == 0, input.name, " has ", feed.size, " rows; they must be a multiple of ", domain.height,
            " × ", domain.width);
    count(feed.size / size, input.name);
  }
  for (size_t d = 0; d < program.domains.size(); ++d) {
    const Domain& domain = program.domains[d];
    const Feed& feed = feeds.domains[d];
    if (domain.kind == DomainKind::kSelected) {
      require(feed.data != nullptr, domain.name, " is missing; this model works on chosen rows, give their indices");
      load.rows[d] = feed.size;
    }
    if (domain.of != kNone) continue;
    if (domain.kind == DomainKind::kGrid) {
      load.rows[d] = load.sequences * static_cast<size_t>(domain.max_rows);
      for (size_t s = 0; s < load.sequences; ++s) add_rows(program, d, domain.max_rows, load);
      continue;
    }
    const auto* const offsets = static_cast<const int64_t*>(feed.data);
    require(offsets[0] == 0, domain.name, "[0] is ", offsets[0], "; offsets begin with 0");
    for (size_t s = 0; s < load.sequences; ++s) {
      require(offsets[s + 1] >= offsets[s] && offsets[s + 1] <= INT_MAX / 2, domain.name, "[", s + 1, "] is ",
              offsets[s + 1], "; offsets must not decrease nor exceed ", INT_MAX / 2);
      check_length(domain, s, offsets[s + 1] - offsets[s]);
      add_rows(program, d, offsets[s + 1] - offsets[s], load);
    }
    load.rows[d] = static_cast<size_t>(offsets[load.sequences]);
  }
  derive(program, load);
  for (const Input& input : program.inputs) {
    const Feed& feed = feeds.inputs[&input - program.inputs.data()];
    require(feed.data == nullptr || feed.size == load.rows[input.domain], input.name, " has ", feed.size,
            " entries; the offsets of ", program.domains[static_cast<size_t>(input.domain)].name, " end with ",
            load.rows[input.domain]);
  }
  if (cached) load.slots[program.kept_domain] = 0;
  return load;
}

void fill_offsets(const Program& program, size_t d, size_t sequences, const int64_t* of, int64_t* offsets) {
  const Domain& domain = program.domains[d];
  offsets[0] = 0;
  for (size_t s = 0; s < sequences; ++s) {
    offsets[s + 1] = offsets[s] + domain.rows_for(of == nullptr ? 0 : of[s + 1] - of[s]);
  }
}

}  // namespace pocketformer
