#include "core/dispatch.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace pocketformer {

const KernelTable* kernel_table_scalar();
#if defined(__x86_64__)
const KernelTable* kernel_table_avx2();
const KernelTable* kernel_table_avxvnni();
const KernelTable* kernel_table_avxvnni_evex();
const KernelTable* kernel_table_avx512vnni();
#elif defined(__aarch64__)
const KernelTable* kernel_table_neon();
const KernelTable* kernel_table_dotprod();
const KernelTable* kernel_table_i8mm();
#endif

namespace {

bool always() { return true; }

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
// CPUID leaf 7, subleaf 1, EAX bit 4; g++ 12 knows no name for it.
bool has_avxvnni() {
  if (!has_avx2()) return false;
  unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
  __asm__("cpuid" : "+a"(eax), "+b"(ebx), "+c"(ecx), "+d"(edx));
  return (eax >> 4 & 1) != 0;
}
#elif defined(__aarch64__)
// The kernel reports what every core has, so a big.LITTLE pair counts as its weaker half. Bit numbers as in
// asm/hwcap.h, which older headers do not all define.
bool has_dotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
#endif

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = {
#if defined(__x86_64__)
      {"avx512vnni", has_avx512vnni, kernel_table_avx512vnni},
      {"avxvnni", has_avxvnni, kernel_table_avxvnni},
      {"avxvnni_evex", has_avx512vnni, kernel_table_avxvnni_evex},
      {"avx2", has_avx2, kernel_table_avx2},
#elif defined(__aarch64__)
      {"i8mm", has_i8mm, kernel_table_i8mm},
      {"dotprod", has_dotprod, kernel_table_dotprod},
      {"neon", always, kernel_table_neon},
#endif
      {"scalar", always, kernel_table_scalar},
  };
  return list;
}

const KernelTable& kernels(const std::string& name) {
  const char* forced = std::getenv("POCKETFORMER_ISA");
  const std::string wanted = !name.empty() ? name : forced != nullptr ? forced : "";
  std::string known;
  for (const Isa& isa : isas()) {
    if (wanted.empty() ? isa.supported() : wanted == isa.name) {
      if (!isa.supported())
        throw std::invalid_argument("isa: this CPU does not support '" + wanted +
                                    "'; unset POCKETFORMER_ISA to let the library choose");
      return *isa.table();
    }
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("isa: '" + wanted + "' is unknown; this build has " + known);
}

}  // namespace pocketformer
