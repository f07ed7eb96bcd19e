#include "core/cpu_quota.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "core/files.h"

namespace pocketformer {
namespace {

// Keeps the smaller of two limits, where 0 means none.
void tighten(int& limit, double cpus) {
  const int whole = static_cast<int>(std::min(cpus, 1e6));
  const int rounded = std::max(1, whole + (cpus > whole));
  limit = limit == 0 ? rounded : std::min(limit, rounded);
}

// The microseconds of CPU time in every `period` of them; "max" and -1 mean no limit.
void read_quota(const char* quota, const char* period, int& limit) {
  const double used = std::strtod(quota, nullptr), of = std::strtod(period, nullptr);
  if (used > 0 && of > 0) tighten(limit, used / of);
}

// "max 100000" or "150000 100000".
void read_v2(const std::string& directory, int& limit) {
  const std::string both = read_file(directory + "/cpu.max");
  const size_t blank = both.find(' ');
  if (blank != std::string::npos) read_quota(both.c_str(), both.c_str() + blank, limit);
}

void read_v1(const std::string& directory, int& limit) {
  const std::string quota = read_file(directory + "/cpu.cfs_quota_us");
  read_quota(quota.c_str(), read_file(directory + "/cpu.cfs_period_us").c_str(), limit);
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
  const std::string groups = read_file(root + "/proc/self/cgroup");
  for (size_t begin = 0, end; begin < groups.size(); begin = end + 1) {
    end = std::min(groups.find('\n', begin), groups.size());
    const std::string line = groups.substr(begin, end - begin);  // "0::/path" or "4:cpu,cpuacct:/path"
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
