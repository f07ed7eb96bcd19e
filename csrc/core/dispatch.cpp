#include "core/dispatch.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
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
// What CPUID reports and the operating system has enabled: a register file that it does not save must not be used.
// (__builtin_cpu_supports knows AVX-VNNI in no g++ before 13, and always says no where the compiler's runtime lacks
// it.)
struct X86 {
  bool fma = false, f16c = false, avx2 = false, avxvnni = false;
  bool avx512f = false, avx512dq = false, avx512bw = false, avx512vl = false, avx512vnni = false;

  X86() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return;  // OSXSAVE: XGETBV may be asked
    unsigned saved = 0, high = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const bool ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
    fma = ymm && (c >> 12 & 1) != 0;
    f16c = ymm && (c >> 29 & 1) != 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    const unsigned subleaves = a;
    avx2 = ymm && (b >> 5 & 1) != 0;
    avx512f = zmm && (b >> 16 & 1) != 0;
    avx512dq = zmm && (b >> 17 & 1) != 0;
    avx512bw = zmm && (b >> 30 & 1) != 0;
    avx512vl = zmm && (b >> 31 & 1) != 0;
    avx512vnni = zmm && (c >> 11 & 1) != 0;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) avxvnni = ymm && (a >> 4 & 1) != 0;
  }
};

const X86& cpu() {
  static const X86 features;
  return features;
}

std::string missing_avx2() { return absent({{"avx2", cpu().avx2}, {"fma", cpu().fma}, {"f16c", cpu().f16c}}); }
std::string missing_avxvnni() {
  const X86& x = cpu();
  return absent({{"avx2", x.avx2}, {"fma", x.fma}, {"f16c", x.f16c}, {"avxvnni", x.avxvnni}});
}
std::string missing_avx512vnni() {
  const X86& x = cpu();
  return absent({{"avx2", x.avx2},
                 {"fma", x.fma},
                 {"f16c", x.f16c},
                 {"avx512f", x.avx512f},
                 {"avx512dq", x.avx512dq},
                 {"avx512bw", x.avx512bw},
                 {"avx512vl", x.avx512vl},
                 {"avx512vnni", x.avx512vnni}});
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
#if defined(POCKETFORMER_EVEX_TWIN)
      {"avxvnni_evex", missing_avx512vnni, kernel_table_avxvnni_evex},
#endif
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
