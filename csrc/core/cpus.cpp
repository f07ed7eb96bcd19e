#include "core/cpus.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "core/cpu_quota.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/thread_pool.h"

namespace pocketformer {
namespace {

std::string read_line(const std::string& path) {
  const std::string text = read_file(path);
  return text.substr(0, text.find('\n'));
}

// A positive number, decimal or with 0x; nothing when the file is missing or holds none.
std::optional<double> read_number(const std::string& path) {
  const unsigned long long value = std::strtoull(read_line(path).c_str(), nullptr, 0);
  return value > 0 ? std::optional<double>(static_cast<double>(value)) : std::nullopt;
}

constexpr long kMaxCpuId = 1 << 16;

// "0-3,6": the kernel's list of CPUs.
std::set<int> read_list(const std::string& path) {
  const std::string line = read_line(path);
  std::set<int> ids;
  for (const char* text = line.c_str(); *text >= '0' && *text <= '9';) {
    char* end = nullptr;
    const long first = std::strtol(text, &end, 10);
    const long last = *end == '-' ? std::strtol(end + 1, &end, 10) : first;
    for (long id = first; id <= std::min(last, kMaxCpuId); ++id) ids.insert(static_cast<int>(id));
    text = *end == ',' ? end + 1 : "";
  }
  return ids;
}

// Cortex-A34, A53, A35, A55, A510 and A520 issue half as many vector operations a cycle as their big companions.
bool is_in_order_arm(const std::string& cpu) {
  const auto midr = static_cast<unsigned long long>(read_number(cpu + "/regs/identification/midr_el1").value_or(0));
  if ((midr >> 24 & 0xff) != 0x41) return false;
  const unsigned part = midr >> 4 & 0xfff;
  for (const unsigned little : {0xd02u, 0xd03u, 0xd04u, 0xd05u, 0xd46u, 0xd80u}) {
    if (part == little) return true;
  }
  return false;
}

std::string directory(const std::string& root, const Cpu& cpu) {
  return root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu.id);
}

// Takes `file` as the strength of every CPU; false, and nothing taken, unless all have it.
bool take_strength(const std::string& root, const char* file, std::vector<Cpu>& list) {
  std::vector<double> values;
  for (const Cpu& cpu : list) {
    const auto value = read_number(directory(root, cpu) + file);
    if (!value) return false;
    values.push_back(*value);
  }
  for (size_t i = 0; i < list.size(); ++i) list[i].strength = values[i];
  return true;
}

const char* measure(const std::string& root, std::vector<Cpu>& list) {
  const char* name = "none";
  if (take_strength(root, "/cpu_capacity", list)) {
    name = "capacity";
  } else if (take_strength(root, "/cpufreq/cpuinfo_max_freq", list)) {
    name = "frequency";
    for (Cpu& cpu : list) cpu.strength *= is_in_order_arm(directory(root, cpu)) ? 0.5 : 1;
  }
  // Neither knows that the efficient cores of Intel's hybrids have half the vector width.
  const std::set<int> efficient = read_list(root + "/sys/devices/cpu_atom/cpus");
  for (Cpu& cpu : list) cpu.strength *= efficient.count(cpu.id) != 0 ? 0.5 : 1;
  return name;
}

// Marks the chosen CPUs and returns their number.
int choose(std::vector<Cpu>& list) {
  std::vector<Cpu*> cores;
  std::set<int> seen;
  for (Cpu& cpu : list) {
    if (seen.insert(cpu.core).second) cores.push_back(&cpu);
  }
  std::stable_sort(cores.begin(), cores.end(), [](const Cpu* a, const Cpu* b) { return a->strength > b->strength; });
  size_t best = 1;
  for (size_t n = 2; n <= cores.size() && 2 * cores[n - 1]->strength >= cores[0]->strength; ++n) {
    if (static_cast<double>(n) * cores[n - 1]->strength > static_cast<double>(best) * cores[best - 1]->strength)
      best = n;
  }
  best = std::min<size_t>(best, kMaxThreads);
  for (size_t i = 0; i < best; ++i) cores[i]->chosen = true;
  return static_cast<int>(best);
}

}  // namespace

Cpus read_cpus(const std::string& root, std::vector<int> allowed) {
  if (allowed.empty()) allowed = affinity_ids();
  const std::set<int> online = read_list(root + "/sys/devices/system/cpu/online");
  Cpus cpus{{}, "none", cgroup_cpus(root), 1};
  for (const int id : std::set<int>(allowed.begin(), allowed.end())) {
    if (!online.empty() && online.count(id) == 0) continue;
    Cpu cpu{id, id, 1, false};
    const std::set<int> siblings = read_list(directory(root, cpu) + "/topology/thread_siblings_list");
    if (siblings.count(id) != 0) cpu.core = *siblings.begin();
    cpus.list.push_back(cpu);
  }
  if (cpus.list.empty()) return cpus;
  cpus.measure = measure(root, cpus.list);
  cpus.threads = choose(cpus.list);
  if (cpus.quota > 0) cpus.threads = std::min(cpus.threads, cpus.quota);
  return cpus;
}

size_t largest_cache(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(affinity_ids().front()) + "/cache";
  size_t largest = 0;
  for (int i = 0;; ++i) {
    const std::string size = read_line(folder + "/index" + std::to_string(i) + "/size");  // "32768K"
    if (size.empty()) return largest;
    char* unit = nullptr;
    const unsigned long long count = std::strtoull(size.c_str(), &unit, 10);
    const int shift = *unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0;
    if (count < 1u << 20) largest = std::max(largest, static_cast<size_t>(count) << shift);
  }
}

int default_threads() {
  const char* text = std::getenv("POCKETFORMER_THREADS");
  if (text == nullptr || *text == '\0') return read_cpus().threads;
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  require(*end == '\0' && threads >= 1 && threads <= kMaxThreads, "POCKETFORMER_THREADS is '", text,
          "'; it must be 1 to ", kMaxThreads, ", or unset for one thread for each strong core");
  return static_cast<int>(threads);
}

}  // namespace pocketformer
