#include "isa/dotprod.h"

namespace {

struct Isa : DotProd {
  static constexpr const char* kName = "dotprod";
};

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(dotprod)
