// Small files of the kernel, such as those in /proc and /sys.
#pragma once

#include <string>

namespace pocketformer {

// The first 64 KiB; nothing where the file cannot be read.
std::string read_file(const std::string& path);

}  // namespace pocketformer
