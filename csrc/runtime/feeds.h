// What a caller's arrays come to, checked: rows and slots of every domain.
#pragma once

#include "runtime/session.h"

namespace pocketformer {

// `cached`: kept states lie elsewhere and take no slots.
Load inspect(const Program& program, const Feeds& feeds, bool cached = false);

// Rows of domain `d` of a sequence whose root domain has `length`.
int64_t sequence_rows(const Program& program, size_t d, int64_t length);

// offsets[s + 1] of domain `d` for every sequence, from those of the domain it is made from, or of a grid.
void fill_offsets(const Program& program, size_t d, size_t sequences, const int64_t* of, int64_t* offsets);

// Throws unless indices[i] is 0 to limit − 1.
template <typename T>
void check_indices(const char* name, const T* indices, size_t count, int64_t limit, const char* remedy) {
  for (size_t i = 0; i < count; ++i) {
    require(indices[i] >= 0 && indices[i] < limit, name, "[", i, "] is ", indices[i], "; it must be 0 to ", limit - 1,
            ", ", remedy);
  }
}

}  // namespace pocketformer
