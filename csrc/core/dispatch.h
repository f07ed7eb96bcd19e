// Chooses the kernel table: the best ISA this CPU and its operating system support, or the one that is asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace pocketformer {

struct Isa {
  const char* name;
  std::string (*missing)();  // what it needs that this CPU or its operating system lacks, for people; empty: usable
  const KernelTable* (*table)();

  bool supported() const { return missing().empty(); }
};

// Every ISA in this build, best first.
const std::vector<Isa>& isas();

// The table for `name`; an empty name takes POCKETFORMER_ISA or, without it, the best supported one.
// Throws std::invalid_argument when the name is unknown or this CPU lacks it.
const KernelTable& kernels(const std::string& name = "");

}  // namespace pocketformer
