#define POCKETFORMER_ISA_NAME "avxvnni_evex"
#define POCKETFORMER_DPBUSD _mm256_dpbusd_epi32
#include "isa/avxvnni.inc"
#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(avxvnni_evex)
