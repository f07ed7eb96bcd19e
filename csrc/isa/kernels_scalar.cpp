#include "isa/scalar.h"
#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(scalar)
