#include "core/dispatch.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <initializer_list>
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

struct Feature {
  const char* name;
  bool present;
};

std::string absent(std::initializer_list<Feature> features) {
  std::string names;
  for (const Feature& feature : features) {
    if (!feature.present) names += std::string(names.empty() ? "" : ", ") + feature.name;
  }
  return names;
}

std::string nothing() { return ""; }

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
#define FEATURE(name) Feature{name, __builtin_cpu_supports(name) != 0}
std::string missing_avx2() { return absent({FEATURE("avx2"), FEATURE("fma")}); }
std::string missing_avx512vnni() {
  return absent({FEATURE("avx2"), FEATURE("fma"), FEATURE("avx512f"), FEATURE("avx512bw"), FEATURE("avx512dq"),
                 FEATURE("avx512vl"), FEATURE("avx512vnni")});
}
#undef FEATURE
// CPUID leaf 7, subleaf 1, EAX bit 4; g++ 12 knows no name for it.
bool has_avxvnni() {
  unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
  __asm__("cpuid" : "+a"(eax), "+b"(ebx), "+c"(ecx), "+d"(edx));
  return (eax >> 4 & 1) != 0;
}
// Where AVX2 is missing, leaf 7 may be as well.
std::string missing_avxvnni() {
  const std::string avx2 = missing_avx2();
  return avx2.empty() ? absent({{"avxvnni", has_avxvnni()}}) : avx2 + ", avxvnni";
}
#elif defined(__aarch64__)
// The kernel reports what every core has, so a big.LITTLE pair counts as its weaker half. Bit numbers as in
// asm/hwcap.h, which older headers do not all define.
bool has_dotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool has_i8mm() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
std::string missing_dotprod() { return absent({{"asimddp", has_dotprod()}}); }
std::string missing_i8mm() { return absent({{"asimddp", has_dotprod()}, {"i8mm", has_i8mm()}}); }
#endif

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = {
#if defined(__x86_64__)
      {"avx512vnni", missing_avx512vnni, kernel_table_avx512vnni},
      {"avxvnni", missing_avxvnni, kernel_table_avxvnni},
      {"avxvnni_evex", missing_avx512vnni, kernel_table_avxvnni_evex},
      {"avx2", missing_avx2, kernel_table_avx2},
#elif defined(__aarch64__)
      {"i8mm", missing_i8mm, kernel_table_i8mm},
      {"dotprod", missing_dotprod, kernel_table_dotprod},
      {"neon", nothing, kernel_table_neon},
#endif
      {"scalar", nothing, kernel_table_scalar},
  };
  return list;
}

const KernelTable& kernels(const std::string& name) {
  const char* forced = std::getenv("POCKETFORMER_ISA");
  const std::string wanted = !name.empty() ? name : forced != nullptr ? forced : "";
  std::string known;
  for (const Isa& isa : isas()) {
    const std::string missing = isa.missing();
    if (wanted.empty() ? missing.empty() : wanted == isa.name) {
      if (!missing.empty())
        throw std::invalid_argument("isa: this CPU does not support '" + wanted + "', which needs " + missing +
                                    "; unset POCKETFORMER_ISA to let the library choose");
      return *isa.table();
    }
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("isa: '" + wanted + "' is unknown; this build has " + known);
}

}  // namespace pocketformer
