#include "isa/dotprod.h"

namespace {

struct Isa : DotProd {
  static constexpr const char* kName = "i8mm";
};

}  // namespace

#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(i8mm)
