// How many CPUs this process may use: its affinity mask and the quota of its control groups.
#pragma once

#include <string>
#include <vector>

namespace pocketformer {

// The tightest CPU quota of this process's control groups (version 1 and 2) in CPUs, rounded up; 0 without a quota.
// `root` is prepended to the /proc and /sys paths.
int cgroup_cpus(const std::string& root = "");

// The CPUs in the affinity mask of the calling thread, ascending; never empty.
std::vector<int> affinity_ids();

// min(CPUs in the affinity mask, cgroup_cpus()), at least 1.
int available_cpus();

}  // namespace pocketformer
