#include "core/cpu_quota.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace pocketformer {
namespace {

// Keeps the smaller of two limits, where 0 means none.
void tighten(int& limit, double cpus) {
  const int whole = static_cast<int>(std::min(cpus, 1e6));
  const int rounded = std::max(1, whole + (cpus > whole));
  limit = limit == 0 ? rounded : std::min(limit, rounded);
}

// "max 100000" or "150000 100000".
void read_v2(const std::string& directory, int& limit) {
  std::ifstream file(directory + "/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) tighten(limit, quota / period);
}

void read_v1(const std::string& directory, int& limit) {
  std::ifstream quota_file(directory + "/cpu.cfs_quota_us"), period_file(directory + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) tighten(limit, quota / period);
}

// A group is limited by each of its ancestors too. Inside a container the host's path may not exist; the mount's root,
// which is the container's own group there, is read last in any case.
template <typename Read>
void read_ancestors(const std::string& mount, std::string path, int& limit, Read read) {
  while (!path.empty() && path != "/") {
    read(mount + path, limit);
    path.erase(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
  read(mount, limit);
}

}  // namespace

int cgroup_cpus(const std::string& root) {
  int limit = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path" or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      read_ancestors(root + "/sys/fs/cgroup", path, limit, read_v2);
    } else if (controllers.find(",cpu,") != std::string::npos) {
      read_ancestors(root + "/sys/fs/cgroup/cpu", path, limit, read_v1);
    }
  }
  return limit;
}

std::vector<int> affinity_ids() {
  std::vector<int> ids;
  for (int cpus = 1024; ids.empty() && cpus <= 1 << 16; cpus *= 2) {  // the kernel refuses a mask smaller than its own
    cpu_set_t* set = CPU_ALLOC(cpus);
    const size_t size = CPU_ALLOC_SIZE(cpus);
    if (set != nullptr && sched_getaffinity(0, size, set) == 0) {
      for (int id = 0; id < cpus; ++id) {
        if (CPU_ISSET_S(id, size, set)) ids.push_back(id);
      }
    }
    CPU_FREE(set);
  }
  return ids.empty() ? std::vector<int>{0} : ids;
}

int available_cpus() {
  const int affinity = static_cast<int>(affinity_ids().size()), quota = cgroup_cpus();
  return quota == 0 ? affinity : std::min(affinity, quota);
}

}  // namespace pocketformer
