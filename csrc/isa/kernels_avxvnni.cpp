#define POCKETFORMER_ISA_NAME "avxvnni"
#define POCKETFORMER_DPBUSD _mm256_dpbusd_avx_epi32
#include "isa/avxvnni.inc"
#include "kernels/export.h"
POCKETFORMER_EXPORT_KERNELS(avxvnni)
