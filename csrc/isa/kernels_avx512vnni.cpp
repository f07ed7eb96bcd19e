#include "isa/avx512vnni.h"
#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(avx512vnni)
